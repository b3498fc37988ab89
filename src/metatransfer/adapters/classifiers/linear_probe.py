"""Logistic regression on features, with a search over learning rates."""

from __future__ import annotations

import math
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor

from metatransfer.adapters.classifiers.feature_classifier import FeatureClassifier, Labelled, linear_scores, moments
from metatransfer.checks import check_not_negative, check_positive
from metatransfer.errors import UserError


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
