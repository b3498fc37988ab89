"""The order of compared entries, which of them are tied, and the sentence that says so."""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

from metatransfer.functional.intervals import Estimate, estimate, student
from metatransfer.functional.paired import Difference, holm, paired_difference

LEVEL = 0.05


@dataclass(frozen=True)
class Outcome:
    """The result of an entry for one seed.

    Attributes:
        entry: its name.
        seed: of weights and training.
        scores: of every test unit, in a fixed order: the accuracy of an episode, or 1 and 0 for a sample.
        units: hash of the test units with their labels.
        seconds: of training and test.
        steps: optimiser steps.
        curve: ``(seconds, score)`` of each validation.
        note: what to tell with the numbers.
        failure: a sentence, if there are no scores.
        checkpoint: the tested checkpoint.
        command: tests the checkpoint again.
        baseline: whether nothing was trained by the entry.
    """

    entry: str
    seed: int
    scores: Sequence[float] = ()
    units: str = ""
    seconds: float = 0.0
    steps: int = 0
    curve: Sequence[tuple[float, float]] = ()
    note: str = ""
    failure: str = ""
    checkpoint: str | None = None
    command: str = ""
    baseline: bool = False

    @property
    def mean(self) -> float:
        """The mean over the test units."""
        return math.fsum(self.scores) / len(self.scores)


class Pair(NamedTuple):
    """The paired difference of two entries.

    Attributes:
        mean: of the better one minus the other.
        half: half of the 95% interval, uncorrected.
        p: corrected for all pairs.
    """

    mean: float
    half: float
    p: float

    @property
    def tied(self) -> bool:
        """Whether the difference may be due to chance."""
        return not self.p < LEVEL


@dataclass
class Ranking:
    """Entries ordered by their mean score, and all their paired differences.

    Attributes:
        outcomes: by entry, in the order of the seeds.
        order: names of the entries with scores, the best first.
        pairs: by ``(better, worse)``.
        crossed: whether all seeds are tested on the same units.
        failures: the sentence of each entry without scores.
    """

    outcomes: Mapping[str, Sequence[Outcome]]
    order: list[str] = field(default_factory=list)
    pairs: dict[tuple[str, str], Pair] = field(default_factory=dict)
    crossed: bool = True
    failures: dict[str, str] = field(default_factory=dict)

    def mean(self, name: str) -> float:
        """The mean score of an entry over seeds and units."""
        return math.fsum(one.mean for one in self.outcomes[name]) / len(self.outcomes[name])

    def interval(self, name: str) -> Estimate:
        """The mean with the 95% interval over the seeds; over the units if there is one seed or no spread."""
        means = [one.mean for one in self.outcomes[name]]
        if len(set(means)) > 1:
            spread = torch.tensor(means, dtype=torch.float64).std()
            return Estimate(self.mean(name), float(student(len(means)) * spread / math.sqrt(len(means))))
        scores = self.outcomes[name][0].scores
        answers = len(scores) if set(scores) <= {0.0, 1.0} else 0
        return estimate(len(scores), math.fsum(scores), math.fsum(one * one for one in scores), answers)

    def tied_with_best(self, name: str) -> bool:
        """Whether an entry cannot be told from the first one."""
        return name == self.order[0] or self.pairs[self.order[0], name].tied

    def groups(self) -> list[list[str]]:
        """The longest runs of the order in which no two entries can be told apart, of at least two entries."""
        found: list[list[str]] = []
        for start, first in enumerate(self.order):
            run = [first]
            for name in self.order[start + 1 :]:
                if not all(self.pairs[other, name].tied for other in run):
                    break
                run.append(name)
            if len(run) > 1 and not (found and set(run) <= set(found[-1])):
                found.append(run)
        return found


def rank(outcomes: Mapping[str, Sequence[Outcome]]) -> Ranking:
    """Orders entries and compares all pairs; entries with a failure in any seed are left out of the order."""
    failures = {name: next((one.failure for one in runs if one.failure), "") for name, runs in outcomes.items()}
    scored = [name for name in outcomes if not failures[name]]
    found = Ranking(outcomes, failures={name: text for name, text in failures.items() if text})
    found.order = sorted(scored, key=lambda name: -found.mean(name))
    seen = [one.units for name in scored for one in outcomes[name]]
    found.crossed = len(set(seen)) == 1
    names = list(itertools.combinations(found.order, 2))
    differences = _differences([(outcomes[one], outcomes[other]) for one, other in names], crossed=found.crossed)
    corrected = holm(differences.p).tolist() if names else []
    told = zip(differences.mean.tolist(), differences.half.tolist(), corrected, strict=True) if names else ()
    found.pairs = {pair: Pair(*numbers) for pair, numbers in zip(names, told, strict=True)}
    return found


def check_units(outcomes: Mapping[str, Sequence[Outcome]]) -> dict[str, str]:
    """A sentence for each entry that was not tested on the units of the first one."""
    wrong: dict[str, str] = {}
    expected: dict[int, str] = {}
    for name, runs in outcomes.items():
        for one in runs:
            if not one.failure and expected.setdefault(one.seed, one.units) != one.units:
                wrong[name] = "it was tested on other samples than the first entry, so that it cannot be compared."
    return wrong


def _differences(pairs: Sequence[tuple[Sequence[Outcome], Sequence[Outcome]]], *, crossed: bool) -> Difference:
    """All paired differences; the spread over seeds is estimated from all of them, see :func:`paired_difference`."""
    found = []
    for one, other in pairs:
        rows = [
            torch.tensor(left.scores, dtype=torch.float64) - torch.tensor(right.scores, dtype=torch.float64)
            for left, right in zip(one, other, strict=True)
        ]
        # without common units, only the means of the seeds are compared, unless there is one seed
        found.append(torch.stack(rows if crossed or len(rows) == 1 else [row.mean(0, keepdim=True) for row in rows]))
    if not found:
        return Difference(*[torch.zeros(0, dtype=torch.float64)] * 3)
    entries = round((1 + math.sqrt(1 + 8 * len(pairs))) / 2)
    return paired_difference(torch.stack(found), crossed=crossed, most=(entries - 2) * (len(pairs[0][0]) - 1))


def sentence(ranking: Ranking) -> str:
    """What a comparison means, in one sentence."""
    trained = [name for name in ranking.order if not ranking.outcomes[name][0].baseline]
    if not trained:
        return "No method can be ranked: all of them failed."
    best = ranking.order[0]
    seeds = len(ranking.outcomes[best])
    over = f"over {seeds} seed{'s' * (seeds > 1)}"
    tied = [name for name in ranking.order[1:] if ranking.tied_with_best(name)]
    reached = f"{100 * ranking.mean(best):.2f} % {over}"
    if ranking.outcomes[best][0].baseline:
        return f"No method is better than the baseline '{best}' ({reached}); {_ties(tied)}."
    if tied:
        return f"'{best}' has the highest mean ({reached}), but {_ties(tied)}."
    if len(ranking.order) == 1:
        return f"'{best}' reaches {reached}; there is nothing to compare it with."
    second = ranking.order[1]
    pair = ranking.pairs[best, second]
    return (
        f"'{best}' is best: {100 * pair.mean:.2f} ± {100 * pair.half:.2f} points more than '{second}' {over} "
        f"(p = {pair.p:.2g} after Holm's correction)."
    )


def _ties(names: Sequence[str]) -> str:
    if not names:
        return "it is significantly better than all others"
    listed = ", ".join(f"'{name}'" for name in names)
    return f"the difference from {listed} is not significant (tie)"


def contents(ranking: Ranking) -> dict[str, Any]:
    """The ranking as plain values, for ``comparison.json``."""
    return {
        "conclusion": sentence(ranking),
        "paired": "over seeds and test units" if ranking.crossed else "over seeds, each with its own test units",
        "level": LEVEL,
        "correction": "Holm, over all pairs",
        "entries": {
            name: {
                "accuracy": _finite({"value": ranking.mean(name), "ci95": ranking.interval(name).ci95}),
                "tied_with_best": ranking.tied_with_best(name),
                "seeds": {str(one.seed): _told(one) for one in ranking.outcomes[name]},
            }
            for name in ranking.order
        },
        "pairs": [
            {"better": one, "worse": other, **_finite(pair._asdict()), "tied": pair.tied}
            for (one, other), pair in ranking.pairs.items()
        ],
        "failures": ranking.failures,
    }


def _finite(numbers: Mapping[str, float]) -> dict[str, float | None]:
    """Numbers for JSON, which has no infinity."""
    return {name: value if math.isfinite(value) else None for name, value in numbers.items()}


def _told(one: Outcome) -> dict[str, Any]:
    kept = {name: value for name, value in vars(one).items() if name not in ("entry", "seed", "scores", "failure")}
    return {"accuracy": one.mean, "units_tested": len(one.scores), **kept}
