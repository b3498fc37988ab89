"""Classifiers of features: fitted at once, as scikit-learn's are, their state nothing but tensors."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any, NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from metatransfer.arguments import plain_arguments, remember_arguments
from metatransfer.checks import check_choice, check_positive
from metatransfer.errors import UserError
from metatransfer.functional.prototypes import Distance, class_prototypes, prototype_scores


class Labelled(NamedTuple):
    """Features with their labels.

    Attributes:
        x: ``(N, E)`` float.
        y: ``(N,)`` int64 in ``0 .. C - 1``.
    """

    x: Tensor
    y: Tensor


class FeatureClassifier(torch.nn.Module, ABC):
    """Tells classes by features.

    What :meth:`fit` learns are tensors in ``self.learned``, so that a checkpoint holds them.

    Attributes:
        learned: by name; empty before the fit.
    """

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:  # noqa: ANN401
        """Notes the arguments, so that checkpoints can name them."""
        self = super().__new__(cls)
        remember_arguments(self, args, kwargs)
        return self

    def __init__(self) -> None:
        super().__init__()
        self.learned: dict[str, Tensor] = {}

    @abstractmethod
    def fit(self, train: Labelled, num_classes: int, val: Labelled | None = None) -> Self:
        """Learns.

        Args:
            train: what to learn from; every class has a sample.
            num_classes: number of classes.
            val: what to choose by, for those that choose.

        Returns:
            Itself.
        """

    @abstractmethod
    def scores(self, x: Tensor) -> Tensor:
        """Logits.

        Args:
            x: ``(N, E)`` features.

        Returns:
            ``(N, C)``.
        """

    def forward(self, x: Tensor) -> Tensor:
        """Logits of features.

        Raises:
            UserError: before the fit, or features of another size.
        """
        if not self.learned:
            raise UserError(
                f"{type(self).__name__} has learned nothing yet: fit it first, or give --ckpt_path of a fit."
            )
        self.learned = {name: value.to(x.device) for name, value in self.learned.items()}
        return self.scores(x)

    def predict(self, x: Tensor) -> Tensor:
        """The most probable class ``(N,)`` of features ``(N, E)``."""
        return self(x).argmax(-1)  # type: ignore[no-any-return]

    def protocol(self) -> str:
        """The classifier and its arguments."""
        arguments = plain_arguments(self.__dict__.get("_init_arguments", {}))
        return f"{type(self).__name__}({', '.join(f'{name}={value}' for name, value in arguments.items())})"


class NearestClassMean(FeatureClassifier):
    r"""The class whose mean is nearest: :math:`z_k = s\cos(f, c_k)` or :math:`-\lVert f-c_k\rVert^2`.

    Mensink et al. 2013 (PAMI 35(11)); with few labels hard to beat (SimpleShot, Wang et al. 2019, 1911.04623).

    Args:
        distance: ``"cosine"`` or ``"euclidean"`` (squared).
        scale: factor :math:`s` of the cosine: it changes the probabilities, not the answers.

    Raises:
        UserError: an unknown distance, or a scale that is not above 0.
    """

    def __init__(self, distance: Distance = "cosine", scale: float = 10.0) -> None:
        super().__init__()
        check_choice("distance", distance, ("cosine", "euclidean"))
        check_positive(scale=scale)
        self.distance, self.scale = distance, scale

    def fit(self, train: Labelled, num_classes: int, val: Labelled | None = None) -> Self:
        """The class means."""
        means = class_prototypes(train.x.unsqueeze(0), train.y.unsqueeze(0), num_classes)
        self.learned = {"means": means.squeeze(0)}
        return self

    def scores(self, x: Tensor) -> Tensor:
        """Scores against the means."""
        means = self.learned["means"].to(x.dtype)
        return prototype_scores(x.unsqueeze(0), means.unsqueeze(0), self.distance, self.scale).squeeze(0)


class NearestNeighbors(FeatureClassifier):
    r"""The classes of the ``k`` nearest training samples, each weighing :math:`e^{\cos/\tau}`.

    Wu et al. 2018 (1805.01978).

    Args:
        k: how many neighbours; all training samples where there are fewer.
        temperature: :math:`\tau`; the smaller, the more the nearest alone counts.

    Raises:
        UserError: a number that is not above 0.
    """

    def __init__(self, k: int = 5, temperature: float = 0.07) -> None:
        super().__init__()
        check_positive(k=k, temperature=temperature)
        self.k, self.temperature = k, temperature
        self._classes = 0

    def fit(self, train: Labelled, num_classes: int, val: Labelled | None = None) -> Self:
        """Keeps the training samples, at unit length."""
        votes = F.one_hot(train.y, num_classes).to(train.x.dtype)
        self.learned = {"x": F.normalize(train.x, dim=-1), "votes": votes}
        return self

    def scores(self, x: Tensor) -> Tensor:
        """Logarithms of the parts of the votes."""
        known, votes = self.learned["x"].to(x.dtype), self.learned["votes"].to(x.dtype)
        cosine, nearest = (F.normalize(x, dim=-1) @ known.T).topk(min(self.k, len(known)))
        weight = (cosine / self.temperature).softmax(-1)
        shares = (weight.unsqueeze(-1) * votes[nearest]).sum(1)
        return shares.clamp(min=torch.finfo(x.dtype).eps).log()


class LinearSVM(FeatureClassifier):
    """Linear support vector machines, one class against the rest, by scikit-learn's ``LinearSVC`` (LIBLINEAR).

    Features are brought to zero mean and unit variance by those of the training. The outputs are margins: their softmax
    orders the classes, but is no probability.

    Args:
        C: inverse strength of the regularisation.

    Raises:
        UserError: ``C`` is not above 0.
    """

    def __init__(self, C: float = 0.01) -> None:
        super().__init__()
        check_positive(C=C)
        self.C = C

    def fit(self, train: Labelled, num_classes: int, val: Labelled | None = None) -> Self:
        """Trains the machines."""
        from sklearn.svm import LinearSVC  # a second that other runs need not pay

        mean, deviation = _moments(train.x)
        machine = LinearSVC(C=self.C, random_state=0)
        machine.fit(((train.x - mean) / deviation).cpu().double().numpy(), train.y.cpu().numpy())
        weight = torch.as_tensor(machine.coef_, dtype=train.x.dtype, device=train.x.device)
        bias = torch.as_tensor(machine.intercept_, dtype=train.x.dtype, device=train.x.device)
        if len(weight) == 1:  # two classes share one machine
            weight, bias = torch.cat([-weight, weight]), torch.cat([-bias, bias])
        weight = weight / deviation
        self.learned = {"weight": weight, "bias": bias - weight @ mean}
        return self

    def scores(self, x: Tensor) -> Tensor:
        """The margins."""
        return F.linear(x, self.learned["weight"].to(x.dtype), self.learned["bias"].to(x.dtype))


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
        weight_decay: of all heads.
        seed: of the order.

    Raises:
        UserError: a number that is not above 0, or ``lowest`` above ``highest``.
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
        if lowest > highest:
            raise UserError(f"lowest must not be above highest, but they are {lowest} and {highest}.")
        self.rates = torch.logspace(math.log10(lowest), math.log10(highest), learning_rates).tolist()
        self.epochs, self.batch_size, self.weight_decay, self.seed = epochs, batch_size, weight_decay, seed
        self.found: dict[float, float] = {}

    def fit(self, train: Labelled, num_classes: int, val: Labelled | None = None) -> Self:
        """Trains all heads and keeps the one that is best on ``val``.

        Raises:
            UserError: nothing to choose by.
        """
        if val is None and len(self.rates) > 1:
            raise UserError("LinearProbe chooses its learning rate on validation features: give some, or one rate.")
        mean, deviation = _moments(train.x)
        weight, bias = self._trained((train.x - mean) / deviation, train.y, num_classes)
        best = 0
        if val is not None:
            outputs = torch.einsum("ne,rce->rnc", (val.x - mean) / deviation, weight) + bias.unsqueeze(1)
            right = (outputs.argmax(-1) == val.y).double().mean(1)
            losses = torch.stack([F.cross_entropy(one, val.y) for one in outputs]).double().nan_to_num(nan=torch.inf)
            self.found = dict(zip(self.rates, right.tolist(), strict=True))
            # of equal accuracies the one with the least loss
            best = min(range(len(self.rates)), key=lambda place: (-float(right[place]), float(losses[place])))
        chosen = weight[best] / deviation
        self.learned = {
            "weight": chosen,
            "bias": bias[best] - chosen @ mean,
            "learning_rate": torch.tensor(self.rates[best]),
        }
        return self

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
        return F.linear(x, self.learned["weight"].to(x.dtype), self.learned["bias"].to(x.dtype))


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation of each feature; a constant feature is left as it is."""
    mean = x.mean(0)
    deviation = x.std(0, correction=0)
    return mean, torch.where(deviation > 1e-6 * (1 + mean.abs()), deviation, 1.0)
