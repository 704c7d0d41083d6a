"""The time of F alone, which `step_time.py --projection` reports, against Eq. 4 written plainly."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from timing import Criterion, Spread, Times, interleaved, peak_bytes, ratio
from torch import Tensor
from torch.nn import functional

from superlora_cli.adapter import naive, projections
from superlora_cli.adapter.prng import random_state

VIT_BASE_QV = 24 * 768 * 768  # 14,155,776 elements
Figures = dict[str, Any]  # for JSON


def plain_linear(size: projections.Size, device: torch.device) -> projections.Project:
    """F of `linear`, written literally as Eq. 4: both transforms of full length, an int64 gather, torch's gradient."""

    def draw(role: str) -> Any:
        return random_state(0, "projection", role, size.n_in, size.n_out)

    full = 2**size.bits
    gauss = torch.from_numpy(draw("gauss").standard_normal(full)).to(device, torch.float32)
    order = torch.from_numpy(draw("permutation").permutation(full)).to(device)
    signs = torch.from_numpy(draw("last").randint(0, 2, size.n_out) * 2.0 - 1.0).to(device, torch.float32)

    def project(x: Tensor) -> Tensor:
        mixed = naive.butterfly(functional.pad(x, (0, full - size.n_in))) * gauss  # (1, 2^N)
        output = naive.butterfly(mixed.index_select(-1, order))[..., : size.n_out] * signs
        return output * (full / size.n_in) ** 0.5

    return project


def measured(elements: int, rounds: int, device: torch.device) -> tuple[Times, dict[str, int], float]:
    """Seconds of F forward, and forward and backward, ours and plain; peak bytes; their largest difference."""
    size = projections.Size(-(-elements // 10), elements)
    x = torch.randn(1, size.n_in, device=device, requires_grad=True)
    grad = torch.randn(1, elements, device=device)
    ours = projections.build("linear", size, 0, device=device, dtype=torch.float32)
    both = {"ours": ours, "plain": plain_linear(size, device)}

    def forward(project: projections.Project) -> Tensor:
        with torch.no_grad():
            return project(x)

    def there_and_back(project: projections.Project) -> Tensor:
        return torch.autograd.grad(project(x), x, grad)[0]

    difference = 0.0
    for run in (forward, there_and_back):
        difference = max(difference, (run(both["ours"]) - run(both["plain"])).abs().max().item())
    runs = {f"{name}, forward": partial(forward, project) for name, project in both.items()}
    whole = {f"{name}, forward and backward": partial(there_and_back, project) for name, project in both.items()}
    peaks = {name: peak_bytes(run, device) for name, run in (runs | whole).items()}
    return interleaved(runs | whole, rounds, device), peaks, difference


def report(asked: argparse.Namespace, frozen: float, device: torch.device) -> tuple[list[str], Figures]:
    """Lines of text and numbers for JSON; `frozen` is the measured step of the backbone in seconds."""
    times, peaks, difference = measured(asked.elements, asked.repeats, device)
    lines = [f"\nF of {asked.elements:,} elements, ρ = 0.1, float32 (largest difference {difference:.1e})"]
    for name, values in times.items():
        took = Spread.of(values)
        figures = f"{1e3 * took.median:9.1f} ms ({1e3 * took.low:.1f}–{1e3 * took.high:.1f})"
        lines.append(f"{figures}  peak {peaks[name] / 2**20:7.1f} MiB  {name}")
    parts = {part: ratio(times, f"ours, {part}", f"plain, {part}") for part in ("forward", "forward and backward")}
    lines += [str(Criterion(f"F ≤ 0.2 × plain F (aim 0.1), {part}", 0.2, found)) for part, found in parts.items()]
    scale = 128 / asked.batch * 12 / asked.depth
    share = Spread.of(times["ours, forward and backward"]).median / (frozen * scale)
    lines.append(
        f"our F, forward and backward, is {share:.1%} of a step of 12 blocks at batch 128, if that takes "
        f"{scale:g} × the {1e3 * frozen:.0f} ms of `frozen` above: {frozen * scale:.1f} s, an estimate"
    )
    found = {"times": times, "peaks": peaks, "ratios": {part: asdict(one) for part, one in parts.items()}}
    return lines, found | {"difference": difference, "share_of_estimated_step": share}
