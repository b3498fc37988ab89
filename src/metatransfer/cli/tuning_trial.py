"""One trial of a hyper-parameter search, in whichever process; and Optuna, which keeps all trials in an SQLite file."""

import functools
import math
import shutil
import sqlite3
import time
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn

from metatransfer.callbacks import DomainDiagnostics, Figures, Report
from metatransfer.cli.entries import epochs_in
from metatransfer.cli.entry_run import Job, logged, run_with
from metatransfer.cli.search_space import Space, as_arguments, as_text
from metatransfer.data_info import info_of
from metatransfer.errors import UserError, explained

if TYPE_CHECKING:
    from optuna import Study as Study
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial as FrozenTrial

_OF_RUNS = (Report, Figures, DomainDiagnostics)  # what a trial has no use for


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
        source: in domain adaptation, the accuracy on the source with the best score.
    """

    def __init__(self, trial: Any) -> None:  # noqa: ANN401
        self.trial, self.best, self.sign, self.number = trial, -math.inf, 1, 0
        self.monitor, self.pruned, self.source = "", False, math.nan

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Reports the score."""
        self.monitor, mode = _monitored(trainer, pl_module)
        value = float(trainer.callback_metrics.get(self.monitor, math.nan))
        if trainer.sanity_checking or not math.isfinite(value):
            return
        self.sign = 1 if mode == "max" else -1
        if self.sign * value > self.best:
            self.source = float(trainer.callback_metrics.get("val/source_accuracy", math.nan))
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
    """Runs a trial and tells Optuna; returns its result in words.

    A trial that cannot be stored, for example on a full disk, or that another command has declared failed, has no
    result: it counts as one whose process was killed.
    """
    try:
        with explained(f"no result in '{trial.storage}'", "check the free space and the permissions of its folder"):
            return _told(trial)
    except UserError as error:
        return f"a trial failed: {error}"


def _told(trial: Trial) -> str:
    optuna, began = import_optuna(), time.perf_counter()
    study = optuna.load_study(
        study_name=trial.study, storage=storage_at(trial.storage), pruner=optuna.pruners.MedianPruner(),
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
    if math.isfinite(watch.source):
        told["source_accuracy"] = watch.source
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


def distributions(space: Space) -> "dict[str, BaseDistribution]":
    """The space for Optuna; values of a list are texts, since Optuna stores no lists and sections.

    Raises:
        UserError: Optuna does not accept a range.
    """
    known = import_optuna().distributions
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


def import_optuna() -> ModuleType:
    """The package.

    Raises:
        UserError: it is not installed.
    """
    extra = "install the extra, pip install 'metatransfer[tune]'"
    with explained("--tune needs the package optuna", extra, ImportError, quoted=False):
        import optuna
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def storage_errors() -> tuple[type[Exception], ...]:
    """What may be raised where the trials are read or written, such as for a lock that takes too long."""
    from sqlalchemy.exc import SQLAlchemyError

    return import_optuna().exceptions.OptunaError, SQLAlchemyError


def storage_at(path: Path) -> Any:  # noqa: ANN401
    """The storage of all trials in an SQLite file.

    Raises:
        UserError: the file cannot be opened.
    """
    # by the path itself: in a URL, ? and { would have a meaning; several processes write, and wait for each other
    connect = functools.partial(sqlite3.connect, path.resolve(), timeout=120, check_same_thread=False)
    with explained(f"'{path}' cannot be opened", "delete it, to search again"):
        return import_optuna().storages.RDBStorage(f"sqlite:///{path.name}", engine_kwargs={"creator": connect})
