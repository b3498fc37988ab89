"""Hyper-parameter search of the entries of a comparison, by Optuna (Akiba et al. 2019, 1907.10902); extra ``tune``."""

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from metatransfer.callbacks.run.display import show
from metatransfer.cli.entry_run import Job
from metatransfer.cli.executors.base import Executor
from metatransfer.cli.search_space import Space, as_arguments, as_value, configured_values, read_options, spaces_of
from metatransfer.cli.tuning_trial import Trial, distributions, import_optuna, run_trial, storage_at, storage_errors
from metatransfer.errors import explained

if TYPE_CHECKING:
    from metatransfer.cli.tuning_trial import FrozenTrial, Study

_FILE, _CONFIGURED, _REPEATS = "tuning.db", "configured", "repeats"


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
        counts += [f"{self.card[name]} {name}" for name in ("pruned", "failed", "missing") if self.card[name]]
        return f"{values or 'as configured'} ({', '.join(counts)}, {self.card['seconds']:.0f} s)"


class Search:
    """Searches for every entry, with the same number of trials.

    A trial is a training of the first seed within the budget of all runs, and is judged by its best validation; test
    samples take no part. The first trial has the configured values. A search that was stopped goes on, because all
    trials are in an SQLite file, which the processes share. In one process, it ends as if it had not been stopped.
    Trials without a result, such as those of killed processes, are repeated once in the same search, and trials that
    have failed in the next one: what they lacked may be there then.

    Args:
        given: the number of trials, or options with it.
        jobs: by entry, a run without test.
        folder: for the file of the trials.

    Raises:
        UserError: an option is invalid, no entry has an argument of the space, or Optuna is not installed.
    """

    def __init__(self, given: int | str | Mapping[str, Any], jobs: Mapping[str, Job], folder: Path) -> None:
        self.trials, space = read_options(given)
        import_optuna()
        self.jobs, self.spaces, self.folder = jobs, spaces_of(jobs, space), folder
        for one in self.spaces.values():
            distributions(one)

    def run(self, executor: Executor) -> dict[str, Tuned]:
        """What is found for each entry.

        Raises:
            UserError: another command searches in the same folder, or the file of the trials cannot be used.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        storage = self.folder / _FILE
        remedy = "check its folder and the free space, and run the command again"
        with _alone(self.folder), explained(f"'{storage}' cannot be used", remedy, *storage_errors()):
            studies = {name: _study(self.jobs[name], space, storage) for name, space in self.spaces.items() if space}
            for first in (True, False):
                for name, study in studies.items():
                    self._queue(name, study, failed=first)
                self._round(executor, studies, storage)
            return {name: _result(studies.get(name), self.trials, space) for name, space in self.spaces.items()}

    def _round(self, executor: Executor, studies: "Mapping[str, Study]", storage: Path) -> None:
        """Runs the trials that are missing."""
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

    def _queue(self, name: str, study: "Study", failed: bool) -> None:
        """Queues the configured values first, and again the trials that were killed; on request those that failed."""
        fail, trials = import_optuna().trial.TrialState.FAIL, study.trials
        if not trials:
            start = configured_values(self.jobs[name], self.spaces[name])
            study.enqueue_trial(start, user_attrs={_CONFIGURED: len(start) == len(self.spaces[name])})
        for one in _to_repeat(trials, failed):
            # one that ended before it had its values has only those that were queued
            values = {**one.system_attrs.get("fixed_params", {}), **one.params}
            kept = {_CONFIGURED: one.user_attrs.get(_CONFIGURED, False), _REPEATS: one.number}
            study.enqueue_trial(values, user_attrs=kept)
        for one in trials:
            if one.state.name == "RUNNING":
                study.tell(one.number, state=fail, skip_if_finished=True)


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keeps other commands from searching in a folder, since they would take running trials for killed ones."""
    from filelock import FileLock, Timeout  # with the extra

    lock = FileLock(folder / "tuning.lock")
    problem = f"another command is tuning in '{folder}'"
    with explained(problem, "wait until it has ended, and run this command again", Timeout, quoted=False):
        lock.acquire(timeout=0)
    try:
        yield
    finally:
        lock.release()


def _study(job: Job, space: Space, storage: Path) -> "Study":
    """The study of an entry: a new one, or one that was stopped."""
    key = hashlib.sha256(json.dumps([job.folder.name, space], default=str).encode()).hexdigest()[:12]
    study: Study = import_optuna().create_study(
        study_name=f"{job.name} {key}", storage=storage_at(storage), direction="maximize", load_if_exists=True
    )
    return study


def _repeated(trials: "list[FrozenTrial]") -> set[int]:
    """Numbers of the trials that later ones repeat."""
    return {one.user_attrs[_REPEATS] for one in trials if _REPEATS in one.user_attrs}


def _to_repeat(trials: "list[FrozenTrial]", failed: bool) -> "list[FrozenTrial]":
    found = [one for one in trials if one.state.name in ("RUNNING", "FAIL") and one.number not in _repeated(trials)]
    return [one for one in found if failed or one.state.name == "RUNNING" or "seconds" not in one.user_attrs]


def _ended(study: "Study") -> "list[FrozenTrial]":
    """The trials that count: not those that were killed, or are repeated."""
    trials = study.trials
    repeated = _repeated(trials)
    ended = [one for one in trials if one.state.is_finished() and "seconds" in one.user_attrs]
    return [one for one in ended if one.number not in repeated]


def _result(study: "Study | None", number: int, space: Space) -> Tuned:
    trials = [] if study is None else _ended(study)[:number]
    scored = [one for one in trials if one.state.name == "COMPLETE"]
    # of equal ones that with the configured values, which may have been repeated late, or else the first
    best = max(scored, key=lambda one: (one.values[0], one.user_attrs.get(_CONFIGURED, False)), default=None)
    values = {} if best is None or best.user_attrs.get(_CONFIGURED) else best.params
    card = {"missing": number - len(trials) if space else 0}
    card |= _card(trials, space, {name: as_value(one) for name, one in values.items()})
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
