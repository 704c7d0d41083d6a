"""The model card of a run on the Hugging Face hub: what it is, how good it is, and how it is loaded."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from superlora_cli.adapter.store import StoredAdapter
from superlora_cli.reporting.runs import Run
from superlora_cli.tasks import TASKS

GRID = "samples.png"  # the sample images, in the repository


@dataclass(frozen=True)
class Facts:
    """What a card says.

    Attributes:
        name: of the repository, USER/NAME.
        runs: the run itself, then others of the same setting with other seeds.
        stored: its adapter; None where the model itself was trained.
        recipe: the recipe's text.
        licence: an identifier of the hub, such as `mit`.
    """

    name: str
    runs: Sequence[Run]
    stored: StoredAdapter | None
    recipe: str
    licence: str

    @property
    def run(self) -> Run:
        """The run itself."""
        return self.runs[0]

    @property
    def grid(self) -> Path | None:
        """Its sample images, if it generates some."""
        return self.run.samples.grid if self.run.samples else None


def card(facts: Facts) -> str:
    """README.md for the repository, with the hub's metadata at the top."""
    from huggingface_hub import EvalResult, ModelCard, ModelCardData

    run = facts.run
    task, model, data = run.subject
    results = [
        EvalResult("image-classification", Path(data).name, Path(data).name, name, value)
        for name, value in run.metrics.items()
        if name in ("accuracy", "map")
    ]
    about = ModelCardData(
        license=facts.licence,
        library_name="superlora",
        base_model=model.removeprefix("hf-hub:").partition("@")[0] if model.startswith("hf-hub:") else None,
        tags=["superlora", "peft", TASKS[task].card.tag or task],
        model_name=facts.name.partition("/")[2],
        eval_results=results or None,
    )
    sections = [_summary(facts), _results(facts), _use(facts), _details(facts)]
    text = "\n\n".join(sections)
    return str(ModelCard(f"---\n{about.to_yaml()}\n---\n\n{text}\n"))


def _summary(facts: Facts) -> str:
    run = facts.run
    task, model, data = run.subject
    what = "A SuperLoRA adapter" if run.config else "A model"
    size = f"{run.params:,} parameters" + (f" and a new head of {run.head:,}" if run.head else "")
    lines = [
        f"# {facts.name.partition('/')[2]}",
        f"{what} of `{model}` for {task} on `{Path(data).name}`: {size}, a file of {run.bytes:,} bytes. "
        "Trained with superlora (SuperLoRA, [arXiv 2403.11887](https://arxiv.org/abs/2403.11887)).",
    ]
    if facts.grid:
        lines.append(f"![samples]({GRID})")
    return "\n\n".join(lines)


def _results(facts: Facts) -> str:
    rows = ["## Results", "", "| on test data | seed " + " | seed ".join(_seeds(facts)) + " | mean |"]
    rows.append("|---" * (len(facts.runs) + 2) + "|")
    names = [name for name in facts.run.metrics if all(name in run.metrics for run in facts.runs)]
    for name in names:
        values = [run.metrics[name] for run in facts.runs]
        shown = [f"{value:.4f}" for value in values]
        before = facts.run.before.get(name)
        label = name if before is None else f"{name} (the base alone: {before:.4f})"
        rows.append(f"| {label} | {' | '.join(shown)} | {statistics.mean(values):.4f} |")
    return "\n".join(rows)


def _seeds(facts: Facts) -> list[str]:
    return [str(run.seeds[0]) for run in facts.runs]


def _use(facts: Facts) -> str:
    place = f"hf-hub:{facts.name}"
    about = TASKS[facts.run.subject[0]].card
    lines = ["## Use", "", "```", "pip install superlora-cli", f"superlora {about.use.format(place=place)}"]
    if facts.stored is not None and not facts.stored.config.activates:
        lines += [
            f"superlora merge {place} --out {about.merged}",
            f"superlora export {place} --to peft-lora --out peft  # for PEFT",
        ]
    lines.append("```")
    if facts.stored is not None:
        lines += [
            "",
            "```python",
            "import superlora_cli",
            f'superlora_cli.load(model, "{place}")  # on the base',
            "```",
        ]
    return "\n".join(lines)


def _details(facts: Facts) -> str:
    lines = ["## Details", ""]
    if facts.stored is not None:
        base: Mapping[str, Any] = facts.stored.base
        lines += [
            f"- base: `{base['name']}`, whose adapted weights have the SHA-256 `{base['sha256']}`",
            f"- adapter: `{facts.stored.config.to_json()}`",
            f"- targets: {', '.join(f'`{pattern}`' for pattern in facts.stored.patterns) or 'none'}",
        ]
        if facts.stored.classes:
            lines.append(f"- classes: {', '.join(map(str, facts.stored.classes))}")
    lines += ["- recipe:", "", "```yaml", facts.recipe.strip(), "```"]
    return "\n".join(lines)
