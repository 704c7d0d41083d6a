"""`superlora train`: a recipe in, a run folder out."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from superlora_cli.cli.console import print_json, print_pairs, stderr_console
from superlora_cli.errors import UsageError
from superlora_cli.launch import launched, speaks

if TYPE_CHECKING:
    from superlora_cli.tasks.task import TaskKind
    from superlora_cli.training.run import RunFolder


def command(
    recipe: Annotated[
        str | None,
        typer.Argument(
            help="A recipe file, or the name of a shipped one (superlora ls recipes); default: that of the resumed run."
        ),
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Recipe keys to override: adapter.rank=2")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the run; default: runs/<recipe>, or the next free name.")
    ] = None,
    resume: Annotated[
        str | None,
        typer.Option(metavar="auto|DIR", help="Resume from the newest checkpoint; auto: if there is one."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check and count everything; train nothing.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Start over in a folder that already holds a run.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Show no progress.")] = False,
) -> None:
    """Train an adapter, or the base itself, from a recipe."""
    from superlora_cli.progress import doing
    from superlora_cli.recipe.defaults import recorded
    from superlora_cli.recipe.load import find_recipe, is_override, load_recipe
    from superlora_cli.tasks import TASKS

    overrides = overrides or []
    if recipe and is_override(recipe):
        overrides, recipe = [recipe, *overrides], None
    file = find_recipe(recipe or _recipe_of(resume))
    loaded = load_recipe(file, overrides)
    kind = TASKS[loaded.task]
    console = stderr_console()
    if dry_run:
        with doing(console, "loading torch and timm", quiet=quiet):
            from superlora_cli.commands import train as work

        summary = work.dry_run(loaded)
        print_json(summary) if as_json else _show_plan(summary, kind)
        return
    elsewhere = resume not in (None, "auto")  # a run may have been moved from the folder that its recipe names
    wanted = out or (Path(loaded.output.dir) if loaded.output.dir and not elsewhere else None)
    with ExitStack() as stack:

        def opened() -> tuple[RunFolder, bool]:
            folder, fresh = _folder(wanted, file.stem, resume, force)
            stack.enter_context(folder.opened())
            return folder, fresh

        alone = launched() == 1
        if alone:  # loading torch takes seconds, so a wrong folder is reported before it
            folder, fresh = opened()
        with doing(console, "loading torch and timm", quiet=quiet or not speaks()):
            from superlora_cli.commands import train as work
            from superlora_cli.commands.resuming import checkpoint_to_resume
            from superlora_cli.training.processes import join
        processes = join(loaded.train)
        if not alone:  # they agree on one
            folder, fresh = processes.on_main(opened)
            folder.writes = processes.is_main
        if not fresh:  # unset keys keep the defaults that the run was started with
            loaded = load_recipe(file, overrides, defaults=recorded(folder.path))
        checkpoint = None if fresh else processes.on_main(lambda: checkpoint_to_resume(folder, console))
        result = work.train_run(loaded, folder, console, processes, resume=checkpoint, quiet=quiet)
    print_json(result) if as_json else _show_result(result, kind)


def _recipe_of(resume: str | None) -> str:
    """The recipe in the folder of the run to resume, where no other is given."""
    if resume in (None, "auto"):
        hint = "a recipe file, a name of superlora ls recipes, or --resume with the folder of a run"
        raise UsageError("no recipe is given", where="recipe", hint=hint)
    file = Path(resume) / "recipe.yaml"
    if not file.is_file():
        raise UsageError("no such run folder", where=resume, hint="its recipe.yaml says what is trained")
    return str(file)


def _folder(out: Path | None, name: str, resume: str | None, force: bool) -> tuple[RunFolder, bool]:
    """The run folder, and whether to start from scratch in it."""
    from superlora_cli.training.run import RunFolder, next_free

    if resume and resume != "auto":
        if out and out != Path(resume):
            raise UsageError(
                "--out and --resume name different folders", where=f"{out}, {resume}", hint="give one of them"
            )
        if not Path(resume).is_dir():
            raise UsageError("no such run folder", where=resume, hint="--resume auto starts a new run if there is none")
        return RunFolder(Path(resume)), False
    default = Path("runs") / name
    if resume:
        run = RunFolder(out or default)
        has_run = (run.path / "recipe.yaml").exists()
        if not run.is_empty() and not has_run:
            raise UsageError(
                "the folder is not empty and holds no run", where=str(run.path), hint="choose another --out"
            )
        return run, not (has_run and any(run.checkpoints.glob("step-*/COMPLETE")))
    run = RunFolder(out or next_free(default))
    if not run.is_empty() and not force:
        hint = "--resume auto continues it, --force starts over"
        raise UsageError("the folder is not empty", where=str(run.path), hint=hint)
    return run, True


def _show_result(result: dict[str, Any], kind: TaskKind) -> None:
    metrics, params = result["metrics"], result["params"]
    called, per_second = kind.elements, "_per_second"
    counts = result[called]
    unit = next(key for key in result if key.endswith(per_second)).removesuffix(per_second)
    speed = result[unit + per_second]
    measure = next(name for name in metrics if f"val_{name}" in metrics)
    rows = []
    if f"{measure}_before" in metrics:
        rows.append((f"test {measure} before", f"{metrics[f'{measure}_before']:.4f}"))
    rows.append((f"test {measure}", f"{metrics[measure]:.4f} ({counts['test']:,} {called})"))
    if "top5" in metrics:
        rows.append(("test top-5 accuracy", f"{metrics['top5']:.4f}"))
    split = result["selected_on"]
    best = f"{counts[split]:,} {called}; best, step {metrics['best_step']}"
    rows.append((f"{split} {measure}", f"{metrics[f'val_{measure}']:.4f} ({best})"))
    if "found_rate" in result:
        rows.append(("learning rate found", f"{result['found_rate']:g}"))
    if result.get("ended_early"):
        rows.append(("ended early", f"at step {result['steps']}, by train.patience"))
    if "adapter" in result:
        share = params["adapter"] / params["base"]
        rows.append(("adapter parameters", f"{params['adapter']:,} ({share:.3%} of the base)"))
        rows.append(("head parameters trained", f"{params['head']:,}"))
    else:
        rows.append(("parameters trained", f"{params['base']:,}"))
    rows.append(("file", f"{result.get('adapter') or result['model']}  {result['bytes']:,} bytes"))
    rate = f", {speed:.0f} {unit}/s" if speed else ""
    rows.append(("time", f"{result['seconds']:.0f} s{rate}"))
    rows += [("note", line) for line in result.get("notes", [])]
    rows += [("warning", line) for line in result.get("warnings", [])]
    print_pairs(result["run"], rows)


def _show_plan(summary: dict[str, Any], kind: TaskKind) -> None:
    params = summary["params"]
    rows = [("model", summary["model"]), ("base parameters", f"{params['base']:,}")]
    if "targets" in summary:
        targets = summary["targets"]
        names = targets["names"]
        shown = names if len(names) <= 4 else [*names[:2], "…", names[-1]]
        listed = f"{targets['weights']} weights, {targets['elements']:,} elements: {', '.join(shown)}"
        rows.append(("targets", listed if names else "none"))
        also = summary.get("also", {"tensors": 0, "params": 0})
        entries = sum(unit["count"] * unit["params"] for unit in summary["units"])
        each = "parameters" if entries + also["params"] == params["adapter"] else "entries made by F_in"
        for unit in summary["units"]:
            shape = " × ".join(map(str, unit["shape"]))
            rows.append(("unit", f"{unit['count']} × ({shape}), {unit['params']:,} {each} each"))
        if also["tensors"]:
            rows.append(("also trained", f"{also['tensors']} tensors of the base, {also['params']:,} parameters"))
        rows.append(("adapter parameters", f"{params['adapter']:,}"))
        rows.append(("head parameters trained", f"{params['head']:,}"))
    if "note" in summary:
        rows.append(("note", summary["note"]))
    rows.append(("memory, estimated", _memory_in_words(summary["memory"])))
    if "epochs" in summary:
        rows.append(("epochs", f"{summary['epochs']:,}"))
    else:
        rows.append(("steps", f"{summary['steps']:,} ({summary[kind.batched]:,} {kind.batched})"))
    print_pairs("dry run: nothing was trained", rows)


def _memory_in_words(memory: dict[str, int]) -> str:
    """`6.53 GiB (activations 5.80, base 0.32, …)`, the largest part first.

    >>> _memory_in_words({"base": 3 * 2**20, "activations": 5 * 2**20, "total": 9 * 2**20})
    '9.00 MiB (activations 5.00, base 3.00)'
    """
    scale, unit = (2**30, "GiB") if memory["total"] >= 2**30 else (2**20, "MiB")
    parts = sorted(((size, name) for name, size in memory.items() if name != "total"), reverse=True)
    named = ", ".join(f"{name} {size / scale:.2f}" for size, name in parts if size / scale >= 0.005)
    return f"{memory['total'] / scale:.2f} {unit} ({named})"
