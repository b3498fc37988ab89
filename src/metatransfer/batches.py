"""What travels between data and methods: NamedTuples of tensors, documented once, here.

All tensors of an :class:`Episode` carry a leading **task axis** ``T``: a meta-batch is one ``Episode``, a single task
is an ``Episode`` with ``T = 1``.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Episode(NamedTuple):
    """A meta-batch of ``T`` few-shot tasks.

    Attributes:
        support_x: ``(T, S, *shape)`` float, the labelled samples a task is learned from; ``S = way * shot`` where all
            classes have the same number of shots.
        support_y: ``(T, S)`` int64 labels in ``0 .. way - 1``, drawn anew in every episode (classification), or
            ``(T, S, D)`` float targets (regression).
        query_x: ``(T, Q, *shape)`` float, the samples that the method is asked about.
        query_y: ``(T, Q)`` or ``(T, Q, D)``, as ``support_y``. Only losses of training and metrics may look at it.
    """

    support_x: Tensor
    support_y: Tensor
    query_x: Tensor
    query_y: Tensor


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
