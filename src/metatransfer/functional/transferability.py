"""Transferability scores: how well a pretrained network suits labelled target data, without training it.

The scores rank networks for one target; higher is better. Their values are not comparable between targets, except for
:func:`leep` and :func:`nce` with the same labels. All sums are in float64, whatever the precision of the network.
"""

import math

import torch
from torch import Tensor

from metatransfer.errors import UserError
from metatransfer.functional.losses import is_regression

__all__ = ["h_score", "leep", "log_me", "nce", "trans_rate"]

_ROUNDS = 200  # of the fixed-point iteration; 10 to 30 are usual
_CONVERGED = 1e-12  # change of the mean log evidence between rounds
_BLOCKS = 8  # of columns; products of pairs of blocks below the diagonal are not computed
_SUMS_TO_ONE = 1e-2  # tolerance: half-precision probabilities of 1000 classes


def log_me(features: Tensor, targets: Tensor) -> Tensor:
    r"""Logarithm of the maximum evidence of a linear model on the features (LogME, You et al. 2021, 2102.11005).

    .. math:: \frac1K\sum_k \max_{\alpha,\beta}\ \frac1n \log \mathcal N\big(y_k;\, 0,\,
              \beta^{-1} I + \alpha^{-1} F F^\top\big)

    where :math:`y_k` is 1 for the samples of class ``k`` and 0 for the others. One eigendecomposition serves all
    classes; :math:`\alpha/\beta` is found by MacKay's fixed-point iteration, and :math:`\beta` in closed form. As in
    the paper, the model has no intercept, and features are not centred.

    Args:
        features: ``F``, ``(n, D)``, of the target samples.
        targets: ``(n,)`` integer labels, or ``(n,)`` or ``(n, K)`` float targets of a regression.

    Returns:
        A float64 scalar in nats per sample; higher is better. It may be positive: it is a density.

    Raises:
        UserError: the shapes do not fit, features are not finite, or there are fewer than two classes.
    """
    x = _features("log_me", features, targets)
    y = _columns(x, targets)
    energy = y.square().sum(0)
    if len(x) < x.shape[1]:
        values, vectors = torch.linalg.eigh(x @ x.T)
        squares = (vectors.T @ y).square()
    else:
        values, vectors = torch.linalg.eigh(gram(x))
        squares = (vectors.T @ (x.T @ y)).square() / values.clamp(min=torch.finfo(x.dtype).tiny).unsqueeze(1)
    kept = values > values[-1].clamp(min=torch.finfo(x.dtype).tiny) * len(values) * torch.finfo(x.dtype).eps
    values, squares = values[kept].unsqueeze(1), squares[kept]
    rest = torch.maximum(energy - squares.sum(0), energy * torch.finfo(x.dtype).eps)
    return _log_evidence(values, squares, rest, len(x)).mean()


def _log_evidence(values: Tensor, squares: Tensor, rest: Tensor, n: int) -> Tensor:
    """The maximum of the mean log evidence for each target ``(K,)``.

    Args:
        values: ``(r, 1)`` eigenvalues of the Gram matrix.
        squares: ``(r, K)`` squares of the targets along the eigenvectors.
        rest: ``(K,)`` squares of the targets outside of the features' span.
        n: number of samples.
    """
    ratio = torch.ones_like(rest)  # alpha / beta
    best = torch.full_like(rest, -torch.inf)
    for _ in range(_ROUNDS):
        shrunk = ratio / (ratio + values)
        used = (1 - shrunk).sum(0)  # effective number of parameters
        weights = ((1 - shrunk).square() * squares / values).sum(0)
        errors = (shrunk.square() * squares).sum(0) + rest
        beta = n / (errors + ratio * weights)
        found = 0.5 * (shrunk.log().sum(0) / n + beta.log() - 1 - math.log(2 * math.pi))
        done = bool(((found - best).abs() <= _CONVERGED * (1 + found.abs())).all())
        best = torch.maximum(best, found)
        if done:
            break
        ratio = (used * errors / (weights * (n - used)).clamp(min=1e-300)).clamp(1e-300, 1e100)
    return best


def h_score(features: Tensor, labels: Tensor, *, shrinkage: bool = False) -> Tensor:
    r"""H-score :math:`\mathrm{tr}(\Sigma_f^{+}\,\Sigma_{\bar f})` (Bao et al. 2019, ICIP; 2212.10082).

    :math:`\Sigma_f` is the covariance of the features and :math:`\Sigma_{\bar f}` that of the class means, one for each
    sample. It is the sum of the squared canonical correlations of features and classes, so it does not change under
    invertible linear maps of the features.

    With few samples per feature, the plain score tends to its largest value for every network. ``shrinkage`` uses the
    covariance of Ledoit and Wolf (2004) with intensity :math:`a`, as Ibrahim et al. 2021 (2110.06893):

    .. math:: \mathrm{tr}\big(\Sigma_a^{-1}\,(1-a)\,\Sigma_{\bar f}\big),\qquad
              \Sigma_a = (1-a)\,\Sigma_f + a\,\tfrac{\mathrm{tr}\Sigma_f}{D} I

    Args:
        features: ``(n, D)``, of the target samples.
        labels: ``(n,)`` integers.
        shrinkage: whether to use the regularised covariance.

    Returns:
        A float64 scalar from 0 to the smaller of ``K - 1`` and ``D``; higher is better.

    Raises:
        UserError: the shapes do not fit, features are not finite, or there are fewer than two classes.
    """
    x = _features("h_score", features, labels)
    y, sizes = _classes("h_score", labels.to(x.device))
    x = x - x.mean(0)
    spread = x.square().mean(0).sqrt()
    if not shrinkage:  # to equal scales, which changes nothing but the rounding errors; constant features are left out
        varies = spread > 1e-12 * features.to(x).abs().amax(0)
        x = x[:, varies] / spread[varies]
    if not x.numel() or not bool(spread.any()):
        return x.new_zeros(())
    covariance = gram(x) / len(x)
    means = x.new_zeros(len(sizes), x.shape[1]).index_add_(0, y, x) / sizes.unsqueeze(1)
    between = means * (sizes / len(x)).sqrt().unsqueeze(1)
    if not shrinkage:
        return _inverse_trace(covariance, between)
    intensity = _ledoit_wolf(x, covariance)
    covariance = (1 - intensity) * covariance
    covariance.diagonal().add_(intensity * spread.square().mean())
    return (1 - intensity) * _inverse_trace(covariance, between)


def _inverse_trace(covariance: Tensor, rows: Tensor) -> Tensor:
    """The trace of ``rows @ pinv(covariance) @ rows.T`` for rows ``(K, D)`` in the span of the covariance."""
    from scipy.linalg import solve_triangular  # slow to import
    from scipy.linalg.lapack import dpstrf

    # pivots find features that span all others, which have the same score
    factor, pivots, rank, _ = dpstrf(covariance.cpu().numpy(), lower=0)
    chosen = rows.cpu().numpy()[:, pivots[:rank] - 1]
    solved = solve_triangular(factor[:rank, :rank], chosen.T, trans="T", lower=False)
    return rows.new_tensor(float((solved**2).sum()))


def _ledoit_wolf(x: Tensor, covariance: Tensor) -> Tensor:
    """The intensity of the shrinkage towards a multiple of the identity, for centred ``x`` (Ledoit and Wolf 2004)."""
    scale = covariance.diagonal().mean()
    apart = covariance.square().sum() - len(covariance) * scale.square()
    noise = (x.square().sum(1).square().mean() - covariance.square().sum()) / len(x)
    return (noise.clamp(min=0) / apart).clamp(max=1) if apart > 0 else torch.ones_like(apart)


def leep(probabilities: Tensor, labels: Tensor) -> Tensor:
    r"""Log expected empirical prediction (LEEP, Nguyen et al. 2020, 2002.12462).

    .. math:: \frac1n\sum_i \log \sum_z \hat P(y_i\mid z)\,\theta(x_i)_z,\qquad
              \hat P(y, z) = \frac1n\sum_{i:\,y_i=y}\theta(x_i)_z

    the mean log-likelihood of target labels that are predicted through the source classes.

    Args:
        probabilities: :math:`\theta`, ``(n, Z)``, of the source classes for the target samples: after a softmax.
        labels: ``(n,)`` integers, of the target.

    Returns:
        A float64 scalar in nats, at most 0.

    Raises:
        UserError: the shapes do not fit, the rows are no probabilities, or there are fewer than two classes.
    """
    x = _features("leep", probabilities, labels)
    sums = probabilities.detach().sum(1, dtype=torch.float32)
    if bool(probabilities.min() < 0) or bool((sums - 1).abs().max() > _SUMS_TO_ONE):
        raise UserError(
            "leep needs probabilities of the source classes whose rows sum to 1, but some do not: apply softmax(-1) to "
            "the logits; for predicted classes use nce."
        )
    y, sizes = _classes("leep", labels.to(x.device))
    joint = torch.nn.functional.one_hot(y, len(sizes)).to(x.dtype).T @ x
    given = joint / joint.sum(0).clamp(min=torch.finfo(x.dtype).tiny)  # P(y | z)
    return (x @ given.T).gather(1, y.unsqueeze(1)).log().mean()


def nce(source_labels: Tensor, labels: Tensor) -> Tensor:
    r"""Negative conditional entropy :math:`-H(Y\mid Z)` (NCE, Tran et al. 2019, 1908.08142).

    .. math:: \sum_{y,z} \hat P(y, z) \log \frac{\hat P(y, z)}{\hat P(z)}

    Args:
        source_labels: ``(n,)`` integers: source classes of the target samples, usually the most likely ones.
        labels: ``(n,)`` integers, of the target.

    Returns:
        A float64 scalar in nats, at most 0.

    Raises:
        UserError: the labels are not integers, differ in number, or have fewer than two classes.
    """
    if is_regression(source_labels) or source_labels.shape != labels.shape:
        raise UserError(
            f"nce needs an integer source class (N,) for each label, but got {source_labels.dtype} of shape "
            f"{tuple(source_labels.shape)} and labels of shape {tuple(labels.shape)}: take argmax(-1) of the outputs; "
            "for probabilities use leep."
        )
    y, sizes = _classes("nce", labels)
    names, z = source_labels.to(y.device).unique(return_inverse=True)  # type: ignore[no-untyped-call]
    joint = torch.bincount(y * len(names) + z, minlength=len(sizes) * len(names)).view(len(sizes), -1).double()
    # entropies of counts: -H(Y | Z) = (H(Z) - H(Y, Z)) with H = log n - sum c log c / n
    entropy: Tensor = torch.special.entr(joint.sum(0)).sum() - torch.special.entr(joint).sum()
    return entropy / len(y)


def trans_rate(features: Tensor, labels: Tensor, epsilon: float = 1e-4) -> Tensor:
    r"""TransRate, the mutual information of features and labels by coding rates (Huang et al. 2022, 2106.09362).

    .. math:: R(Z) - \sum_c \frac{n_c}n R(Z_c),\qquad
              R(Z) = \tfrac12 \log\det\big(I + \tfrac1{n\epsilon} Z^\top Z\big)

    of centred features :math:`Z` and those of each class, :math:`Z_c`. The value depends on the scale of the features.
    The paper's listing takes the plain mean over classes, which is the same for classes of equal size.

    Args:
        features: ``(n, D)``, of the target samples.
        labels: ``(n,)`` integers.
        epsilon: :math:`\epsilon`, the distortion of the code, in squared units of the features.

    Returns:
        A float64 scalar in nats; higher is better.

    Raises:
        UserError: the shapes do not fit, features are not finite, there are fewer than two classes, or ``epsilon`` is
            not positive.
    """
    if not epsilon > 0:
        raise UserError(f"trans_rate: epsilon must be positive, but is {epsilon}.")
    x = _features("trans_rate", features, labels)
    y, sizes = _classes("trans_rate", labels.to(x.device))
    x = x - x.mean(0)
    parts = torch.split(x[y.argsort()], sizes.long().tolist())
    within = sum(len(part) / len(x) * _coding_rate(part, epsilon) for part in parts)
    return _coding_rate(x, epsilon) - within


def _coding_rate(x: Tensor, epsilon: float) -> Tensor:
    products = gram(x if len(x) >= x.shape[1] else x.T) / (len(x) * epsilon)
    products.diagonal().add_(1)
    factor, failed = torch.linalg.cholesky_ex(products, upper=True)
    if failed:
        raise UserError(f"trans_rate: epsilon={epsilon} is too small for the scale of the features: standardise them.")
    rate: Tensor = factor.diagonal().log().sum()
    return rate


def gram(x: Tensor) -> Tensor:
    """The symmetric matrix ``x.T @ x`` of ``(n, D)`` in little more than half of the time of the product."""
    width = max(64, math.ceil(x.shape[1] / _BLOCKS))
    products = x.new_empty(x.shape[1], x.shape[1])
    for start in range(0, x.shape[1], width):
        rows = slice(start, start + width)
        found = x[:, rows].T @ x[:, start:]
        products[rows, start:], products[start:, rows] = found, found.T
    return products


def _features(name: str, x: Tensor, targets: Tensor) -> Tensor:
    """Checks ``(n, D)`` and its targets, and converts it to float64."""
    if x.dim() != 2 or not x.is_floating_point() or len(x) < 2 or not x.shape[1]:
        raise UserError(
            f"{name} needs floating-point outputs (N, D) of a network for at least 2 samples, but got {x.dtype} of "
            f"shape {tuple(x.shape)}: flatten other axes."
        )
    if targets.dim() not in {1, 2} or len(targets) != len(x):
        raise UserError(
            f"{name} needs a label for each of the {len(x)} samples, but the labels have the shape "
            f"{tuple(targets.shape)}."
        )
    if not all(bool(end.isfinite()) for end in x.detach().aminmax()):
        raise UserError(f"{name}: the outputs of the network must be finite, but some are NaN or infinite.")
    return x.detach().to(torch.float64)


def _classes(name: str, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Labels ``(n,)`` numbered without gaps, and the number of samples of each class, float64 ``(K,)``."""
    if labels.dim() != 1 or labels.dtype.is_floating_point:
        raise UserError(f"{name} needs integer labels (N,), but got {labels.dtype} of shape {tuple(labels.shape)}.")
    names, y, sizes = labels.unique(return_inverse=True, return_counts=True)  # type: ignore[no-untyped-call]
    if len(names) < 2:
        raise UserError(f"{name} needs samples of at least 2 classes, but all labels are {names.tolist()}.")
    return y, sizes.double()


def _columns(x: Tensor, targets: Tensor) -> Tensor:
    """Targets as float64 columns ``(n, K)``: one for each class, or the targets of a regression."""
    if is_regression(targets):
        y = targets.detach().to(x)
        if not (y.isfinite().all() and y.square().sum(0).all()):
            raise UserError("log_me: the targets must be finite, and no target may be 0 for all samples.")
        return y.unsqueeze(1) if y.dim() == 1 else y
    y, sizes = _classes("log_me", targets.to(x.device))
    return torch.nn.functional.one_hot(y, len(sizes)).to(x.dtype)
