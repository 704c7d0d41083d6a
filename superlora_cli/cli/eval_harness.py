"""`superlora eval --lm-eval`: a language model in, metrics of lm-evaluation-harness out."""

from __future__ import annotations

from superlora_cli.cli.console import loading, print_json, print_pairs
from superlora_cli.cli.given import Given

OWN = ("result", "overrides", "tasks", "limit", "allow_base_mismatch", "as_json")


def eval_harness(
    source: str, tasks: list[str], overrides: list[str], limit: int | None, given: Given, *, allow_mismatch: bool,
    as_json: bool,
) -> None:  # fmt: skip
    """Evaluate a run, an adapter or a shipped language model on tasks of the harness."""
    given.refuse_all_but(OWN, "cannot be used with --lm-eval", "leave it out")
    with loading("torch and lm-eval"):
        from superlora_cli.commands.lm_eval import lm_eval

    found = lm_eval(source, tasks, overrides, limit=limit, allow_mismatch=allow_mismatch)
    if as_json:
        print_json(found)
        return
    rows = [("base", found["model"]), ("adapter parameters", f"{found['params']:,}")]
    rows += [(name, f"{value:.4f}") for name, value in found["metrics"].items()]
    print_pairs(f"{source}, lm-evaluation-harness {found['harness']}", rows)
