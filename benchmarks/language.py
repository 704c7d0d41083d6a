"""Sums with Roman numerals, by the shipped language model: LoRA of rank 1 against fewer numbers; docs/language.md.

    python benchmarks/language.py --workers 2         # runs what is missing, and fills the page
    python benchmarks/language.py --fill              # only fills it

Every run has the data and the batches of `recipes/sums_roman_lora.yaml`, or more problems and clipped gradients, its
steps, or more, and keeps its best step on the validation problems. PEFT's LoRA is trained by a plain loop at several
learning rates, of which the best is taken on validation; ours have the default rate. Results are in
records/language.jsonl, one run a line.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import pages
import torch
from recorded import Records, Row, key_of, processes
from rich.console import Console

from superlora_cli.commands.train import train_run
from superlora_cli.models.embedded import ASSETS
from superlora_cli.opening.build import build_for_training
from superlora_cli.recipe.load import load_recipe
from superlora_cli.tasks import task_of
from superlora_cli.training.processes import join
from superlora_cli.training.run import RunFolder

PAGE, RUNS = pages.DOCS / "language.md", pages.ROOT / "runs" / "language"
RECIPE, BASE, SEEDS = "sums_roman_lora", "sums_llama", (0, 1, 2)
RATES = (1e-3, 3e-3, 1e-2, 3e-2)  # of PEFT's LoRA
PEFT = "PEFT's LoRA, r 1"
OWN, MOST = ("sums", "sums-in-words"), 40  # notations that the base has learned, and most tokens of an answer
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def onehot(dim: int, rank: int = 4, **more: Any) -> dict[str, Any]:
    return {"order": 2, "rank": rank, "inner": {"projection": "onehot", "dim": dim}, **more}


LATE = ["re:.*layers\\.[345]\\..*_proj", "re:.*lm_head"]  # the last three of six layers, and what writes the letters
EVERY = ["q", "k", "v", "o", "mlp", "re:.*lm_head"]
SMALL = {"multiply": "magnitude", "init": "lora", "scaling": "alpha", "alpha": 1.5}
SMALL_START = "one-hot 2D, r 32, small start, DoRA"
NARROW, WIDE = f"{SMALL_START}, last 3 layers and head, 2956", f"{SMALL_START}, all layers and head, 2956"
OURS: dict[str, dict[str, Any]] = {
    "LoRA, r 1": {"method": "lora", "rank": 1},
    **{f"one-hot 2D, {dim}": onehot(dim) for dim in (300, 739, 1478, 2956)},
    **{f"one-hot 2D, r 8, {dim}": onehot(dim, 8) for dim in (1478, 2956)},
    **{
        f"one-hot 2D, DoRA, last 3 layers and head, {dim}": onehot(dim, multiply="magnitude", targets=LATE)
        for dim in (1478, 2956)
    },
    **{f"{SMALL_START}, last 3 layers and head, {dim}": onehot(dim, 32, **SMALL, targets=LATE) for dim in (1478, 2956)},
    WIDE: onehot(2956, 32, **{**SMALL, "alpha": 1.0}, targets=EVERY),
    "one-hot 3D, r 8, 1478": {**onehot(1478, 8), "order": 3, "method": "lorta"},
    "LoRTA 3D, r 4": {"method": "lorta", "order": 3, "rank": 4},
    "LoRTA 3D, r 7": {"method": "lorta", "order": 3, "rank": 7},
    "CP of order 4, r 10": {"method": "lorta", "order": 4, "rank": 10, "core": "identity"},
    "CP of order 3, r 6": {"method": "lorta", "order": 3, "rank": 6, "core": "identity"},
}


BESIDE = "LoRA, r 1"
USUAL = ("train.clip_norm=null",)
ALL = ("data.train_texts=18000", "data.eval_texts=1000", "train.clip_norm=1.0")
LONG = 4000  # steps that some are given, too
LONGER = ("LoRA, r 1", "one-hot 2D, r 8, 2956")


class Job(NamedTuple):
    """A setting, with PEFT's rate, a seed, steps other than the recipe's, and whether it is trained as `ALL` says."""

    name: str
    lr: float | None
    seed: int
    steps: int | None = None
    on_all: bool = False

    @property
    def key(self) -> str:
        """What makes it that run."""
        return key_of(setting(self), self.seed)


RECORDS = Records("language.jsonl", lambda row: key_of(row["setting"], row["seed"]))


def recipe_of(job: Job) -> Any:
    overrides = [f"seed={job.seed}", "train.threads=1", *(ALL if job.on_all else USUAL)]
    if job.steps:
        overrides += [f"train.steps={job.steps}", f"eval.every={job.steps // 4}", "train.checkpoint_every=500"]
    if job.name in OWN:
        overrides += [f"data.name={job.name}", f"language.max_tokens={MOST}"]
    elif job.name != PEFT:
        overrides.append("adapter=" + json.dumps({"targets": ["q", "k", "v", "o", "mlp"], **OURS[job.name]}))
    return load_recipe(RECIPE, overrides)


def setting(job: Job) -> dict[str, Any]:
    """What a result depends on, but for the seed."""
    recipe = json.loads(recipe_of(job).to_json())
    kept: dict[str, Any] = {key: recipe[key] for key in ("data", "language", "train")}
    if job.name == PEFT:
        kept["lr"] = job.lr
    elif job.name in OURS:
        kept["adapter"] = recipe["adapter"]
    return {"base": json.loads((ASSETS / f"{BASE}.json").read_text())["sha256"][:12], **kept}


def work(job: Job) -> Row:
    """One run, trained and tested."""
    found = by_peft(job) if job.name == PEFT else by_us(job) if job.name in OURS else unadapted(job)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    return {"name": job.name, "seed": job.seed, "setting": setting(job), **found, "device": device}


def unadapted(job: Job) -> dict[str, Any]:
    """The base on problems in a notation that it has learned."""
    recipe = recipe_of(job).model_copy(update={"adapter": None})
    task: Any = task_of(recipe)(build_for_training(recipe), join(recipe.train))
    return {"test": task.evaluate("test")["exact_match"]}


def by_us(job: Job) -> dict[str, Any]:
    recipe = recipe_of(job)
    folder = RUNS / f"{job.name.replace(' ', '_')}-{job.seed}-{recipe.train.steps}{'-all' if job.on_all else ''}"
    with RunFolder(folder).opened() as run:
        run.clear()
        train_run(recipe, run, Console(file=io.StringIO()), join(recipe.train), quiet=True)
        about = run.about()
    metrics = about["metrics"]
    return {"parameters": about["params"]["adapter"], "lr": recipe.train.optimizer.lr, "seconds": about["seconds"],
            "validation": metrics["val_exact_match"], "test": metrics["exact_match"],
            "before": metrics["exact_match_before"]}  # fmt: skip


def by_peft(job: Job) -> dict[str, Any]:
    """PEFT's LoRA in a plain loop, on the same batches."""
    import peft

    recipe = recipe_of(job).model_copy(update={"adapter": None})
    train, processes = recipe.train, join(recipe.train)
    task: Any = task_of(recipe)(build_for_training(recipe), processes)
    torch.manual_seed(job.seed)
    task.model.requires_grad_(False)
    peft.inject_adapter_in_model(peft.LoraConfig(r=1, lora_alpha=8, target_modules=LINEAR), task.model)
    task.model.to(processes.device)
    own = [parameter for parameter in task.model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(own, job.lr, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, job.lr, train.steps, pct_start=0.1)
    best: dict[str, float] = {"validation": -1.0}
    for step, batch in enumerate(task.batches(0, train.steps), 1):
        task.in_training = True
        task.model.train()
        task.loss(batch).backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if step % recipe.eval.every == 0:
            seen = task.evaluate("validation")["exact_match"]
            if seen > best["validation"]:
                best = {"validation": seen, "test": task.evaluate("test")["exact_match"]}
    return {"parameters": sum(parameter.numel() for parameter in own), "lr": job.lr, **best}


class Claim(NamedTuple):
    """Our setting beside LoRA with so many seeds, both trained in the same way."""

    name: str
    seeds: int
    steps: int | None = None
    on_all: bool = False

    def jobs(self, name: str) -> list[Job]:
        """Those of ours, or of LoRA."""
        return [Job(name, None, seed, self.steps, self.on_all) for seed in range(self.seeds)]


CLAIMS = [
    Claim(NARROW, 8),
    Claim(NARROW, 6, 2400),
    Claim(WIDE, 6, on_all=True),
    Claim(WIDE, 6, 2400, on_all=True),
]


def usual() -> list[Job]:
    """Those of the table."""
    named = [(PEFT, rate) for rate in RATES] + [(name, None) for name in OURS if name != WIDE]
    return [Job(name, rate, seed) for seed in SEEDS for name, rate in named]


def jobs() -> list[Job]:
    base = [Job(name, None, SEEDS[0]) for name in OWN]
    more = [job for claim in CLAIMS for name in (claim.name, BESIDE) for job in claim.jobs(name)]
    return list(dict.fromkeys([*base, *usual(), *more, *longer()]))  # some of more are usual


def longer() -> list[Job]:
    """Those with the usual start in `LONG` steps."""
    return [Job(name, None, seed, LONG) for seed in SEEDS for name in LONGER]


def results(known: Mapping[str, Row], jobs: Sequence[Job]) -> list[Row]:
    """A row per setting, by parameters: the test over seeds."""
    own: dict[tuple[str, float | None], list[Row]] = {}
    for job in jobs:
        if job.name not in OWN and (row := known.get(job.key)):
            own.setdefault((job.name, job.lr), []).append(row)
    rates = {key: statistics.mean(row["validation"] for row in found) for key, found in own.items() if key[0] == PEFT}
    best = max(rates, key=lambda key: rates[key], default=None)
    found = []
    for key, group in own.items():
        if key[0] == PEFT and key != best:
            continue
        tests = [row["test"] for row in group]
        found.append({"name": key[0], "parameters": group[0]["parameters"], "lr": group[0]["lr"], "tests": tests})
    return sorted(found, key=lambda row: -row["parameters"])


def table(found: Sequence[Row]) -> str:
    """In Markdown."""
    lines = ["| | parameters | rate | exact match | of 3 seeds |", "|---|---:|---:|---:|---:|"]
    for row in found:
        tests = row["tests"]
        lines.append(f"| {row['name']} | {row['parameters']:,} | {row['lr']:g} | {statistics.mean(tests):.3f} | "
                     f"{min(tests):.3f} – {max(tests):.3f} |")  # fmt: skip
    return "\n".join(lines)


def line(known: Mapping[str, Row], claim: Claim) -> str:
    """A claim, in a line of a list; the standard error is over seeds."""
    ours = claim.jobs(claim.name)
    found = [[known.get(job.key) for job in jobs] for jobs in (ours, claim.jobs(BESIDE))]
    own, lora = ([row["test"] for row in group if row] for group in found)
    differences = [one - other for one, other in zip(own, lora, strict=True)]
    error = statistics.stdev(differences) / len(differences) ** 0.5
    recipe = recipe_of(ours[0])
    well = f", {recipe.data.train_texts:,} problems, gradients clipped" if claim.on_all else ""
    return (
        f"- {recipe.train.steps:,} steps{well}, {len(own)} seeds: LoRA of rank 1 {statistics.mean(lora):.3f} "
        f"({min(lora):.3f} – {max(lora):.3f}), a fifth of its numbers {statistics.mean(own):.3f} "
        f"({min(own):.3f} – {max(own):.3f}): {statistics.mean(differences):+.3f} ± {error:.3f}"
    )


def places() -> pages.Places:
    """The generated parts of the page."""
    known = RECORDS.known()
    words = [f"{row['test']:.3f} of `{job.name}`" for job in jobs() if job.name in OWN and (row := known.get(job.key))]
    base = f"Of held-out problems it answers {' and '.join(words)} exactly right."
    return {
        (PAGE, "base"): base,
        (PAGE, "roman"): table(results(known, usual())),
        (PAGE, "claim"): "\n".join(line(known, claim) for claim in CLAIMS),
        (PAGE, "longer"): table(results(known, longer())),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--fill", action="store_true", help="only fill the page")
    asked = parser.parse_args()
    if not asked.fill:
        with processes(asked.workers) as pool:
            RECORDS.make(work, {job.key: (job,) for job in jobs()}, pool)
    print(*places().values(), sep="\n\n")
    pages.fill(places())


if __name__ == "__main__":
    main()
