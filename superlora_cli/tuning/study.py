"""The trials of a search: Optuna chooses their settings, judges them while they run, and keeps them in a file.

What is chosen and judged depends on the seed, the number of the trial and earlier trials only, not on the order in
which workers finish. Trials come in generations: those of one are chosen from what is known of the generations before.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from superlora_cli.errors import UsageError

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

    from superlora_cli.tuning.space import SearchSpace

STARTUP = 10  # trials that are drawn at random before TPE begins
KEPT = 3  # one of as many trials goes on when they are compared


class Study:
    """An Optuna study in a journal file.

    Args:
        file: the journal; made if it is missing.
        higher: whether higher values are better.
        rung: the step at which trials are compared; None if they are not.
        seed: of the choices.

    Raises:
        UsageError: Optuna is not installed, or the file is not such a journal.
    """

    def __init__(self, file: Path, space: SearchSpace, *, higher: bool, rung: int | None, seed: int) -> None:
        optuna = _optuna()
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend

        self.space, self.rung, self.seed = space, rung, seed
        self.direction = "maximize" if higher else "minimize"
        Path(f"{file}.lock").unlink(missing_ok=True)  # of a process that was killed while it wrote
        pruner = (
            optuna.pruners.SuccessiveHalvingPruner(min_resource=rung, reduction_factor=KEPT)
            if rung
            else optuna.pruners.NopPruner()
        )
        try:
            self.study = optuna.create_study(
                storage=JournalStorage(JournalFileBackend(str(file))),
                sampler=optuna.samplers.RandomSampler(seed=0),  # unused: `propose` chooses
                pruner=pruner,
                study_name="tune",
                direction=self.direction,
                load_if_exists=True,
            )
        except (ValueError, KeyError, TypeError) as error:
            hint = "remove the folder, or choose another --out"
            raise UsageError(f"not the journal of a search: {error}", where=str(file), hint=hint) from None

    @property
    def trials(self) -> list[FrozenTrial]:
        """All trials so far, by number."""
        return self.study.get_trials()

    def active(self) -> list[FrozenTrial]:
        """Trials that are neither finished, nor stopped, nor failed."""
        return [trial for trial in self.trials if not trial.state.is_finished()]

    def propose(self, numbers: Sequence[int]) -> None:
        """Begin the trials of a generation that have not begun yet.

        A trial is chosen from the trials before the generation, and knows the settings of those before it in it.
        """
        optuna = _optuna()
        for number in numbers[len(self.trials) - numbers[0] :]:
            first = self.space.first
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                sampler = optuna.samplers.TPESampler(
                    seed=(self.seed * 1_000_003 + number) % 2**32, n_startup_trials=STARTUP, multivariate=True
                )
                scratch = optuna.create_study(sampler=sampler, direction=self.direction)
            scratch.add_trials([_as_known(trial, numbers[0]) for trial in self.trials])
            if number < len(first):
                scratch.enqueue_trial(first[number])
            trial = scratch.ask()
            self.space.suggest(trial)
            running = optuna.trial.create_trial(
                state=optuna.trial.TrialState.RUNNING, params=trial.params, distributions=trial.distributions
            )
            self.study.add_trial(running)

    def stops(self, number: int, value: float | None) -> bool:
        """Note the value at the rung, and stop the trial if it is not among the best there; None: it has no value."""
        from optuna.trial import Trial, TrialState

        if self.rung is None or value is None:
            return False
        trial = Trial(self.study, self.trials[number]._trial_id)
        trial.report(value, self.rung)
        stop: bool = trial.should_prune()
        if stop:
            self.study.tell(number, state=TrialState.PRUNED)
        return stop

    def finish(self, number: int, value: float | None) -> None:
        """Note the value of a finished trial; None: it failed."""
        from optuna.trial import TrialState

        if value is None:
            self.study.tell(number, state=TrialState.FAIL)
        else:
            self.study.tell(number, value)

    def finished(self) -> list[FrozenTrial]:
        """Trials with a value, the best first; of equal ones the earliest."""
        from optuna.trial import TrialState

        done = self.study.get_trials(states=(TrialState.COMPLETE,))
        sign = -1 if self.direction == "maximize" else 1
        return sorted(done, key=lambda trial: (sign * (trial.value or 0.0), trial.number))

    def importances(self) -> dict[str, float]:
        """How much each setting mattered, as shares (PED-ANOVA); {} if too few trials are finished."""
        optuna = _optuna()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                found: dict[str, float] = optuna.importance.get_param_importances(
                    self.study, evaluator=optuna.importance.PedAnovaImportanceEvaluator()
                )
            except (ValueError, RuntimeError):
                return {}
        total = sum(found.values())
        return {name: value / total for name, value in found.items()} if total > 0 else {}


def _as_known(trial: FrozenTrial, start: int) -> FrozenTrial:
    """A trial as a generation that begins with number `start` knows it: those in it have settings only."""
    optuna = _optuna()
    if trial.number < start:
        return trial
    return optuna.trial.create_trial(
        state=optuna.trial.TrialState.RUNNING, params=trial.params, distributions=trial.distributions
    )


def _optuna() -> Any:
    try:
        import optuna
    except ImportError:
        hint = "pip install 'superlora-cli[tune]'"
        raise UsageError("optuna is not installed", where="superlora tune", hint=hint) from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna
