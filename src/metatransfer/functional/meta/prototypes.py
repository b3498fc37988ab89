"""Class prototypes and scores of queries."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from metatransfer.batches import Inputs
from metatransfer.functional.meta.inputs import concatenated

__all__ = [
    "Distance",
    "class_members",
    "class_prototypes",
    "cosine_scores",
    "nearest_neighbor",
    "prototype_scores",
    "squared_euclidean_scores",
]

Distance = Literal["cosine", "euclidean"]


def class_count(labels: Tensor) -> int:
    """One more than the largest label; not by ``int``, which ``torch.export`` cannot trace."""
    return labels.max().item() + 1  # type: ignore[return-value]


def class_members(labels: Tensor, num_ways: int) -> Tensor:
    """Whether each sample is in each class: ``(T, S, W)`` bool from labels ``(T, S)``."""
    # not by one_hot, which torch.export cannot trace with a number of classes that follows from the labels
    return labels.unsqueeze(-1) == torch.arange(num_ways, device=labels.device)


def class_prototypes(embeddings: Tensor, labels: Tensor, num_ways: int) -> Tensor:
    r"""Mean embedding of each class, :math:`c_k = \frac1{|S_k|}\sum_{i\in S_k} f(x_i)` (Snell et al. 2017, 1703.05175).

    Args:
        embeddings: ``(T, S, E)``.
        labels: ``(T, S)`` int64 in ``0 .. num_ways - 1``; classes may have different numbers of shots.
        num_ways: number of classes ``W``.

    Returns:
        ``(T, W, E)``; the prototype of a class without samples is 0.
    """
    members = class_members(labels, num_ways).to(embeddings.dtype)
    sums = members.transpose(1, 2) @ embeddings
    return sums / members.sum(1).clamp(min=1).unsqueeze(-1)


def squared_euclidean_scores(queries: Tensor, prototypes: Tensor) -> Tensor:
    r"""Negative squared Euclidean distances :math:`-\lVert q - c_k\rVert^2`, ``(T, Q, W)``.

    Computed as :math:`2q\cdot c - \lVert c\rVert^2 - \lVert q\rVert^2` with one matrix product, after centring on the
    mean prototype, which keeps the cancellation small when all embeddings are far from 0.

    Args:
        queries: ``(T, Q, E)``.
        prototypes: ``(T, W, E)``.
    """
    origin = prototypes.mean(1, keepdim=True)
    queries, prototypes = queries - origin, prototypes - origin
    product = queries @ prototypes.transpose(1, 2)
    query_norm = queries.square().sum(-1).unsqueeze(2)
    return 2 * product - prototypes.square().sum(-1).unsqueeze(1) - query_norm


def cosine_scores(queries: Tensor, prototypes: Tensor) -> Tensor:
    r"""Cosine similarities :math:`q\cdot c_k / (\lVert q\rVert\lVert c_k\rVert)`, ``(T, Q, W)``; 0 for vectors of 0.

    Args:
        queries: ``(T, Q, E)``.
        prototypes: ``(T, W, E)``.
    """
    return F.normalize(queries, dim=-1) @ F.normalize(prototypes, dim=-1).transpose(1, 2)


def prototype_scores(queries: Tensor, prototypes: Tensor, distance: Distance, scale: float | Tensor = 1.0) -> Tensor:
    r"""Logits ``(T, Q, W)`` :math:`-\lVert q-c_k\rVert^2` or :math:`s\cos(q,c_k)`, in float32 under autocast.

    Args:
        queries: ``(T, Q, E)``.
        prototypes: ``(T, W, E)``.
        distance: ``"euclidean"`` (squared) or ``"cosine"``.
        scale: factor :math:`s` of the cosine.
    """
    with torch.autocast(queries.device.type, enabled=False):  # squared distances overflow half precision
        wide = torch.promote_types(queries.dtype, torch.float32)
        queries, prototypes = queries.to(wide), prototypes.to(wide)
        if distance == "cosine":
            return (scale.to(wide) if isinstance(scale, Tensor) else scale) * cosine_scores(queries, prototypes)
        return squared_euclidean_scores(queries, prototypes)


def nearest_neighbor(support_x: Inputs, support_y: Tensor, query_x: Inputs) -> Tensor:
    """1-nearest-neighbour prediction on the raw inputs, an untrained baseline.

    Args:
        support_x: ``(T, S, *shape)``; texts are compared by the cosine of their token counts.
        support_y: ``(T, S)`` int64 or ``(T, S, D)`` float.
        query_x: ``(T, Q, *shape)``.

    Returns:
        One-hot scores ``(T, Q, W)`` for labels, with ``W`` one more than the largest label, or the neighbour's
        targets ``(T, Q, D)`` for floats.
    """
    if isinstance(support_x, Tensor) and isinstance(query_x, Tensor):
        nearest = squared_euclidean_scores(query_x.flatten(2).float(), support_x.flatten(2).float()).argmax(-1)
    else:
        counts, shots = _token_counts(concatenated(support_x, query_x, 1)), support_y.shape[1]
        nearest = cosine_scores(counts[:, shots:], counts[:, :shots]).argmax(-1)
    if support_y.is_floating_point():
        index = nearest.unsqueeze(-1).expand(-1, -1, support_y.shape[-1])
        return support_y.gather(1, index)
    labels = support_y.gather(1, nearest)
    return F.one_hot(labels, class_count(support_y)).to(torch.float32)


def _token_counts(texts: Inputs) -> Tensor:
    """Counts ``(T, N, V)`` of the ``V`` different tokens in each text ``(T, N, L)``."""
    ids, mask = texts
    place = ids.unique(return_inverse=True)[1]
    counts = torch.zeros(*ids.shape[:2], int(place.max()) + 1, device=ids.device)
    return counts.scatter_add_(2, place, mask.to(counts.dtype))
