"""Runs a comparison: which runs there are, in which order, and what is told of them."""

import hashlib
import json
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

import metatransfer
from metatransfer.callbacks.run.display import show
from metatransfer.cli.comparison_report import publish
from metatransfer.cli.entries import Candidate, Situation, epochs_in, read_data, situation_of
from metatransfer.cli.entry_content import own_content
from metatransfer.cli.entry_data import data_section, ways_of
from metatransfer.cli.entry_run import Job, Task, configured, run_job
from metatransfer.cli.executors import executor_of
from metatransfer.cli.executors.base import Executor, Killed
from metatransfer.cli.tuning import Search
from metatransfer.errors import UserError
from metatransfer.experiments.budgets import TrainingBudget
from metatransfer.experiments.ranking import Outcome, Ranking, check_units, rank

SOURCE_ONLY, ORACLE = "source_only", "oracle: trained on the target"
_EPOCHS = 30  # steps on each support set, where a configuration has no epochs
Results = dict[str, list[Outcome]]


@dataclass(frozen=True)
class Plan:
    """The runs of a comparison.

    Attributes:
        data: the user's options.
        situation: that follows from them.
        budget: of each training.
        seeds: of each entry.
        folder: where everything is written.
        trainer: options of the Trainer.
    """

    data: Mapping[str, Any]
    situation: Situation
    budget: TrainingBudget
    seeds: Sequence[int]
    folder: Path
    trainer: Mapping[str, Any]

    def job(self, candidate: Candidate, seed: int, task: Task = "method", checkpoint: str | None = None) -> Job:
        """The run of an entry; its folder is named after everything that its result depends on."""
        section = data_section(candidate, self.situation, self.data, seed)
        config = configured(candidate, section, seed, self.budget.limits(), self.trainer)
        arguments, steps = candidate.arguments, None
        if self.situation.kind == "new classes" and candidate.per_task:
            arguments = ("--model.num_classes", str(ways_of(self.data)), *arguments)
            steps = 0 if task == "baselines" else _steps(candidate, self.trainer)
        name = candidate.name if task in ("method", "tuning") else ORACLE if task == "oracle" else task
        parts = [config, arguments, seed, task, steps, self.situation.fingerprint, metatransfer.__version__,
                 own_content(candidate), checkpoint]  # fmt: skip
        key = hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()
        folder = self.folder / ("tuning" if task == "tuning" else "runs") / f"{_slug(name)}-seed{seed}-{key[:12]}"
        return Job(name, task, config, arguments, seed, folder, steps, checkpoint)


def compare(settings: Namespace) -> None:
    """Runs the comparison and reports it.

    Raises:
        UserError: an argument is invalid, an entry does not fit the data, or the data cannot be served.
    """
    began = time.perf_counter()
    plan, candidates = _planned(settings)
    runner = Runner(executor_of(_options(settings.executor), settings.jobs, plan.folder))
    jobs = {one.name: plan.job(one, plan.seeds[0], "tuning") for one in candidates}
    search = None if settings.tune is None else Search(settings.tune, jobs, plan.folder)
    results = _baselines(plan, candidates, runner)
    tuned = search.run(runner.executor) if search is not None else {}
    candidates = [one.adding(tuned[one.name].arguments) if tuned else one for one in candidates]
    results |= runner.run([plan.job(one, seed) for seed in plan.seeds for one in candidates])
    apart = _oracle(plan, candidates, runner) if plan.situation.kind == "domains" else {}
    for name, text in check_units(results).items():
        results[name] = [replace(one, failure=text) for one in results[name]]
    results |= _without_support(plan, candidates, rank(results), runner)
    order = [*(one.name for one in candidates), *results]
    ranking = rank({name: results[name] for name in dict.fromkeys(order)})
    seconds = {"total": round(time.perf_counter() - began, 2), "runs": round(runner.seconds, 2), "new_runs": runner.new}
    card = _card(plan, settings, seconds)
    if search is not None:
        card["tuning"] = {"trials": search.trials, "entries": {name: one.card for name, one in tuned.items()}}
    publish(ranking, apart, plan.folder, card, {name: str(one) for name, one in tuned.items()})


def _planned(settings: Namespace) -> tuple[Plan, list[Candidate]]:
    """The runs and the entries that the user asks for."""
    budget, data = TrainingBudget.parse(settings.budget), read_data(settings.data)
    candidates = [Candidate.parse(text) for text in settings.methods]
    for place, one in enumerate(candidates):
        if one.name in [other.name for other in candidates[:place]]:
            raise UserError(f"'{one.name}' is given twice: leave one out, or give it other arguments.")
    situation = situation_of(data)
    for one in candidates:
        if obstacle := one.obstacle(situation):
            raise UserError(obstacle)
    if situation.kind == "domains" and not any(one.name == SOURCE_ONLY for one in candidates):
        candidates.append(Candidate.parse(SOURCE_ONLY))
    trainer = read_data(settings.trainer)
    key = hashlib.sha256(json.dumps([situation.fingerprint, str(budget), trainer]).encode()).hexdigest()
    folder = Path(settings.output) / f"compare-{_slug(situation.name)}-{key[:8]}"
    show(f"{situation.name}: {situation}.", f"Budget of each training: {budget}; {settings.seeds} seeds; in {folder}")
    return Plan(data, situation, budget, range(settings.seeds), folder, trainer), candidates


class Runner:
    """Runs jobs, except those with stored outcomes, and says how far it is.

    Args:
        executor: runs them.

    Attributes:
        seconds: that the runs took.
        new: number of runs that were not stored.
    """

    def __init__(self, executor: Executor) -> None:
        self.executor, self.seconds, self.new = executor, 0.0, 0

    def run(self, jobs: Sequence[Job]) -> Results:
        """The outcomes by entry, in the order of the seeds."""
        found = {place: job.stored() for place, job in enumerate(jobs)}
        missing = [place for place in found if not found[place]]
        running = self.executor.each(_timed, [jobs[place] for place in missing]) if missing else ()
        for done, (number, told) in enumerate(running):
            found[missing[number]], seconds = _outcomes(told, jobs[missing[number]])
            self.seconds, self.new = self.seconds + seconds, self.new + 1
            for one in found[missing[number]]:
                show(f"[{done + 1}/{len(missing)}] {_line(one)}")
        results: Results = {}
        for place in sorted(found, key=lambda place: jobs[place].seed):
            for one in found[place]:
                results.setdefault(one.entry, []).append(one)
        return results


def _outcomes(told: tuple[list[Outcome], float] | Killed, job: Job) -> tuple[list[Outcome], float]:
    """The outcomes of a job and its seconds; a failure, which is not stored, if its process was killed."""
    return ([Outcome(job.name, job.seed, failure=str(told))], 0.0) if isinstance(told, Killed) else told


def _timed(job: Job) -> tuple[list[Outcome], float]:
    began = time.perf_counter()
    return run_job(job), time.perf_counter() - began


def _options(given: str | Mapping[str, Any]) -> str | dict[str, Any]:
    return given if isinstance(given, str) else read_data(given)


def _line(one: Outcome) -> str:
    result = f"failed: {one.failure}" if one.failure else f"{100 * one.mean:.2f} %"
    return f"{one.entry}, seed {one.seed}: {result} ({one.seconds:.0f} s)"


def _steps(candidate: Candidate, common: Mapping[str, Any]) -> int:
    """Steps of an entry on each support set: its epochs, if their number is limited."""
    epochs = {**(candidate.config.get("trainer") or {}), **common}.get("max_epochs")
    epochs = epochs_in(candidate.arguments, epochs)
    return epochs if isinstance(epochs, int) and epochs >= 0 else _EPOCHS


# ---- runs beside the entries


def _baselines(plan: Plan, candidates: Sequence[Candidate], runner: Runner) -> Results:
    """Baselines that need no training, by the network of the first entry that has a pretrained one, or any.

    Raises:
        UserError: the data cannot be served to any of the entries.
    """
    order = sorted(candidates, key=lambda one: not one.pretrained)
    failures: list[str] = []
    for one in order:
        results = runner.run([plan.job(one, seed, "baselines") for seed in plan.seeds])
        wrong = [outcome.failure for runs in results.values() for outcome in runs if outcome.failure]
        if not wrong:
            return results
        failures += wrong[:1]
    raise UserError(failures[0])


def _oracle(plan: Plan, candidates: Sequence[Candidate], runner: Runner) -> Results:
    base = next(one for one in candidates if one.name == SOURCE_ONLY)
    return runner.run([plan.job(base, seed, "oracle") for seed in plan.seeds])


def _without_support(plan: Plan, candidates: Sequence[Candidate], ranking: Ranking, runner: Runner) -> Results:
    """The best few-shot method with shuffled support labels."""
    tested = [name for name in ranking.order if ranking.outcomes[name][0].checkpoint]
    if plan.situation.kind != "new classes" or not tested:
        return {}
    best = next(one for one in candidates if one.name == tested[0])
    jobs = [plan.job(best, one.seed, "support-free", one.checkpoint) for one in ranking.outcomes[best.name]]
    return {f"support-free ({best.name})": runs for runs in runner.run(jobs).values()}


# ---- names and cards


def _slug(name: str) -> str:
    return re.sub(r"[^\w.]+", "_", name).strip("_")[:48]


def _card(plan: Plan, settings: Namespace, seconds: Mapping[str, float]) -> dict[str, Any]:
    return {
        "data": plan.data,
        "situation": str(plan.situation),
        "fingerprint": plan.situation.fingerprint,
        "budget": str(plan.budget),
        "methods": list(settings.methods),
        "seeds": list(plan.seeds),
        "version": metatransfer.__version__,
        "seconds": dict(seconds),
    }
