"""Task shapes: how many classes and samples each episode has."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from enum import IntEnum
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from metatransfer.checks import check_choice, check_count
from metatransfer.errors import UserError
from metatransfer.functional.random import Bits, random_permutations, random_uniforms, random_words, stream_keys

Integers = NDArray[np.int64]
_Profile = Literal["linear", "step", "random"]


class EpisodeSize(NamedTuple):
    """The numbers of a task, which a :class:`TaskShape` interprets."""

    num_ways: int
    num_shots: int
    num_queries: int


class Counts(NamedTuple):
    """Number of samples that an episode takes of each of its classes, distractors last; 0 where it takes none.

    Attributes:
        support: ``(ways + distractors,)``.
        query: ``(ways + distractors,)``.
        unlabelled: ``(ways + distractors,)``.
    """

    support: Integers
    query: Integers
    unlabelled: Integers


class _Draw(IntEnum):
    WAYS = 0
    SUPPORT = 1
    WEIGHTS = 2
    ORDER = 3


class TaskShape(ABC):
    """Decides for each episode how many classes it has and how many samples of each.

    Subclasses draw both from ``key``, the episode's own stream: episodes are a pure function of (seed, split, index).
    """

    def __repr__(self) -> str:
        settings = ", ".join(f"{name}={value!r}" for name, value in sorted(vars(self).items()))
        return f"{type(self).__name__}({settings})"

    def classes(self, key: Bits, available: int, size: EpisodeSize) -> tuple[int, int]:
        """Number of classes of an episode.

        Args:
            key: ``(1,)``, the episode's stream.
            available: number of classes to draw from.
            size: the task's numbers.

        Returns:
            Ways, and additional classes with unlabelled samples only (distractors); by default ``num_ways`` and 0.
        """
        return size.num_ways, 0

    @abstractmethod
    def counts(self, key: Bits, ways: int, samples: Integers, size: EpisodeSize) -> Counts:
        """Number of samples of each class of an episode.

        Args:
            key: ``(1,)``, the episode's stream.
            ways: number of classes to classify; the remaining classes are distractors.
            samples: ``(ways + distractors,)``, how many samples each class has.
            size: the task's numbers.

        Returns:
            How many samples of each class the episode takes.
        """

    def least_classes(self, size: EpisodeSize) -> int:
        """Number of classes of the smallest episode; by default ``num_ways``."""
        return size.num_ways

    def least_samples(self, size: EpisodeSize) -> int:
        """Number of samples that every class must have; by default shots and queries."""
        return size.num_shots + size.num_queries

    def check(self, samples: Integers, names: Sequence[str], size: EpisodeSize, where: str, prefix: str = "") -> None:
        """Raises an error if these episodes cannot be drawn from a set of classes.

        Args:
            samples: number of samples of each class.
            names: the classes.
            size: the task's numbers.
            where: the data set and split, for the message.
            prefix: prefix of this split's arguments in the message (``"eval_task."``).

        Raises:
            UserError: a single class per episode, too few classes, or a class with too few samples.
        """
        fixed = type(self) is FixedShape
        numbers = f"{size.num_ways}-way {size.num_shots}-shot episodes with {size.num_queries} queries per class"
        task = numbers if fixed else f"episodes of {prefix}shape {self!r}"
        others = "" if fixed else ", or the numbers of the shape"
        least, needed = self.least_classes(size), self.least_samples(size)
        if size.num_ways < 2:
            raise UserError(
                f"{where} has {size.num_ways}-way episodes, but with a single class every answer is right: raise "
                f"{prefix}num_ways to 2 or more."
            )
        if len(samples) < least:
            raise UserError(
                f"{where} has {len(samples)} classes, but {task} need at least {least}: lower {prefix}num_ways to "
                f"{max(2, size.num_ways - least + len(samples))}{others}, or add classes."
            )
        smallest = int(samples.argmin())
        if samples[smallest] < needed:
            fewer = needed - int(samples[smallest])
            options = {"num_queries": size.num_queries - fewer, "num_shots": size.num_shots - fewer if fixed else 0}
            lower = next((f"{name} to {n}" for name, n in options.items() if n > 0), "num_shots and num_queries")
            raise UserError(
                f"{where}: class '{names[smallest]}' has {samples[smallest]} samples, but {task} need at least "
                f"{needed}: lower {prefix}{lower}{others}, or add samples."
            )


class FixedShape(TaskShape):
    """Every episode has ``num_ways`` classes with ``num_shots`` support and ``num_queries`` query samples each.

    This is the default; name it only for evaluations whose shape differs from that of the training.
    """

    def counts(self, key: Bits, ways: int, samples: Integers, size: EpisodeSize) -> Counts:
        """``num_shots`` and ``num_queries``."""
        return Counts(_all(ways, size.num_shots), _all(ways, size.num_queries), _all(ways, 0))


class MetaDatasetShape(TaskShape):
    r"""Variable ways and uneven shots, by the rule of Meta-Dataset (Triantafillou et al. 2020, 1903.03096, 3.2).

    With :math:`n_c` samples in class :math:`c` of the episode's classes :math:`\mathcal C`:

    .. math::
        |\mathcal C| &\sim U\{\text{min\_ways}, \dots, \min(\text{num\_ways}, \text{classes})\} \\
        q &= \min(\text{num\_queries}, \lfloor \tfrac12 \min_c n_c \rfloor) \\
        |S| &= \min\big(\text{max\_support}, \textstyle\sum_c \lceil \beta\min(\text{num\_shots}, n_c - q)\rceil\big),
            \quad \beta\sim U(0, 1] \\
        R_c &= \frac{e^{\alpha_c} n_c}{\sum_{c'} e^{\alpha_{c'}} n_{c'}}, \quad \alpha_c\sim U[\log\tfrac12, \log 2) \\
        k_c &= \min\big(\lfloor R_c (|S| - |\mathcal C|)\rfloor + 1,\ n_c - q\big)

    The task's numbers are upper limits: the paper's are ``num_ways=50``, ``num_shots=100``, ``num_queries=10``.

    Args:
        min_ways: minimum number of classes of an episode.
        max_support: maximum number of support samples of an episode.
    """

    def __init__(self, min_ways: int = 5, max_support: int = 500) -> None:
        check_count(2, min_ways=min_ways)  # a classifier needs two classes
        check_count(max_support=max_support)
        self.min_ways, self.max_support = min_ways, max_support

    def least_classes(self, size: EpisodeSize) -> int:
        """``min_ways``."""
        return self.min_ways

    def least_samples(self, size: EpisodeSize) -> int:
        """Two: one for the support set, one for the query set."""
        return 2

    def classes(self, key: Bits, available: int, size: EpisodeSize) -> tuple[int, int]:
        """Uniform between ``min_ways`` and the smaller of ``num_ways`` and ``available``."""
        most = min(size.num_ways, available)
        more = _integers(stream_keys(key.view(np.int64), _Draw.WAYS), most - self.min_ways + 1, 1)
        return self.min_ways + int(more[0]), 0

    def counts(self, key: Bits, ways: int, samples: Integers, size: EpisodeSize) -> Counts:
        """Follows the formula above."""
        query = min(size.num_queries, int(samples.min()) // 2)
        left = samples - query
        beta = 1.0 - float(random_uniforms(stream_keys(key.view(np.int64), _Draw.SUPPORT), 1)[0, 0])
        total = min(int(np.ceil(beta * np.minimum(size.num_shots, left)).sum()), self.max_support)
        u = random_uniforms(stream_keys(key.view(np.int64), _Draw.WEIGHTS), ways)[0].astype(np.float64)
        weights = np.exp(np.log(0.5) + u * np.log(4.0)) * samples
        # with more classes than max_support, each still has one sample
        spare = max(total - ways, 0)
        support = np.minimum(np.floor(weights / weights.sum() * spare).astype(np.int64) + 1, left)
        return Counts(support, _all(ways, query), _all(ways, 0))

    def check(self, samples: Integers, names: Sequence[str], size: EpisodeSize, where: str, prefix: str = "") -> None:
        """Also needs ``num_ways`` of at least ``min_ways``."""
        if size.num_ways < self.min_ways:
            raise UserError(
                f"{where}: {prefix}num_ways={size.num_ways} is the maximum number of classes under MetaDatasetShape, "
                f"but min_ways={self.min_ways} is above it: raise one or lower the other."
            )
        super().check(samples, names, size, where, prefix)


class ImbalancedShots(TaskShape):
    """Class-imbalanced support sets (Ochal et al. 2021, 2101.02523) with balanced queries.

    Which classes are small changes from episode to episode. ``num_shots`` is ignored.

    Args:
        min_shots: support samples of the smallest class.
        max_shots: support samples of the largest class.
        profile: ``"linear"``: evenly spaced from the smallest to the largest; ``"step"``: some classes have
            ``min_shots``, the others ``max_shots``; ``"random"``: uniform for each class.
        minority: fraction of small classes under ``"step"``.
    """

    def __init__(
        self, min_shots: int = 1, max_shots: int = 9, profile: _Profile = "linear", minority: float = 0.5
    ) -> None:
        check_count(min_shots=min_shots, max_shots=max_shots)
        check_choice("profile", profile, ("linear", "step", "random"))
        if min_shots > max_shots:
            raise UserError(f"min_shots must not be above max_shots, but they are {min_shots} and {max_shots}.")
        if not 0 < minority < 1:
            raise UserError(f"minority is a fraction of the classes and must lie between 0 and 1, but is {minority}.")
        self.min_shots, self.max_shots = min_shots, max_shots
        self.profile, self.minority = profile, minority

    def least_samples(self, size: EpisodeSize) -> int:
        """``max_shots`` and the queries: any class may be the largest."""
        return self.max_shots + size.num_queries

    def counts(self, key: Bits, ways: int, samples: Integers, size: EpisodeSize) -> Counts:
        """Follows the profile, with the classes in random order."""
        low, high = self.min_shots, self.max_shots
        if self.profile == "random":
            support = low + _integers(stream_keys(key.view(np.int64), _Draw.SUPPORT), high - low + 1, ways)
        else:
            if self.profile == "linear":
                ordered = np.linspace(low, high, ways).round().astype(np.int64)
            else:
                few = min(max(round(self.minority * ways), 1), ways - 1)
                ordered = np.where(np.arange(ways) < few, low, high).astype(np.int64)
            order = random_permutations(stream_keys(key.view(np.int64), _Draw.ORDER), ways)[0]
            support = ordered[order]
        return Counts(support, _all(ways, size.num_queries), _all(ways, 0))


class SemiSupervised(TaskShape):
    """Adds unlabelled samples to every episode (Ren et al. 2018, 1803.00676), as ``unlabelled_x``.

    Args:
        num_unlabelled: unlabelled samples of each class.
        num_distractors: additional classes with ``num_unlabelled`` unlabelled samples each and no labelled ones.
    """

    def __init__(self, num_unlabelled: int = 5, num_distractors: int = 0) -> None:
        check_count(num_unlabelled=num_unlabelled)
        check_count(0, num_distractors=num_distractors)
        self.num_unlabelled, self.num_distractors = num_unlabelled, num_distractors

    def least_classes(self, size: EpisodeSize) -> int:
        """``num_ways`` and the distractors."""
        return size.num_ways + self.num_distractors

    def least_samples(self, size: EpisodeSize) -> int:
        """Shots, queries and unlabelled samples."""
        return super().least_samples(size) + self.num_unlabelled

    def classes(self, key: Bits, available: int, size: EpisodeSize) -> tuple[int, int]:
        """``num_ways`` and the distractors."""
        return size.num_ways, self.num_distractors

    def counts(self, key: Bits, ways: int, samples: Integers, size: EpisodeSize) -> Counts:
        """The same for all classes, with the unlabelled samples."""
        labelled = np.arange(len(samples)) < ways
        return Counts(
            labelled * size.num_shots, labelled * size.num_queries, np.full(len(samples), self.num_unlabelled, np.int64)
        )


def _all(ways: int, count: int) -> Integers:
    return np.full(ways, count, dtype=np.int64)


def _integers(key: Bits, bound: int, count: int) -> Integers:
    words: Bits = random_words(key, count)[0] >> np.uint64(32)
    return (words * np.uint64(bound) >> np.uint64(32)).astype(np.int64)
