"""What travels between data and methods: NamedTuples of tensors, documented once, here.

All tensors of an :class:`Episode` carry a leading **task axis** ``T``: a meta-batch is one ``Episode``, a single task
is an ``Episode`` with ``T = 1``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

from torch import Tensor

__all__ = [
    "DomainBatch",
    "DomainSamples",
    "Episode",
    "Inputs",
    "LabelledBatch",
    "PredictionTask",
    "Predictions",
    "Tokens",
    "UnlabelledBatch",
]


class Tokens(NamedTuple):
    """Texts as token numbers, padded to the length of the longest text of a batch.

    Attributes:
        ids: ``(..., L)`` int64 token numbers.
        mask: ``(..., L)`` int64, 1 for a token and 0 for padding.
    """

    ids: Tensor
    mask: Tensor


Inputs: TypeAlias = Tensor | Tokens
"""Samples as a network takes them: ``(..., *shape)`` float, or texts."""


def map_inputs(function: Callable[[Tensor], Tensor], x: Inputs) -> Inputs:
    """Applies a function that works on leading axes to samples of either kind."""
    return function(x) if isinstance(x, Tensor) else Tokens(*map(function, x))


class Episode(NamedTuple):
    """A meta-batch of ``T`` few-shot tasks.

    Attributes:
        support_x: ``(T, S, *shape)`` float or :class:`Tokens`, the labelled samples a task is learned from; ``S = way *
            shot`` where all classes have the same number of shots.
        support_y: ``(T, S)`` int64 labels in ``0 .. way - 1``, drawn anew in every episode (classification), or
            ``(T, S, D)`` float targets (regression).
        query_x: ``(T, Q, *shape)``, the samples that the method is asked about.
        query_y: ``(T, Q)`` or ``(T, Q, D)``, as ``support_y``. Only training losses and metrics may look at it.
        classes: ``(T, way)`` int64, which class of the data each label stands for; ``None`` where tasks have none.
        unlabelled_x: ``(T, U, *shape)``, further samples without labels (Ren et al. 2018, 1803.00676), of the task's
            classes and of distractor classes in random order; ``None`` where the task has none.
    """

    support_x: Inputs
    support_y: Tensor
    query_x: Inputs
    query_y: Tensor
    classes: Tensor | None = None
    unlabelled_x: Inputs | None = None

    def map(self, function: Callable[[Tensor], Tensor]) -> Episode:
        """The episode with a function applied to each of its tensors.

        Args:
            function: of one tensor, e.g. ``lambda x: x[:1]`` for the first task.

        Returns:
            A new episode.
        """
        return Episode(*(None if part is None else map_inputs(function, part) for part in self))  # type: ignore[arg-type]


MetaBatch: TypeAlias = Episode | list[Episode]
"""What a loader serves: one episode where all tasks have as many samples, else a list of one for each task."""


def episodes_of(batch: MetaBatch) -> list[Episode]:
    """The episodes of a meta-batch."""
    return [batch] if isinstance(batch, Episode) else list(batch)


class LabelledBatch(NamedTuple):
    """Samples with the labels of all classes of a split, for methods that learn from samples rather than from tasks.

    Attributes:
        x: ``(N, *shape)`` float; texts as :class:`Tokens`.
        y: ``(N,)`` int64 labels in ``0 .. C - 1``, each class having the same label all the time; in training also
            ``(N, C)`` float, mixtures of labels (mixup, cutmix).
        number: ``(N,)`` int64 number of each sample in its split, for reports; where the data module says so.
    """

    x: Inputs
    y: Tensor
    number: Tensor | None = None


class DomainBatch(NamedTuple):
    """A training batch of domain adaptation: samples of the sources with labels, samples of the targets without.

    Both parts may differ in size. A number tells a sample apart from all others of its side: sources one after the
    other in the order of the data module, targets likewise.

    Attributes:
        source_x: ``(N, *shape)`` float.
        source_y: ``(N,)`` int64 labels in ``0 .. C - 1``.
        target_x: ``(M, *shape)`` float.
        source_number: ``(N,)`` int64 number among the training samples of all sources.
        target_number: ``(M,)`` int64 number among the training samples of all targets.
        source_domain: ``(N,)`` int64 which of the sources.
        target_domain: ``(M,)`` int64 which of the targets.
    """

    source_x: Tensor
    source_y: Tensor
    target_x: Tensor
    source_number: Tensor
    target_number: Tensor
    source_domain: Tensor
    target_domain: Tensor


class DomainSamples(NamedTuple):
    """Samples of the sources or of the targets, in their order, for evaluation and for methods that see all at once.

    Attributes:
        x: ``(N, *shape)`` float.
        y: ``(N,)`` int64 labels; -1 for a label that is not known, or withheld: those of targets outside of a test.
        number: ``(N,)`` int64 number among the samples of this side and split.
        domain: ``(N,)`` int64 which of the sources, or of the targets.
    """

    x: Tensor
    y: Tensor
    number: Tensor
    domain: Tensor


class UnlabelledBatch(NamedTuple):
    """Samples to be labelled, as ``lightning predict`` serves them to a classifier.

    Attributes:
        x: as in :class:`LabelledBatch`.
        files: the ``N`` names under which the answers are written.
    """

    x: Inputs
    files: tuple[str, ...]


class PredictionTask(NamedTuple):
    """One task without query labels, as ``lightning predict`` serves it.

    Attributes:
        support_x: ``(S, *shape)`` float.
        support_labels: the ``S`` labels in the user's own words.
        query_x: ``(Q, *shape)`` float.
        files: the ``Q`` names under which the answers are written.
    """

    support_x: Tensor
    support_labels: tuple[str, ...]
    query_x: Tensor
    files: tuple[str, ...]


class Predictions(NamedTuple):
    """Answers to a :class:`PredictionTask`.

    Attributes:
        files: ``Q`` names.
        classes: the ``C`` labels, in the order of the columns of ``probabilities``.
        probabilities: ``(Q, C)``, rows sum to 1.
    """

    files: tuple[str, ...]
    classes: tuple[str, ...]
    probabilities: Tensor
