"""What can be said of an adapted classifier without a label of the target: numbers to choose and to doubt by.

Entropies look at the target's outputs alone and reward confident answers, right or wrong; weighted risks look at the
source's labels, and count for more the source samples that resemble the target. All sums are in double precision.
None is meant as a training loss.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from metatransfer.errors import UserError

_ROWS = 1024  # of a similarity matrix at a time: 80 MB for 10,000 samples
_LARGEST = 30.0  # log-odds beyond which a ratio of densities says nothing more
_STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0)  # where equal, the first


def mean_entropy(logits: Tensor) -> Tensor:
    r"""Mean entropy of the predictions, :math:`\frac1N\sum_i H(p_i)`; less is more confident.

    Args:
        logits: ``(N, C)``.

    Returns:
        A float64 scalar from 0 to :math:`\log C`.

    Raises:
        UserError: no samples, or not a matrix.
    """
    _check_rows("mean_entropy", logits, 1)
    return _entropy(logits.to(torch.float64).softmax(-1)).mean()


def information_maximization(logits: Tensor) -> Tensor:
    r"""Mutual information of samples and answers, :math:`H(\frac1N\sum_i p_i) - \frac1N\sum_i H(p_i)`; more is better.

    Confident answers that use all classes (Krause et al. 2010, NeurIPS; Shi and Sha 2012, 1206.6438). It assumes
    classes of about the same size on the target.

    Args:
        logits: ``(N, C)``.

    Returns:
        A float64 scalar from 0 to :math:`\log C`.

    Raises:
        UserError: no samples, or not a matrix.
    """
    _check_rows("information_maximization", logits, 1)
    p = logits.to(torch.float64).softmax(-1)
    return _entropy(p.mean(0)) - _entropy(p).mean()


def soft_neighborhood_density(x: Tensor, temperature: float = 0.05) -> Tensor:
    r"""How many neighbours samples have, on average; more is better (SND, Saito et al. 2021, 2108.10860).

    .. math:: \frac1N\sum_i H(P_i), \qquad
              P_{ij} = \frac{e^{\hat x_i\cdot\hat x_j/\tau}}{\sum_{k\ne i} e^{\hat x_i\cdot\hat x_k/\tau}},\quad j\ne i

    with rows :math:`\hat x` of length 1. It cannot tell well-formed classes from a collapse of all into one.

    Args:
        x: ``(N, D)`` softmax outputs, as in the paper, or features.
        temperature: :math:`\tau`.

    Returns:
        A float64 scalar from 0 to :math:`\log(N-1)`. Memory is linear in ``N``.

    Raises:
        UserError: fewer than 2 samples, not a matrix, or a temperature that is not above 0.
    """
    _check_rows("soft_neighborhood_density", x, 2)
    if not temperature > 0:
        raise UserError(f"soft_neighborhood_density: temperature must be above 0, but is {temperature}.")
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
            f"{name} needs a matrix with a row for each of {least} or more samples, but got the shape "
            f"{tuple(x.shape)}: give it all samples of the split at once."
        )


class DomainClassifier(NamedTuple):
    """A logistic regression that tells the target from the source.

    Attributes:
        mean: ``(E,)`` float64 of the features.
        scale: ``(E,)`` float64 by which they are divided.
        weight: ``(E,)`` float64.
        bias: float.
    """

    mean: Tensor
    scale: Tensor
    weight: Tensor
    bias: float

    def log_odds(self, features: Tensor) -> Tensor:
        """Above 0 for what looks like the target.

        Args:
            features: ``(N, E)``.

        Returns:
            ``(N,)`` float64.
        """
        standard = (features.detach().to("cpu", torch.float64) - self.mean) / self.scale
        odds: Tensor = standard @ self.weight + self.bias
        return odds


def fit_domain_classifier(source: Tensor, target: Tensor, regularization: float = 1e-2) -> DomainClassifier:
    r"""Learns to tell the target from the source by a plane, both weighing one half whatever their sizes.

    .. math:: \min_{w,b}\ \frac1{2n_s}\sum_{x\in S}\log(1+e^{w\cdot x+b})
              + \frac1{2n_t}\sum_{x\in T}\log(1+e^{-w\cdot x-b}) + \frac\lambda2\lVert w\rVert^2

    on features of mean 0 and variance 1, by L-BFGS from 0: nothing is drawn, and domains that a plane separates have
    an answer, too.

    Args:
        source: ``(n_s, E)``.
        target: ``(n_t, E)``.
        regularization: :math:`\lambda`, above 0.

    Returns:
        The classifier, on the CPU.

    Raises:
        UserError: an empty domain, other shapes, values that are not finite, or ``regularization`` not above 0.
    """
    from scipy.optimize import minimize  # takes a while to import

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
            "telling domains apart needs a matrix of features for each, with the same columns and a row or more, but "
            f"got {tuple(source.shape)} and {tuple(target.shape)}: flatten the features, and give both domains."
        )
    if not regularization > 0:
        raise UserError(
            f"regularization must be above 0, but is {regularization}: without it, domains that a plane separates "
            "have no answer."
        )
    for name, values in (("source", source), ("target", target)):
        if not values.isfinite().all():
            raise UserError(
                f"the features of the {name} must be finite, but some are not: the network has diverged; train it "
                "with a lower learning rate."
            )


def choose_regularization(source: Tensor, target: Tensor) -> float:
    """The strength with which :func:`fit_domain_classifier` predicts best what it has not seen.

    Where features are many, a classifier that is held back too little is sure of everything, and ratios made from it
    are astronomical.

    Args:
        source: ``(n_s, E)``, 2 samples or more.
        target: ``(n_t, E)``, 2 samples or more.

    Returns:
        That of 0.001, 0.01, 0.1 and 1 with the smallest logistic loss on one half after learning from the other, in
        turn; the halves are always the same.

    Raises:
        UserError: a domain with one sample, or as :func:`fit_domain_classifier`.
    """
    if min(len(source), len(target)) < 2:
        raise UserError(
            f"choosing a regularization needs 2 samples or more of each domain, but got {len(source)} of the source "
            f"and {len(target)} of the target: give more samples, or set regularization."
        )
    halves = [_halves(source), _halves(target)]

    def loss(regularization: float) -> float:
        total = 0.0
        for half in (0, 1):
            classifier = fit_domain_classifier(halves[0][half], halves[1][half], regularization)
            mine, other = (classifier.log_odds(parts[1 - half]) for parts in halves)
            total += float(F.softplus(mine).mean() + F.softplus(-other).mean())
        return total

    return min(_STRENGTHS, key=loss)


def _halves(x: Tensor) -> tuple[Tensor, Tensor]:
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0)).to(x.device)
    return x[order[::2]], x[order[1::2]]


def density_ratio(
    source_features: Tensor, target_features: Tensor, val_features: Tensor, regularization: float | None = None
) -> Tensor:
    r"""How much more often the target has such samples than the source, by telling the two apart.

    .. math:: w(x) = \frac{n_s}{n_t}\,\frac{p(\text{target}\mid x)}{p(\text{source}\mid x)}

    (Bickel et al. 2009, JMLR), where the domains weigh the same in :func:`fit_domain_classifier`, so that its odds are
    the ratio already. On samples of the source the mean is 1 in expectation: where it is far from that, the domains
    hardly overlap, and no weighting can tell about the target. The ratio is cut at :math:`e^{\pm30}`.

    Args:
        source_features: ``(n_s, E)`` to learn from; best others than ``val_features``.
        target_features: ``(n_t, E)`` to learn from.
        val_features: ``(N, E)`` samples of the source.
        regularization: of :func:`fit_domain_classifier`; by :func:`choose_regularization` where left out.

    Returns:
        ``(N,)`` float64 weights on the CPU, above 0.
    """
    strength = choose_regularization(source_features, target_features) if regularization is None else regularization
    classifier = fit_domain_classifier(source_features, target_features, strength)
    return classifier.log_odds(val_features).clamp(-_LARGEST, _LARGEST).exp()


def importance_weighted_risk(losses: Tensor, weights: Tensor) -> Tensor:
    r"""The target's risk by source samples, :math:`\frac1N\sum_i w_i\ell_i` (IWCV, Sugiyama et al. 2007, JMLR).

    Args:
        losses: ``(N,)`` losses, or errors of 0 and 1, of source samples that were not trained on.
        weights: ``(N,)`` of :func:`density_ratio`.

    Returns:
        A float64 scalar.

    Raises:
        UserError: no samples, or shapes that do not fit.
    """
    return _weighted(losses, weights).mean()


def deep_embedded_validation(losses: Tensor, weights: Tensor) -> Tensor:
    r"""The target's risk by source samples, its variance held down by a control variate (DEV, You et al. 2019, ICML).

    .. math:: \overline{w\ell} + \eta\,\bar w - \eta, \qquad
              \eta = -\frac{\mathrm{cov}(w\ell, w)}{\mathrm{var}(w)}

    for weights have a mean of 1 in expectation. It may fall below 0. Equal weights leave :math:`\overline{w\ell}`.

    Args:
        losses: ``(N,)`` losses, or errors of 0 and 1, of source samples that were not trained on.
        weights: ``(N,)`` of :func:`density_ratio`.

    Returns:
        A float64 scalar.

    Raises:
        UserError: no samples, or shapes that do not fit.
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
            f"a weighted risk needs one loss and one weight for each of one or more samples, but got the shapes "
            f"{tuple(losses.shape)} and {tuple(weights.shape)}: give vectors of the same length."
        )
    return losses.to(weights.device, torch.float64) * weights.to(torch.float64)
