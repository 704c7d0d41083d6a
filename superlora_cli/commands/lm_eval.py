"""Evaluate a language model on tasks of lm-evaluation-harness, through its own class for models of transformers."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from superlora_cli.adapter.attach import settle
from superlora_cli.commands.generate import open_source
from superlora_cli.errors import RunError, UsageError
from superlora_cli.models.language import LanguageBase
from superlora_cli.training.processes import join

EXTRA = "pip install 'superlora-cli[lm-eval]'"
YAML = (".yaml", ".yml")


def lm_eval(
    source: str, tasks: Sequence[str], overrides: Sequence[str] = (), *, limit: int | None = None,
    allow_mismatch: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """The metrics of tasks; the adapter is merged into the base first.

    Args:
        source: a run folder, an adapter or model file, or the name of a shipped language model.
        tasks: names of the harness's tasks, or YAML files that define one.
        limit: examples per task; default: all.

    Returns:
        task, metrics (by `task/metric`), model, params (the adapter's), and harness (its version).

    Raises:
        UsageError: the extra is missing, it is not a language model, or there is no such task. RunError: a task fails.
    """
    try:
        import lm_eval as harness
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager
    except ImportError:
        raise UsageError("needs the library lm-eval", where="--lm-eval", hint=EXTRA) from None
    built, about = open_source(source, overrides, allow_mismatch)
    base = built.base
    if not isinstance(base, LanguageBase):
        message = f"the task {built.recipe.task} has no language model"
        raise UsageError(message, where="--lm-eval", hint="a run with task: language")
    settle(base.model)
    processes = join(built.recipe.train)
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    try:
        model = processes.place(base.model).eval()
        judged = HFLM(pretrained=model, tokenizer=base.tokenizer, batch_size=built.recipe.eval.batch_size)
        files = [Path(name) for name in tasks if name.endswith(YAML)]
        for file in files:
            if not file.is_file():
                raise UsageError("no such file", where="--lm-eval", hint="a task of the harness, or a YAML file")
        folders = [str(file.resolve().parent) for file in files]
        manager = TaskManager(include_path=folders or None, include_defaults=len(files) < len(tasks))
        names = [_named(file) if file in files else str(file) for file in map(Path, tasks)]
        for name in names:
            if name not in manager.all_tasks:
                hint = "lm-eval ls tasks, or a YAML file that defines one"
                raise UsageError(f"the harness has no task '{name}'", where="--lm-eval", hint=hint)
        with processes.autocast():
            found = harness.simple_evaluate(judged, tasks=names, task_manager=manager, limit=limit, log_samples=False,
                                            bootstrap_iters=0)  # fmt: skip
    except UsageError:
        raise
    except Exception as error:  # of data sets, the network, or a task's own code
        cause = str(error).strip().partition("\n")[0] or type(error).__name__
        raise RunError(f"the harness failed: {cause}", where="--lm-eval") from None
    finally:
        processes.end()
    metrics = {
        f"{task}/{metric.removesuffix(',none')}": value
        for task, values in found["results"].items()
        for metric, value in values.items()
        if isinstance(value, float | int) and "stderr" not in metric and not isinstance(value, bool) and "," in metric
    }
    return {
        "task": built.recipe.task,
        "metrics": metrics,
        "model": built.recipe.model.name,
        "params": about["adapter"]["params"] if about["adapter"] else 0,
        "harness": harness.__version__,
    }


def _named(file: Path) -> str:
    """The name of the task that a YAML file defines.

    Raises:
        UsageError: it defines none.
    """
    import yaml

    class Loader(yaml.SafeLoader):
        """Ignores the harness's own tags, such as functions."""

    Loader.add_multi_constructor("!", lambda loader, tag, node: None)
    try:
        found = yaml.load(file.read_text(encoding="utf-8"), Loader)
        return str(found["task"])
    except (OSError, UnicodeDecodeError, yaml.YAMLError, TypeError, KeyError) as error:
        hint = "a YAML file with the key `task`"
        raise UsageError(f"defines no task: {type(error).__name__}", where=str(file), hint=hint) from None
