"""Logistic regression and linear support vector machines on features."""

import math
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from metatransfer.adapters.feature_classifier import FeatureClassifier, Labelled, linear_scores, moments
from metatransfer.checks import check_not_negative, check_positive
from metatransfer.errors import UserError

_DENSE = 0.2  # share of values above 0 from which on whole numbers are not taken for counts


class LinearProbe(FeatureClassifier):
    r"""Logistic regression on features, with the learning rate selected by validation accuracy.

    One head per learning rate is trained, all heads in parallel, by SGD with momentum 0.9 and a cosine schedule, as in
    linear probing of self-supervised networks (e.g. He et al. 2022, 2111.06377). Features are standardised with the
    statistics of the training samples.

    Args:
        learning_rates: number of rates, logarithmically spaced from ``lowest`` to ``highest``.
        lowest: smallest rate.
        highest: largest rate.
        epochs: passes over the training samples.
        batch_size: samples per step.
        weight_decay: applied to the weights, but not to the biases.
        seed: seed of the order of the samples.

    Attributes:
        rates: the learning rates.
        found: validation accuracy by learning rate, after a fit.

    Raises:
        UserError: a number is not positive, or ``lowest`` and ``highest`` do not fit ``learning_rates``.
    """

    def __init__(
        self,
        learning_rates: int = 20,
        lowest: float = 1e-4,
        highest: float = 1.0,
        epochs: int = 50,
        batch_size: int = 256,
        weight_decay: float = 1e-4,
        seed: int = 0,
    ) -> None:
        super().__init__()
        check_positive(learning_rates=learning_rates, lowest=lowest, highest=highest, epochs=epochs)
        check_positive(batch_size=batch_size)
        check_not_negative(weight_decay=weight_decay)
        if lowest > highest:
            raise UserError(f"lowest must not be above highest, but they are {lowest} and {highest}.")
        if learning_rates == 1 and lowest != highest:
            raise UserError(
                f"learning_rates=1 needs lowest and highest to be equal, but they are {lowest} and {highest}: set both "
                "to the rate."
            )
        steps = [place / max(1, learning_rates - 1) for place in range(learning_rates)]
        self.rates = [lowest ** (1 - step) * highest**step for step in steps]
        self.epochs, self.batch_size, self.weight_decay, self.seed = epochs, batch_size, weight_decay, seed
        self.found: dict[float, float] = {}

    def fit(self, train: Labelled, num_classes: int, val: Labelled | None = None) -> Self:
        """Trains all heads and keeps the best one on ``val``.

        Raises:
            UserError: several rates without ``val``, or all rates diverge.
        """
        if val is None and len(self.rates) > 1:
            raise UserError("LinearProbe selects its learning rate on validation features: give some, or one rate.")
        train, val = self.check_labelled(train, num_classes, val)
        mean, deviation = moments(train.x)
        weight, bias = self._trained((train.x - mean) / deviation, train.y, num_classes)
        self.found, best, highest = {}, None, (-math.inf, -math.inf)
        for place, rate in enumerate(self.rates):
            head = {"weight": weight[place], "bias": bias[place], "mean": mean, "deviation": deviation}
            outputs = linear_scores(head, (val or train).x)
            if not all(torch.isfinite(part).all() for part in (outputs, *head.values())):
                continue  # it diverged
            if val is None:
                best = place
                break
            right = float((outputs.argmax(-1) == val.y).double().mean())
            self.found[rate] = right
            # ties are decided by the loss
            score = right, -float(F.cross_entropy(outputs, val.y))
            if best is None or score > highest:
                best, highest = place, score
        if best is None:
            raise UserError(f"LinearProbe diverges at all learning rates from {self.rates[0]:g}: decrease lowest.")
        self.learned = {
            "weight": weight[best].clone(),
            "bias": bias[best].clone(),
            "mean": mean,
            "deviation": deviation,
            "learning_rate": torch.tensor(self.rates[best], dtype=torch.float64),
        }
        return self

    @torch.no_grad()
    def _trained(self, x: Tensor, y: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
        """Weights ``(R, C, E)`` and biases ``(R, C)`` of all heads."""
        heads, samples = len(self.rates), len(x)
        rates = x.new_tensor(self.rates).view(-1, 1, 1)
        ones = torch.cat([x, x.new_ones(samples, 1)], dim=1)  # the last weight is the bias
        joint = x.new_zeros(heads, num_classes, ones.shape[1])
        velocity = torch.zeros_like(joint)
        target = F.one_hot(y, num_classes).to(x.dtype)
        generator = torch.Generator().manual_seed(self.seed)
        size = min(self.batch_size, samples)
        steps = self.epochs * (samples // size)
        for step in range(steps):
            if step % (samples // size) == 0:
                order = torch.randperm(samples, generator=generator).to(x.device)
            rows = order[(step % (samples // size)) * size :][:size]
            chosen = ones[rows]
            # one product for all heads: (B, E) x (E, R C)
            outputs = (chosen @ joint.flatten(0, 1).T).view(size, heads, num_classes)
            error = (outputs.softmax(-1) - target[rows].unsqueeze(1)).flatten(1)
            gradient = (error.T @ chosen).view_as(joint) / size
            gradient[..., :-1] += self.weight_decay * joint[..., :-1]
            velocity = 0.9 * velocity + gradient
            joint = joint - rates * 0.5 * (1 + math.cos(math.pi * step / steps)) * velocity
        return joint[..., :-1], joint[..., -1]

    def scores(self, x: Tensor) -> Tensor:
        """The logits of the chosen head."""
        return linear_scores(self.learned, x)


class LinearSVM(FeatureClassifier):
    """Linear support vector machines, one class against the rest, by scikit-learn's ``LinearSVC`` (LIBLINEAR).

    The outputs are margins. Their softmax ranks the classes, but is not a probability, so no calibration error is
    reported. Features may be a sparse matrix of scipy or torch, which stays sparse.

    Args:
        C: inverse strength of the regularisation; defaults to 0.01 for standardised features and in
            :class:`~metatransfer.AdaptedFeaturesModule`, else to 1.
        standardize: whether features are standardised with the statistics of the training samples. Defaults to yes,
            except for sparse matrices and for features without negative values whose rows are counts (whole numbers,
            mostly zeros), frequencies of sum 1 or vectors of length 1: there it would magnify rare features; and except
            in :class:`~metatransfer.AdaptedFeaturesModule`, because the scale of adapted features has a meaning.
    """

    calibrated = False
    takes_sparse = True

    def __init__(self, C: float | None = None, standardize: bool | None = None) -> None:
        super().__init__()
        check_positive(C=C)
        self.C, self.standardize = C, standardize

    def fit(self, train: Labelled, num_classes: int, val: Labelled | None = None) -> Self:
        """Fits one machine per class.

        Raises:
            UserError: sparse features that should be standardised, or unsuitable samples.
        """
        from sklearn.svm import LinearSVC  # takes a second to import

        train, _ = self.check_labelled(train, num_classes)
        standardize = has_scales(train.x) if self.standardize is None else self.standardize
        if standardize and train.x.is_sparse:
            raise UserError(
                "LinearSVM(standardize=True) would make sparse features dense: set standardize to False, or make them "
                "dense with toarray()."
            )
        mean = torch.zeros(train.x.shape[1], dtype=train.x.dtype, device=train.x.device)
        mean, deviation = moments(train.x) if standardize else (mean, mean + 1)
        machine = LinearSVC(C=self.C or (0.01 if standardize else 1.0), dual="auto", random_state=0)
        machine.fit(_array(train.x, mean, deviation), train.y.cpu().numpy())
        weight = torch.as_tensor(machine.coef_, dtype=train.x.dtype, device=train.x.device)
        bias = torch.as_tensor(machine.intercept_, dtype=train.x.dtype, device=train.x.device)
        if len(weight) == 1:  # two classes share one machine
            weight, bias = torch.cat([-weight, weight]), torch.cat([-bias, bias])
        self.learned = {"weight": weight, "bias": bias, "mean": mean, "deviation": deviation}
        return self

    def keeping_scale(self) -> "LinearSVM":
        """The same without standardisation, unless it was asked for."""
        return LinearSVM(self.C or 0.01, standardize=bool(self.standardize))

    def scores(self, x: Tensor) -> Tensor:
        """The margins."""
        return linear_scores(self.learned, x)


def has_scales(x: Tensor) -> bool:
    """Whether features ``(N, E)`` are continuous with scales of their own, so that standardising them makes sense."""
    if x.is_sparse:
        return False
    if bool((x < 0).any()):
        return True
    sizes = torch.stack([x.sum(1), x.norm(dim=1)])
    unit = ((sizes - 1).abs() < 1e-3) | (sizes == 0)
    counts = bool((x == x.round()).all()) and float((x > 0).double().mean()) < _DENSE
    return not (counts or bool(unit.all(1).any()))


def _array(x: Tensor, mean: Tensor, deviation: Tensor) -> Any:  # noqa: ANN401
    """Standardised features as an array, or sparse features as a matrix of scipy, in double precision."""
    if not x.is_sparse:
        return ((x - mean) / deviation).cpu().double().numpy()
    from scipy.sparse import coo_array

    places = x.indices().cpu().int().numpy()  # LIBLINEAR takes no others
    return coo_array((x.values().cpu().double().numpy(), (places[0], places[1])), tuple(x.shape)).tocsr()
