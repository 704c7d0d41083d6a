"""What images from prompts are asked for."""

from __future__ import annotations

from superlora_cli.commands.generate_prompted import read_scales


def test_a_scale_that_is_given_twice_is_made_once() -> None:
    assert read_scales("0,1,0.5,0") == (0.0, 1.0, 0.5)
