"""Columns of tables without a common meaning, as each task describes them by its support set."""

from typing import NamedTuple

import torch
from torch import Tensor

from metatransfer.functional.meta.prototypes import class_members

__all__ = ["Columns", "columns_by_class", "fit_columns", "standardised"]
_FARTHEST = 5.0  # standard deviations; values beyond count as this far


class Columns(NamedTuple):
    """What the support sets of ``T`` tasks say about their columns.

    Attributes:
        mean: ``(T, 1, E)``.
        scale: ``(T, 1, E)`` 1 over the standard deviation; 0 for a constant column.
        order: ``(T, W, E)`` int64, the columns by the absolute value of their correlation with each class, descending.
        correlation: ``(T, W, E)`` correlations in this order.
    """

    mean: Tensor
    scale: Tensor
    order: Tensor
    correlation: Tensor


def fit_columns(support: Tensor, labels: Tensor, num_ways: int) -> Columns:
    r"""Statistics of the columns, and their correlations with membership in each class.

    .. math:: r_{kj} = \frac1S\sum_i z_{ij}\,\frac{[y_i = k] - p_k}{\sqrt{p_k (1 - p_k)}}

    Args:
        support: ``(T, S, E)``.
        labels: ``(T, S)`` int64.
        num_ways: number of classes ``W``.
    """
    wide = support.to(torch.promote_types(support.dtype, torch.float32))
    mean, deviation = wide.mean(1, keepdim=True), wide.std(1, correction=0, keepdim=True)
    # rounding leaves a constant column a small deviation
    varies = deviation > 1e-6 * wide.abs().amax(1, keepdim=True)
    scale = torch.where(varies, 1 / deviation.where(varies, torch.ones_like(deviation)), 0.0)
    members = class_members(labels, num_ways).to(wide.dtype)
    share = members.mean(1, keepdim=True)
    members = (members - share) / (share * (1 - share)).sqrt().clamp(min=1e-6)
    found = members.transpose(1, 2) @ ((wide - mean) * scale) / support.shape[1]
    order = found.abs().argsort(dim=-1, descending=True, stable=True)
    return Columns(mean, scale, order, found.gather(-1, order))


def standardised(x: Tensor, columns: Columns) -> Tensor:
    """Rows ``(T, N, E)`` by the mean and standard deviation of the support set, limited to 5 standard deviations."""
    return ((x.to(columns.mean.dtype) - columns.mean) * columns.scale).clamp(-_FARTHEST, _FARTHEST)


def columns_by_class(rows: Tensor, columns: Columns) -> Tensor:
    """Standardised rows from the view of each class.

    The columns are sorted by how much they say about the class, and turned so that their correlation with it is
    positive. A row therefore does not depend on the order, the units or the signs of the columns of its table.

    Args:
        rows: ``(T, N, E)`` from :func:`standardised`.
        columns: from :func:`fit_columns`.

    Returns:
        ``(T, W, N, 2 E)``: the sorted columns, and these times their correlation.
    """
    index = columns.order.unsqueeze(2).expand(-1, -1, rows.shape[1], -1)
    chosen = rows.unsqueeze(1).expand(-1, index.shape[1], -1, -1).gather(-1, index)
    correlation = columns.correlation.unsqueeze(2)
    return torch.cat([torch.where(correlation < 0, -chosen, chosen), chosen * correlation], -1)
