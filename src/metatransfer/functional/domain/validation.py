"""Validation scores of an adapted classifier that need no target labels.

Entropies use only the outputs on the target, so they also reward confident wrong answers. Weighted risks use labelled
source samples and give more weight to those that resemble the target. All sums are in float64. None is meant as a
training loss.
"""

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from metatransfer.errors import UserError

_ROWS = 1024  # of a similarity matrix at a time: 80 MB for 10,000 samples
_LARGEST = 30.0  # limit of the log-odds of a density ratio
_STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0)  # the first of equals is used


def mean_entropy(logits: Tensor) -> Tensor:
    r"""Mean entropy of the predictions, :math:`\frac1N\sum_i H(p_i)`, of logits ``(N, C)``; lower is more confident.

    A float64 scalar from 0 to :math:`\log C`.
    """
    _check_rows("mean_entropy", logits, 1)
    return _entropy(logits.to(torch.float64).softmax(-1)).mean()


def information_maximization(logits: Tensor) -> Tensor:
    r"""Mutual information of samples and predictions, :math:`H(\frac1N\sum_i p_i) - \frac1N\sum_i H(p_i)`.

    Higher is better: confident predictions that use all classes (Krause et al. 2010, NeurIPS; Shi and Sha 2012,
    1206.6438). It assumes classes of about equal size on the target. Of logits ``(N, C)``; a float64 scalar from 0 to
    :math:`\log C`.
    """
    _check_rows("information_maximization", logits, 1)
    p = logits.to(torch.float64).softmax(-1)
    return _entropy(p.mean(0)) - _entropy(p).mean()


def soft_neighborhood_density(x: Tensor, temperature: float = 0.05) -> Tensor:
    r"""Soft neighborhood density (SND, Saito et al. 2021, 2108.10860); higher is better.

    .. math:: \frac1N\sum_i H(P_i), \qquad
              P_{ij} = \frac{e^{\hat x_i\cdot\hat x_j/\tau}}{\sum_{k\ne i} e^{\hat x_i\cdot\hat x_k/\tau}},\quad j\ne i

    with rows :math:`\hat x` of length 1. A collapse of all classes into one also has a high density.

    Args:
        x: ``(N, D)`` softmax outputs, as in the paper, or features.
        temperature: :math:`\tau`.

    Returns:
        A float64 scalar from 0 to :math:`\log(N-1)`. Memory is linear in ``N``.

    Raises:
        UserError: the input is not a matrix with at least 2 rows, or the temperature is not positive.
    """
    _check_rows("soft_neighborhood_density", x, 2)
    if not temperature > 0:
        raise UserError(f"soft_neighborhood_density: temperature must be positive, but is {temperature}.")
    unit = F.normalize(x.to(torch.float64), dim=-1)
    total = unit.new_zeros(())
    for start in range(0, len(unit), _ROWS):
        similarity = unit[start : start + _ROWS] @ unit.T / temperature
        itself = torch.arange(len(similarity), device=unit.device)
        similarity[itself, itself + start] = -torch.inf
        total = total + _entropy(similarity.softmax(-1)).sum()
    return total / len(unit)


def _entropy(p: Tensor) -> Tensor:
    entropy: Tensor = torch.special.entr(p).sum(-1)
    return entropy


def _check_rows(name: str, x: Tensor, least: int) -> None:
    if x.ndim != 2 or len(x) < least:
        raise UserError(
            f"{name} needs a matrix with at least {least} rows (samples), but got the shape {tuple(x.shape)}: pass all "
            "samples of the split at once."
        )


class DomainClassifier(NamedTuple):
    """A logistic regression that separates the target from the source, on standardised features; float64 ``(E,)``."""

    mean: Tensor
    scale: Tensor
    weight: Tensor
    bias: float

    def log_odds(self, features: Tensor) -> Tensor:
        """Log-odds ``(N,)`` of the target, float64, for features ``(N, E)``; positive for samples that resemble it."""
        standard = (features.detach().to("cpu", torch.float64) - self.mean) / self.scale
        odds: Tensor = standard @ self.weight + self.bias
        return odds


def fit_domain_classifier(source: Tensor, target: Tensor, regularization: float = 1e-2) -> DomainClassifier:
    r"""Fits a logistic regression that separates target and source, both with a total weight of 1/2.

    .. math:: \min_{w,b}\ \frac1{2n_s}\sum_{x\in S}\log(1+e^{w\cdot x+b})
              + \frac1{2n_t}\sum_{x\in T}\log(1+e^{-w\cdot x-b}) + \frac\lambda2\lVert w\rVert^2

    on standardised features, by L-BFGS from 0, so that the result is deterministic.

    Args:
        source: ``(n_s, E)``.
        target: ``(n_t, E)``.
        regularization: :math:`\lambda`, above 0.

    Returns:
        The classifier, on the CPU.

    Raises:
        UserError: a domain is empty, the numbers of features differ, values are not finite, or ``regularization`` is
            not positive.
    """
    from scipy.optimize import minimize  # slow to import

    _check_domains(source, target, regularization)
    x = torch.cat([part.detach().to("cpu", torch.float64) for part in (source, target)])
    mean, scale = x.mean(0), x.std(0, correction=0)
    scale = torch.where(scale > 1e-12 * (1 + mean.abs()), scale, 1.0)  # a constant feature stays constant
    rows = ((x - mean) / scale).numpy()
    sign = np.repeat([-1.0, 1.0], [len(source), len(target)])
    share = np.repeat([0.5 / len(source), 0.5 / len(target)], [len(source), len(target)])

    def objective(point: np.ndarray) -> tuple[float, np.ndarray]:
        weight, bias = point[:-1], point[-1]
        margin = sign * (rows @ weight + bias)
        loss = share @ np.logaddexp(0, -margin) + 0.5 * regularization * weight @ weight
        slope = -share * sign * np.exp(-np.logaddexp(0, margin))
        return float(loss), np.append(rows.T @ slope + regularization * weight, slope.sum())

    limits = {"maxiter": 1000, "gtol": 1e-8, "ftol": 1e-14, "maxfun": 2000}
    found = minimize(objective, np.zeros(x.shape[1] + 1), jac=True, method="L-BFGS-B", options=limits).x
    return DomainClassifier(mean, scale, torch.from_numpy(found[:-1].copy()), float(found[-1]))


def _check_domains(source: Tensor, target: Tensor, regularization: float) -> None:
    if source.ndim != 2 or target.ndim != 2 or source.shape[1:] != target.shape[1:] or not len(source) * len(target):
        raise UserError(
            "a domain classifier needs a non-empty matrix of features for each domain, with the same columns, but got "
            f"{tuple(source.shape)} and {tuple(target.shape)}: flatten the features."
        )
    if not regularization > 0:
        raise UserError(
            f"regularization must be positive, but is {regularization}: without it, separable domains have no solution."
        )
    for name, values in (("source", source), ("target", target)):
        if not values.isfinite().all():
            raise UserError(
                f"the features of the {name} must be finite, but some are not: the network has diverged; lower "
                "the learning rate."
            )


def choose_regularization(source: Tensor, target: Tensor) -> float:
    """Chooses the regularization of :func:`fit_domain_classifier` by two-fold cross-validation.

    With many features, a classifier with little regularization is overconfident, and its density ratios explode. Of
    features ``(n_s, E)`` and ``(n_t, E)``. Returns the value among 0.001, 0.01, 0.1 and 1 with the smallest logistic
    loss; the folds are always the same.

    Raises:
        UserError: a domain has fewer than 2 samples.
    """
    if min(len(source), len(target)) < 2:
        raise UserError(
            f"choosing the regularization needs at least 2 samples of each domain, but got {len(source)} source and "
            f"{len(target)} target samples: use more samples, or set regularization."
        )
    halves = [(x[order[::2]], x[order[1::2]]) for x in (source, target) for order in [fixed_order(len(x))]]

    def loss(regularization: float) -> float:
        total = 0.0
        for half in (0, 1):
            classifier = fit_domain_classifier(halves[0][half], halves[1][half], regularization)
            mine, other = (classifier.log_odds(parts[1 - half]) for parts in halves)
            total += float(F.softplus(mine).mean() + F.softplus(-other).mean())
        return total

    return min(_STRENGTHS, key=loss)


def fixed_order(count: int) -> Tensor:
    """A permutation of ``count`` samples that is the same in every call."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(0))


def density_ratio(
    source_features: Tensor, target_features: Tensor, val_features: Tensor, regularization: float | None = None
) -> Tensor:
    r"""Density ratio of target and source, estimated with a domain classifier (Bickel et al. 2009, JMLR).

    .. math:: w(x) = \frac{n_s}{n_t}\,\frac{p(\text{target}\mid x)}{p(\text{source}\mid x)}

    The domains have equal weight in :func:`fit_domain_classifier`, so its odds are the ratio. Over source samples the
    expected mean is 1; a very different mean shows that the domains hardly overlap, so that no weighting is reliable.
    The ratio is limited to :math:`e^{\pm30}`.

    Args:
        source_features: ``(n_s, E)`` training features, preferably not those in ``val_features``.
        target_features: ``(n_t, E)`` training features.
        val_features: ``(N, E)`` source samples to weight.
        regularization: of :func:`fit_domain_classifier`; defaults to :func:`choose_regularization`.

    Returns:
        ``(N,)`` positive float64 weights on the CPU.
    """
    strength = choose_regularization(source_features, target_features) if regularization is None else regularization
    classifier = fit_domain_classifier(source_features, target_features, strength)
    return classifier.log_odds(val_features).clamp(-_LARGEST, _LARGEST).exp()


def importance_weighted_risk(losses: Tensor, weights: Tensor) -> Tensor:
    r"""Weighted risk :math:`\frac1N\sum_i w_i\ell_i` (IWCV, Sugiyama et al. 2007, JMLR), a float64 scalar.

    ``losses`` ``(N,)``, or 0/1 errors, are those of held-out source samples, ``weights`` ``(N,)`` from
    :func:`density_ratio`.
    """
    return _weighted(losses, weights).mean()


def deep_embedded_validation(losses: Tensor, weights: Tensor) -> Tensor:
    r"""Weighted risk with a control variate that reduces its variance (DEV, You et al. 2019, ICML).

    .. math:: \overline{w\ell} + \eta\,\bar w - \eta, \qquad
              \eta = -\frac{\mathrm{cov}(w\ell, w)}{\mathrm{var}(w)}

    It may be negative. With equal weights it is :math:`\overline{w\ell}`. The arguments are those of
    :func:`importance_weighted_risk`.
    """
    weighted, w = _weighted(losses, weights), weights.to(torch.float64)
    apart = w - w.mean()
    spread = apart.square().mean()
    if spread <= 1e-24 * w.square().mean():
        return weighted.mean()
    eta = -((weighted - weighted.mean()) * apart).mean() / spread
    return weighted.mean() + eta * w.mean() - eta


def _weighted(losses: Tensor, weights: Tensor) -> Tensor:
    if losses.ndim != 1 or losses.shape != weights.shape or not len(losses):
        raise UserError(
            f"a weighted risk needs one loss and one weight per sample, two vectors of the same length, but got the "
            f"shapes {tuple(losses.shape)} and {tuple(weights.shape)}."
        )
    return losses.to(weights.device, torch.float64) * weights.to(torch.float64)
