"""Hyper-parameter search of the entries of a comparison, by Optuna (Akiba et al. 2019, 1907.10902); extra ``tune``."""

import functools
import hashlib
import json
import math
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn

from metatransfer.callbacks import DomainDiagnostics, Figures, Report
from metatransfer.callbacks.run.display import show
from metatransfer.cli.entries import epochs_in
from metatransfer.cli.entry_run import Job, logged, run_with
from metatransfer.cli.executors.base import Executor
from metatransfer.cli.search_space import (
    Space,
    as_arguments,
    as_text,
    as_value,
    configured_values,
    read_options,
    spaces_of,
)
from metatransfer.data_info import info_of
from metatransfer.errors import explained

if TYPE_CHECKING:
    from optuna import Study
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial

_OF_RUNS = (Report, Figures, DomainDiagnostics)  # what a trial has no use for
_FILE, _CONFIGURED = "tuning.db", "configured"


@dataclass(frozen=True)
class Trial:
    """A training with values that Optuna suggests.

    Attributes:
        job: the run without these values.
        space: what is searched.
        study: name of the study of the entry.
        storage: the file of all studies.
        number: of the trial, the seed of the suggestion.
    """

    job: Job
    space: Space
    study: str
    storage: Path
    number: int


class Tuned(NamedTuple):
    """What a search has found for an entry.

    Attributes:
        arguments: the best values, for the command line; empty if none was better than what is configured.
        card: what it cost and found, as plain values.
    """

    arguments: tuple[str, ...]
    card: dict[str, Any]

    def __str__(self) -> str:
        if not self.card["space"]:
            return "nothing to tune"
        values = ", ".join(f"{name.removeprefix('model.')} {_short(one)}" for name, one in self.card["values"].items())
        counts = [f"{self.card['trials']} trials"]
        counts += [f"{self.card[name]} {name}" for name in ("pruned", "failed") if self.card[name]]
        return f"{values or 'as configured'} ({', '.join(counts)}, {self.card['seconds']:.0f} s)"


class Search:
    """Searches for every entry, with the same number of trials.

    A trial is a training of the first seed within the budget of all runs, and is judged by its best validation; test
    samples take no part. The first trial has the configured values. A search that was stopped goes on, because all
    trials are in an SQLite file, which the processes share. In one process, it ends as if it had not been stopped.

    Args:
        given: the number of trials, or options with it.
        jobs: by entry, a run without test.
        folder: for the file of the trials.

    Raises:
        UserError: an option is invalid, no entry has an argument of the space, or Optuna is not installed.
    """

    def __init__(self, given: int | str | Mapping[str, Any], jobs: Mapping[str, Job], folder: Path) -> None:
        self.trials, space = read_options(given)
        _optuna()
        self.jobs, self.spaces, self.folder = jobs, spaces_of(jobs, space), folder
        for one in self.spaces.values():
            distributions(one)

    def run(self, executor: Executor) -> dict[str, Tuned]:
        """What is found for each entry."""
        self.folder.mkdir(parents=True, exist_ok=True)
        storage = self.folder / _FILE
        studies = {name: _study(self.jobs[name], space, storage) for name, space in self.spaces.items() if space}
        ended = {name: len(_ended(study)) for name, study in studies.items()}
        missing = [
            Trial(self.jobs[name], self.spaces[name], study.study_name, storage, number)
            for number in range(self.trials)
            for name, study in studies.items()
            if number >= ended[name]
        ]
        running = executor.each(run_trial, missing) if missing else ()
        for done, (place, told) in enumerate(running):
            show(f"[{done + 1}/{len(missing)}] {missing[place].job.name}, {told}")
        return {name: _result(studies.get(name), self.trials, space) for name, space in self.spaces.items()}


def _study(job: Job, space: Space, storage: Path) -> "Study":
    """The study of an entry: a new one, or one that was stopped."""
    optuna = _optuna()
    key = hashlib.sha256(json.dumps([job.folder.name, space], default=str).encode()).hexdigest()[:12]
    study: Study = optuna.create_study(
        study_name=f"{job.name} {key}", storage=_storage(storage), direction="maximize", load_if_exists=True
    )
    if not study.trials:
        start = configured_values(job, space)
        study.enqueue_trial(start, user_attrs={_CONFIGURED: len(start) == len(space)})
    for one in study.get_trials(states=[optuna.trial.TrialState.RUNNING]):  # of a command that was killed
        study.enqueue_trial(one.params, user_attrs={_CONFIGURED: one.user_attrs.get(_CONFIGURED, False)})
        study.tell(one.number, state=optuna.trial.TrialState.FAIL)
    return study


def distributions(space: Space) -> "dict[str, BaseDistribution]":
    """The space for Optuna; values of a list are texts, since Optuna stores no lists and sections.

    Raises:
        UserError: Optuna does not accept a range.
    """
    known = _optuna().distributions
    found = {}
    for name, values in space.items():
        if isinstance(values, list):
            found[name] = known.CategoricalDistribution([as_text(one) for one in values])
            continue
        whole = all(isinstance(one, int) for one in values.values())
        kind = known.IntDistribution if whole else known.FloatDistribution
        with explained(f"tune.space: the range of {name} is invalid", "give low, high, and perhaps log or step"):
            found[name] = kind(**values)
    return found


def _ended(study: "Study") -> "list[FrozenTrial]":
    """The trials that count: not those that were killed."""
    return [one for one in study.trials if one.state.is_finished() and "seconds" in one.user_attrs]


def _result(study: "Study | None", number: int, space: Space) -> Tuned:
    trials = [] if study is None else _ended(study)[:number]
    scored = [one for one in trials if one.state.name == "COMPLETE"]
    best = max(scored, key=lambda one: one.values[0], default=None)  # of equal ones the first
    values = {} if best is None or best.user_attrs.get(_CONFIGURED) else best.params
    card = _card(trials, space, {name: as_value(one) for name, one in values.items()})
    if best is not None:
        card["validation"] = best.user_attrs["validation"]
    return Tuned(as_arguments(values), card)


def _card(trials: "list[FrozenTrial]", space: Space, values: Mapping[str, Any]) -> dict[str, Any]:
    states = [one.state.name for one in trials]
    return {
        "trials": len(trials),
        "pruned": states.count("PRUNED"),
        "failed": states.count("FAIL"),
        "failures": sorted({one.user_attrs["failure"] for one in trials if "failure" in one.user_attrs}),
        "seconds": round(sum(one.user_attrs["seconds"] for one in trials), 2),
        "space": space,
        "values": dict(values),
    }


def _short(value: Any) -> str:  # noqa: ANN401
    return f"{value:.3g}" if isinstance(value, float) else str(value)


# ---- a trial, in whichever process


class Validations(Callback):
    """Reports every validation to Optuna, and stops a fit that Optuna prunes.

    The callback of ``optuna-integration`` reports by epoch. A budget in steps may be less than an epoch, and its
    validations would count as one; here they are numbered.

    Args:
        trial: of Optuna.

    Attributes:
        best: the highest score; of a metric that is minimised, with its sign changed.
        sign: -1 if it was changed.
        number: of validations.
        monitor: the metric by which the run selects its checkpoint.
        pruned: whether the fit was stopped.
    """

    def __init__(self, trial: Any) -> None:  # noqa: ANN401
        self.trial, self.best, self.sign, self.number = trial, -math.inf, 1, 0
        self.monitor, self.pruned = "", False

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Reports the score."""
        self.monitor, mode = _monitored(trainer, pl_module)
        value = float(trainer.callback_metrics.get(self.monitor, math.nan))
        if trainer.sanity_checking or not math.isfinite(value):
            return
        self.sign = 1 if mode == "max" else -1
        self.best, self.number = max(self.best, self.sign * value), self.number + 1
        self.trial.report(self.sign * value, self.number)
        if trainer.state.fn == TrainerFn.FITTING and self.trial.should_prune():
            self.pruned = trainer.should_stop = True


def _monitored(trainer: Trainer, module: Any) -> tuple[str, str]:  # noqa: ANN401
    chooser: Any = trainer.checkpoint_callback
    if getattr(chooser, "monitor", None):
        return chooser.monitor, chooser.mode
    found: tuple[str, str] = module.evaluation.monitored(info_of(trainer))
    return found


def run_trial(trial: Trial) -> str:
    """Runs a trial and tells Optuna; returns its result in words."""
    optuna, began = _optuna(), time.perf_counter()
    study = optuna.load_study(
        study_name=trial.study, storage=_storage(trial.storage), pruner=optuna.pruners.MedianPruner(),
        sampler=optuna.samplers.TPESampler(seed=trial.number, constant_liar=True),
    )  # fmt: skip
    asked = study.ask(distributions(trial.space))
    arguments = (*trial.job.arguments, *as_arguments(asked.params))
    steps = None if trial.job.per_task is None else epochs_in(arguments, trial.job.per_task)
    job = replace(trial.job, arguments=arguments, per_task=steps, folder=trial.job.folder / f"trial{asked.number}")
    watch = Validations(asked)
    failure = logged(job, lambda: run_with(job, functools.partial(_validated, job, watch))) or ""
    if not failure and not watch.number:
        failure = "no validation has a finite score: lower the learning rate, or validate more often."
    seconds = round(time.perf_counter() - began, 2)
    asked.set_user_attr("seconds", seconds)
    if failure:
        asked.set_user_attr("failure", failure)
        study.tell(asked, state=optuna.trial.TrialState.FAIL)
        return f"trial {asked.number}: failed: {failure} ({seconds:.0f} s)"
    shutil.rmtree(job.folder, ignore_errors=True)  # its checkpoints; only what has failed is of interest
    if watch.pruned:
        study.tell(asked, state=optuna.trial.TrialState.PRUNED)
        return f"trial {asked.number}: pruned after {watch.number} validations ({seconds:.0f} s)"
    told = {"metric": watch.monitor, "value": watch.sign * watch.best}
    asked.set_user_attr("validation", told)
    study.tell(asked, watch.best)
    return f"trial {asked.number}: {watch.monitor} {told['value']:.4g} ({seconds:.0f} s)"


def _validated(job: Job, watch: Validations, trainer: Trainer, module: Any, data: Any) -> None:  # noqa: ANN401
    """Trains without test; a classifier that is fitted to each support set has only validation tasks."""
    kept = [one for one in trainer.callbacks if not isinstance(one, _OF_RUNS)]  # type: ignore[attr-defined]
    trainer.callbacks = [*kept, watch]  # type: ignore[attr-defined]
    if job.per_task is None:
        trainer.fit(module, datamodule=data)
    if not watch.number:
        trainer.validate(module, datamodule=data, verbose=False)


# ---- Optuna


def _optuna() -> ModuleType:
    extra = "install the extra, pip install 'metatransfer[tune]'"
    with explained("--tune needs the package optuna", extra, ImportError, quoted=False):
        import optuna
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def _storage(path: Path) -> Any:  # noqa: ANN401
    # several processes write: each waits for the others
    options = {"connect_args": {"timeout": 120}}
    with explained(f"'{path}' cannot be opened", "delete it, to search again"):
        return _optuna().storages.RDBStorage(f"sqlite:///{path.resolve().as_posix()}", engine_kwargs=options)
