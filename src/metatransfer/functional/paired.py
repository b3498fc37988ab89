"""Paired differences over seeds and test units, and the correction for many comparisons."""

from typing import NamedTuple

import torch
from torch import Tensor


class Difference(NamedTuple):
    """Mean differences with their 95% intervals.

    Attributes:
        mean: ``(...)``.
        half: ``(...)`` half-widths; infinite if there is a single value.
        p: ``(...)`` two-sided p-values of no difference.
    """

    mean: Tensor
    half: Tensor
    p: Tensor


def paired_difference(values: Tensor, *, crossed: bool, most: float = 0.0) -> Difference:
    r"""The means of differences over seeds and test units, as samples of all seeds and all units.

    With the same units for all seeds (``crossed``), a difference is modelled as
    :math:`d_{su} = \delta + a_s + b_u + e_{su}` with random effects of the seed and of the unit. The variance of the
    mean is estimated from the mean squares of the two-way table,

    .. math:: \widehat{\operatorname{Var}}\,\bar d = \max(M_s + M_u - M_e,\ M_s,\ M_u) / SU,

    and the quantile is Student's with the degrees of freedom of Satterthwaite (1946, "An approximate distribution of
    estimates of variance components"). With many seeds, a bootstrap over both (Owen 2007, "The pigeonhole bootstrap")
    gives the same interval; with few it is too short, because it knows no degrees of freedom. If each seed has its own
    units, only the means of the seeds are compared; with one seed, only the units.

    Three seeds alone say little of the spread over seeds. Comparisons of the same experiment inform each other, see
    :func:`moderated`.

    Args:
        values: ``(..., K, S, U)`` differences of scores in ``K`` comparisons, float64.
        crossed: whether unit ``u`` is the same for all seeds.
        most: degrees of freedom that the spread over seeds may borrow from the other comparisons; 0 for unrelated ones.
    """
    seeds, units = values.shape[-2:]
    mean, rows, columns = values.mean((-2, -1)), values.mean(-1), values.mean(-2)
    if seeds == 1:
        count = values.shape[-1]
        variance = values[..., 0, :].var(-1) / count if count > 1 else torch.full_like(mean, torch.inf)
        return _judged(mean, variance, torch.full_like(mean, max(1, count - 1)))
    centre = mean[..., None]
    spread = (rows - centre).square().sum(-1) / (seeds - 1)
    spread, known = moderated(spread, seeds - 1, most) if most else (spread, torch.full_like(mean, seeds - 1))
    if units == 1 or not crossed:
        return _judged(mean, spread / seeds, known)
    of_seeds = units * spread
    of_units = seeds * (columns - centre).square().sum(-1) / (units - 1)
    rest = values - rows[..., None] - columns[..., None, :] + centre[..., None]
    free = (seeds - 1) * (units - 1)
    of_rest = rest.square().sum((-2, -1)) / free
    total = torch.maximum(of_seeds + of_units - of_rest, torch.maximum(of_seeds, of_units))
    parts = of_seeds.square() / known + of_units.square() / (units - 1) + of_rest.square() / free
    freedom = torch.where(parts > 0, total.square() / parts, torch.ones_like(parts)).clamp(min=1.0)
    return _judged(mean, total / (seeds * units), freedom)


def moderated(variances: Tensor, freedom: float, most: float) -> tuple[Tensor, Tensor]:
    r"""Variances of related quantities, each shrunk towards their common value, and their degrees of freedom.

    The empirical Bayes estimate of Smyth (2004, "Linear models and empirical Bayes methods for assessing differential
    expression"): with :math:`d` degrees of freedom each, :math:`\tilde s^2 = (d_0 s_0^2 + d s^2)/(d_0 + d)` has
    :math:`d_0 + d`. The more the variances differ, the smaller is :math:`d_0`, found from the moments of
    :math:`\log s^2`. Variances of 0, of answers that do not depend on the seed, are left out and stay.

    Args:
        variances: ``(..., K)``.
        freedom: the degrees of freedom :math:`d` of each.
        most: upper limit of :math:`d_0`; related variances are not independent.
    """
    used = variances > 0
    count = used.sum(-1, keepdim=True)
    half = torch.tensor(freedom / 2, dtype=variances.dtype)
    logs = torch.where(used, variances, 1.0).log() - torch.special.digamma(half) + half.log()
    logs = torch.where(used, logs, 0.0)
    centre = logs.sum(-1, keepdim=True) / count.clamp(min=1)
    excess = torch.where(used, logs - centre, 0.0).square().sum(-1, keepdim=True) / (count - 1).clamp(min=1)
    excess = excess - torch.special.polygamma(1, half)
    prior = torch.full_like(excess, most / 2)
    # trigamma falls: the largest half for which it is at least the excess, by bisection
    low, high = torch.full_like(prior, 1e-3), prior
    for _ in range(40):
        middle = (low + high) / 2
        above = torch.special.polygamma(1, middle) > excess
        low, high = torch.where(above, middle, low), torch.where(above, high, middle)
    prior = torch.where(count > 1, high, 0.0)
    common = (centre + torch.special.digamma(high) - high.log()).exp()
    shrunk = (2 * prior * common + freedom * variances) / (2 * prior + freedom)
    return torch.where(used, shrunk, variances), torch.where(used, 2 * prior + freedom, freedom)


def _judged(mean: Tensor, variance: Tensor, freedom: Tensor) -> Difference:
    from scipy.special import stdtr, stdtrit  # slow to import

    error = variance.sqrt()
    quantile = torch.as_tensor(stdtrit(freedom.numpy(), 0.975), dtype=mean.dtype)
    # equal answers differ by 0 +- 0, which is no evidence of a difference
    size = torch.where(mean == 0, 0.0, mean.abs() / error)
    p = torch.as_tensor(2 * stdtr(freedom.numpy(), -size.numpy()), dtype=mean.dtype)
    return Difference(mean, quantile * error, p)


def holm(p: Tensor) -> Tensor:
    r"""The p-values ``(..., K)`` of ``K`` comparisons, corrected by Holm (1979).

    .. math:: \tilde p_{(k)} = \max_{j\le k}\ \min\bigl(1, (K - j + 1)\,p_{(j)}\bigr)

    All comparisons with a corrected value of at most :math:`\alpha` together are wrong with a probability of at most
    :math:`\alpha`.
    """
    ordered, places = p.sort(-1)
    count = p.shape[-1]
    factors = torch.arange(count, 0, -1, dtype=p.dtype)
    corrected = (factors * ordered).clamp(max=1.0).cummax(-1).values
    return torch.empty_like(p).scatter(-1, places, corrected)
