"""Classifiers of features: fitted at once, as scikit-learn's are, their state nothing but tensors."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from metatransfer.arguments import plain_arguments, remember_arguments
from metatransfer.checks import check_choice, check_not_negative, check_positive
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
        if x.dim() != 2 or not x.is_floating_point():
            raise UserError(f"features must be floats of shape (N, E), but are {x.dtype} of shape {tuple(x.shape)}.")
        self.learned = {name: value.to(x.device) for name, value in self.learned.items()}
        with torch.autocast(x.device.type, enabled=False):  # what was learned was learned in float32
            return self.scores(x.to(torch.promote_types(x.dtype, torch.float32)))

    def check_labelled(
        self, train: Labelled, num_classes: int, val: Labelled | None = None
    ) -> tuple[Labelled, Labelled | None]:
        """Refuses what cannot be learned from; :meth:`fit` begins with it.

        Args:
            train: what to learn from.
            num_classes: number of classes.
            val: what to choose by.

        Returns:
            Both, their features in float32 or wider.

        Raises:
            UserError: no samples, shapes or labels that do not fit, features that are not finite, or a class without
                training samples.
        """
        name, checked = type(self).__name__, []
        for where, part in (("training", train), ("validation", val)):
            if part is None:
                continue
            x, y = part
            if x.dim() != 2 or not x.is_floating_point() or y.dtype != torch.int64 or y.shape != x.shape[:1]:
                raise UserError(
                    f"{name} needs {where} features (N, E) of floats and labels (N,) of int64, but got {x.dtype} of "
                    f"shape {tuple(x.shape)} and {y.dtype} of shape {tuple(y.shape)}."
                )
            if not x.numel():
                raise UserError(f"{name} needs {where} features, but got none: shape {tuple(x.shape)}.")
            if x.shape[1] != train.x.shape[1]:
                raise UserError(
                    f"{name} got {train.x.shape[1]} training features of a sample, but {x.shape[1]} of validation: "
                    "take both from the same network."
                )
            if int(y.min()) < 0 or int(y.max()) >= num_classes:
                raise UserError(
                    f"{name} got {where} labels from {int(y.min())} to {int(y.max())}, but num_classes={num_classes} "
                    f"takes 0 to {num_classes - 1}."
                )
            if not torch.isfinite(x).all():
                raise UserError(f"{name} got {where} features that are NaN or infinite: look at samples and weights.")
            checked.append(Labelled(x.to(torch.promote_types(x.dtype, torch.float32)), y))
        missing = (torch.bincount(train.y, minlength=num_classes) == 0).nonzero().flatten().tolist()
        if missing:
            raise UserError(f"{name} got no training sample of class {missing[0]}: every class needs one.")
        return checked[0], checked[1] if val is not None else None

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
        train, _ = self.check_labelled(train, num_classes)
        means = class_prototypes(train.x.unsqueeze(0), train.y.unsqueeze(0), num_classes)
        self.learned = {"means": means.squeeze(0)}
        return self

    def scores(self, x: Tensor) -> Tensor:
        """Scores against the means."""
        means = _fitting(self.learned["means"], x)
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

    def fit(self, train: Labelled, num_classes: int, val: Labelled | None = None) -> Self:
        """Keeps the training samples, at unit length."""
        train, _ = self.check_labelled(train, num_classes)
        self.learned = {"x": F.normalize(train.x, dim=-1), "y": train.y, "classes": torch.tensor(num_classes)}
        return self

    def scores(self, x: Tensor) -> Tensor:
        """Logarithms of the parts of the votes."""
        known, y = _fitting(self.learned["x"], x), self.learned["y"]
        cosine, nearest = (F.normalize(x, dim=-1) @ known.T).topk(min(self.k, len(known)))
        weight = (cosine / self.temperature).softmax(-1)
        votes = F.one_hot(y[nearest], int(self.learned["classes"]))
        shares = (weight.unsqueeze(-1) * votes).sum(1)
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

        train, _ = self.check_labelled(train, num_classes)
        mean, deviation = _moments(train.x)
        machine = LinearSVC(C=self.C, dual="auto", random_state=0)
        machine.fit(((train.x - mean) / deviation).cpu().double().numpy(), train.y.cpu().numpy())
        weight = torch.as_tensor(machine.coef_, dtype=train.x.dtype, device=train.x.device)
        bias = torch.as_tensor(machine.intercept_, dtype=train.x.dtype, device=train.x.device)
        if len(weight) == 1:  # two classes share one machine
            weight, bias = torch.cat([-weight, weight]), torch.cat([-bias, bias])
        self.learned = {"weight": weight, "bias": bias, "mean": mean, "deviation": deviation}
        return self

    def scores(self, x: Tensor) -> Tensor:
        """The margins."""
        return _linear(self.learned, x)


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
        mean, deviation = _moments(train.x)
        weight, bias = self._trained((train.x - mean) / deviation, train.y, num_classes)
        self.found, best, highest = {}, None, (-math.inf, -math.inf)
        for place, rate in enumerate(self.rates):
            head = {"weight": weight[place], "bias": bias[place], "mean": mean, "deviation": deviation}
            outputs = _linear(head, (val or train).x)
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
        return _linear(self.learned, x)


def _fitting(known: Tensor, x: Tensor) -> Tensor:
    """What was learned, as wide as the features.

    Raises:
        UserError: features of another size.
    """
    if x.shape[1] != known.shape[1]:
        raise UserError(
            f"the classifier was fitted to features of size {known.shape[1]}, but gets {x.shape[1]}: give it those of "
            "the same network, or fit it anew."
        )
    return known.to(x.dtype)


def _linear(head: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """Outputs of a linear layer on standardised features: folded into the layer, a large mean would cost digits."""
    weight = _fitting(head["weight"], x)
    mean, deviation, bias = (head[name].to(x.dtype) for name in ("mean", "deviation", "bias"))
    return F.linear((x - mean) / deviation, weight, bias)


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation of each feature; a constant feature is left as it is."""
    mean = x.mean(0)
    deviation = x.std(0, correction=0)
    return mean, torch.where(deviation > 1e-6 * (1 + mean.abs()), deviation, 1.0)
