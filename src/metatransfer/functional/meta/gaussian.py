"""Gaussian classifiers of embeddings."""

import math

import torch
from torch import Tensor

from metatransfer.functional.meta.prototypes import class_members, class_prototypes, squared_euclidean_scores

__all__ = ["class_variances", "diagonal_log_densities", "full_log_densities"]


def _wide(*tensors: Tensor) -> tuple[Tensor, ...]:
    """In float32 or better, since squared distances overflow half precision."""
    wide = torch.promote_types(tensors[0].dtype, torch.float32)
    return tuple(tensor.to(wide) for tensor in tensors)


def diagonal_log_densities(queries: Tensor, means: Tensor, variances: Tensor) -> Tensor:
    r"""Logarithms of the densities of normal distributions with diagonal covariances.

    .. math:: \log N(q; \mu_k, \mathrm{diag}\,\sigma^2_k)
              = -\tfrac12 \sum_e \bigl[(q_e-\mu_{ke})^2/\sigma^2_{ke} + \log 2\pi\sigma^2_{ke}\bigr]

    Args:
        queries: ``(T, Q, E)``.
        means: ``(T, W, E)``.
        variances: positive, ``(T, W, E)`` or a shape that broadcasts to it.

    Returns:
        ``(T, Q, W)``, in float32 or better.
    """
    with torch.autocast(queries.device.type, enabled=False):
        queries, means, variances = _wide(queries, means, variances)
        precisions = variances.reciprocal().expand_as(means)
        # squares of differences, as sums of products; about the mean of the classes, so that they lose fewer digits
        center = means.mean(1, keepdim=True)
        queries, means = queries - center, means - center
        squares = queries.square() @ precisions.mT - 2 * queries @ (means * precisions).mT
        constant = (means.square() * precisions - precisions.log() + math.log(2 * math.pi)).sum(-1)
        return -0.5 * (squares + constant.unsqueeze(1))


def full_log_densities(queries: Tensor, means: Tensor, factor: Tensor) -> Tensor:
    r"""Logarithms of the densities of normal distributions with one covariance.

    .. math:: \log N(q; \mu_k, (LL^\top)^{-1})
              = -\tfrac12 \lVert L^\top(q-\mu_k)\rVert^2 + \sum_e \log L_{ee} - \tfrac E2\log 2\pi

    Args:
        queries: ``(T, Q, E)``.
        means: ``(T, W, E)``.
        factor: Cholesky factor :math:`L` of the precision, lower triangular ``(E, E)`` with a positive diagonal.

    Returns:
        ``(T, Q, W)``, in float32 or better.
    """
    with torch.autocast(queries.device.type, enabled=False):
        queries, means, factor = _wide(queries, means, factor)
        distances = squared_euclidean_scores(queries @ factor, means @ factor)
        return 0.5 * distances + factor.diagonal().log().sum() - 0.5 * factor.shape[-1] * math.log(2 * math.pi)


def class_variances(support: Tensor, labels: Tensor, num_ways: int, prior: Tensor, weight: Tensor) -> Tensor:
    r"""Variances of each class, shrunk towards a prior: the mean of ``weight`` samples of it and those of the class.

    .. math:: \sigma^2_{ke} = \frac{\kappa\,\sigma^2_{0e} + \sum_{i\in S_k} (x_{ie} - \mu_{ke})^2}{\kappa + |S_k|}

    Args:
        support: ``(T, S, E)``.
        labels: ``(T, S)`` int64 in ``0 .. num_ways - 1``.
        num_ways: number of classes ``W``.
        prior: :math:`\sigma^2_0`, positive, ``(E,)``.
        weight: :math:`\kappa`, positive, a scalar.

    Returns:
        ``(T, W, E)``, in float32 or better.
    """
    with torch.autocast(support.device.type, enabled=False):
        support, prior, weight = _wide(support, prior, weight)
        means = class_prototypes(support, labels, num_ways)
        own = means.gather(1, labels.unsqueeze(-1).expand_as(support))
        spread = class_prototypes((support - own).square(), labels, num_ways)
        count = class_members(labels, num_ways).sum(1).unsqueeze(-1)
        return (weight * prior + count * spread) / (weight + count)
