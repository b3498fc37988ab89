"""The batches that data modules pass to methods: NamedTuples of tensors.

All tensors of an :class:`Episode` carry a leading **task axis** ``T``: a meta-batch is one ``Episode``, a single task
is an ``Episode`` with ``T = 1``.
"""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

from torch import Tensor

__all__ = [
    "DomainBatch", "DomainSamples", "Episode", "Inputs", "LabelledBatch", "PredictionTask", "Predictions",
    "SequenceBatch", "Tokens", "UnlabelledBatch",
]  # fmt: skip


class Tokens(NamedTuple):
    """Texts as token numbers, padded to the length of the longest text of a batch.

    Attributes:
        ids: ``(..., L)`` int64 token numbers.
        mask: ``(..., L)`` int64, 1 for a token and 0 for padding.
    """

    ids: Tensor
    mask: Tensor


Inputs: TypeAlias = Tensor | Tokens
"""Input samples of a network: ``(..., *shape)`` float, or texts."""


def map_inputs(function: Callable[[Tensor], Tensor], x: Inputs) -> Inputs:
    """Applies a function of leading axes to samples or texts."""
    return function(x) if isinstance(x, Tensor) else Tokens(*map(function, x))


class Episode(NamedTuple):
    """A meta-batch of ``T`` few-shot tasks.

    Attributes:
        support_x: ``(T, S, *shape)`` float or :class:`Tokens`, the labelled samples; ``S = way * shot`` if all classes
            have the same number of shots.
        support_y: ``(T, S)`` int64 labels in ``0 .. way - 1``, assigned at random in every episode (classification), or
            ``(T, S, D)`` float targets (regression).
        query_x: ``(T, Q, *shape)``, the samples to predict.
        query_y: ``(T, Q)`` or ``(T, Q, D)``, as ``support_y``. Only training losses and metrics may use it.
        classes: ``(T, way)`` int64, the class of the data for each label; ``None`` if tasks have no classes.
        unlabelled_x: ``(T, U, *shape)``, additional unlabelled samples (Ren et al. 2018, 1803.00676) of the task's
            classes and of distractor classes in random order; ``None`` if there are none.
    """

    support_x: Inputs
    support_y: Tensor
    query_x: Inputs
    query_y: Tensor
    classes: Tensor | None = None
    unlabelled_x: Inputs | None = None

    def map(self, function: Callable[[Tensor], Tensor]) -> "Episode":
        """A new episode with a function applied to each tensor, e.g. ``lambda x: x[:1]`` for the first task."""
        return Episode(*(None if part is None else map_inputs(function, part) for part in self))  # type: ignore[arg-type]


MetaBatch: TypeAlias = Episode | list[Episode]
"""One episode, or a list with an episode for each task if their numbers of samples differ."""


def episodes_of(batch: MetaBatch) -> list[Episode]:
    """The episodes of a meta-batch."""
    return [batch] if isinstance(batch, Episode) else list(batch)


class LabelledBatch(NamedTuple):
    """Labelled samples, for methods that learn from samples rather than from tasks.

    Attributes:
        x: ``(N, *shape)`` float, or :class:`Tokens`.
        y: ``(N,)`` int64 labels in ``0 .. C - 1``, fixed for each class; in training also ``(N, C)`` float mixtures of
            labels (mixup, cutmix).
        number: ``(N,)`` int64 index of each sample in its split, for reports; optional.
    """

    x: Inputs
    y: Tensor
    number: Tensor | None = None


class SequenceBatch(NamedTuple):
    """Sequences of one length, each of which is to be answered by a sequence of bits.

    Attributes:
        x: ``(N, S, C)`` float.
        bits: ``(N, L, D)`` float, 0 or 1, what the last ``L`` positions should answer.
    """

    x: Tensor
    bits: Tensor


class DomainBatch(NamedTuple):
    """A training batch of domain adaptation: labelled source samples and unlabelled target samples.

    Attributes:
        source_x: ``(N, *shape)`` float.
        source_y: ``(N,)`` int64 labels in ``0 .. C - 1``.
        target_x: ``(M, *shape)`` float.
        source_number: ``(N,)`` int64 index among the training samples of all sources, in the order of the data module.
        target_number: ``(M,)`` int64 index among the training samples of all targets, in the order of the data module.
        source_domain: ``(N,)`` int64 index of the source.
        target_domain: ``(M,)`` int64 index of the target.
    """

    source_x: Tensor
    source_y: Tensor
    target_x: Tensor
    source_number: Tensor
    target_number: Tensor
    source_domain: Tensor
    target_domain: Tensor


class DomainSamples(NamedTuple):
    """Source or target samples in order, for evaluation and for methods that use all samples at once.

    Attributes:
        x: ``(N, *shape)`` float.
        y: ``(N,)`` int64 labels; -1 for unknown labels, and for labels of targets before the test.
        number: ``(N,)`` int64 index among the source or target samples of the split.
        domain: ``(N,)`` int64 index of the source or target.
    """

    x: Tensor
    y: Tensor
    number: Tensor
    domain: Tensor


class UnlabelledBatch(NamedTuple):
    """Samples without labels, for the predictions of a classifier.

    Attributes:
        x: as in :class:`LabelledBatch`.
        files: the names of the ``N`` samples in the predictions.
    """

    x: Inputs
    files: tuple[str, ...]


class PredictionTask(NamedTuple):
    """A task without query labels, for the predictions of a few-shot method.

    Attributes:
        support_x: ``(S, *shape)`` float.
        support_labels: the ``S`` labels as words.
        query_x: ``(Q, *shape)`` float.
        files: the names of the ``Q`` query samples in the predictions.
    """

    support_x: Tensor
    support_labels: tuple[str, ...]
    query_x: Tensor
    files: tuple[str, ...]


class Predictions(NamedTuple):
    """Predictions for a :class:`PredictionTask` or an :class:`UnlabelledBatch`.

    Attributes:
        files: the names of the ``Q`` samples.
        classes: the ``C`` labels, in the order of the columns of ``probabilities``.
        probabilities: ``(Q, C)``; rows sum to 1.
    """

    files: tuple[str, ...]
    classes: tuple[str, ...]
    probabilities: Tensor

    @property
    def labels(self) -> list[str]:
        """The most probable class of each sample."""
        return [self.classes[place] for place in self.probabilities.argmax(-1).tolist()]
