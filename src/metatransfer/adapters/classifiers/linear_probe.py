"""Logistic regression on features, for many learning rates at once."""

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
    r"""Logistic regression on features, for many learning rates at once, of which validation chooses one.

    All heads are trained side by side, one batched product for all of them, by SGD with momentum 0.9 and a cosine
    schedule, as linear probes of self-supervised networks are (e.g. He et al. 2022, 2111.06377). Features are brought
    to zero mean and unit variance by those of the training.

    Args:
        learning_rates: how many, spread evenly over the logarithm from ``lowest`` to ``highest``.
        lowest: smallest rate.
        highest: largest rate.
        epochs: passes over the training features.
        batch_size: features of a step.
        weight_decay: of all heads, their biases left out.
        seed: of the order.

    Attributes:
        rates: the learning rates.
        found: accuracy on the validation features by learning rate, after a fit.

    Raises:
        UserError: a number that is not above 0, or ``lowest`` and ``highest`` that do not fit ``learning_rates``.
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
                f"learning_rates=1 leaves open which rate from lowest={lowest} to highest={highest} is meant: set both "
                "to it."
            )
        steps = [place / max(1, learning_rates - 1) for place in range(learning_rates)]
        self.rates = [lowest ** (1 - step) * highest**step for step in steps]
        self.epochs, self.batch_size, self.weight_decay, self.seed = epochs, batch_size, weight_decay, seed
        self.found: dict[float, float] = {}

    def fit(self, train: Labelled, num_classes: int, val: Labelled | None = None) -> Self:
        """Trains all heads and keeps the one that is best on ``val``.

        Raises:
            UserError: nothing to choose by, or no rate that does not diverge.
        """
        if val is None and len(self.rates) > 1:
            raise UserError("LinearProbe chooses its learning rate on validation features: give some, or one rate.")
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
            # of equal accuracies the one with the least loss
            score = right, -float(F.cross_entropy(outputs, val.y))
            if best is None or score > highest:
                best, highest = place, score
        if best is None:
            raise UserError(
                f"LinearProbe diverges at all of its learning rates, the least {self.rates[0]:g}: lower it."
            )
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
        ones = torch.cat([x, x.new_ones(samples, 1)], dim=1)  # the bias is one weight more
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
