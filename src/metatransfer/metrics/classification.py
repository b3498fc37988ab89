"""Metrics of a classifier."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics.functional.classification import multiclass_confusion_matrix, multiclass_f1_score

from metatransfer.functional.intervals import estimate
from metatransfer.metrics.collector import Collector
from metatransfer.metrics.episode_metrics import named


class Answers(NamedTuple):
    """Predictions of a classifier, sample by sample.

    Attributes:
        number: ``(N,)`` int64, index of the sample in its split.
        target: ``(N,)`` int64, its class.
        prediction: ``(N,)`` int64, the most probable class.
        confidence: ``(N,)``, probability of that class.
        loss: ``(N,)``, cross-entropy.
    """

    number: Tensor
    target: Tensor
    prediction: Tensor
    confidence: Tensor
    loss: Tensor


class _Collected(Collector):
    """Keeps all predictions, of all processes."""

    fields = Answers._fields

    def update(self, answers: Answers) -> None:
        self.add(*answers)

    def compute(self) -> Answers:
        found = Answers(*self.collected())
        order = found.number.argsort(stable=True)  # that of the split, whatever process answered
        return Answers(*(part[order] for part in found))


class ClassifierMetrics(nn.Module):
    r"""Accuracy, macro-F1, loss and calibration error of a classifier over a split, and the predictions.

    The interval of the accuracy is Wilson's over the :math:`N` samples, that of the loss Student's. Macro-F1 is the
    mean over the classes that occur in labels or predictions; the calibration error is that of Guo et al. 2017
    (1706.04599) with 15 bins. If any output is NaN, so are all numbers.

    Args:
        num_classes: size of the output layer.

    Attributes:
        calibrated: whether the softmax of the outputs is meant as a probability; without, no calibration error.
    """

    calibrated = True

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.collected = _Collected()
        self._count = 0

    def update(self, outputs: Tensor, targets: Tensor, number: Tensor | None = None) -> None:
        """Adds logits ``(N, C)`` and labels ``(N,)`` of samples with indices ``(N,)`` in their split, else counted."""
        outputs = outputs.detach().float()
        if number is None:
            number = torch.arange(self._count, self._count + len(targets), device=targets.device)
        self._count += len(targets)
        confidence, prediction = outputs.softmax(-1).max(-1)
        losses = F.cross_entropy(outputs, targets, reduction="none")
        self.collected.update(Answers(number, targets, prediction, confidence, losses))

    def answers(self) -> Answers:
        """All predictions in the order of the split, synchronised between processes."""
        if not self.collected.update_called:  # a process without samples takes part with none
            nothing = torch.empty(0, device=self.collected.device)
            self.collected.update(Answers(nothing.long(), nothing.long(), nothing.long(), nothing, nothing))
        return Answers(*(part.reshape(-1) for part in self.collected.compute()))  # torchmetrics squeezes a single one

    def compute(self) -> dict[str, Tensor]:
        """The numbers by name; ``<name>_ci95`` is half the length of an interval, and accuracy has its ends, too."""
        found = self.answers()
        numbers = {"samples": torch.tensor(float(len(found.target)))}
        numbers |= accuracy_of(found.prediction == found.target) | _named("loss", found.loss)
        none = torch.tensor(torch.nan)
        pair = found.prediction, found.target
        numbers["macro_f1"] = multiclass_f1_score(*pair, self.num_classes) if len(found.target) else none
        if self.calibrated:
            count, right, confidence = reliability(found)
            numbers["calibration_error"] = (right - confidence).abs().sum() / count.sum()
        if found.confidence.isnan().any():
            return {name: value if name == "samples" else value * torch.nan for name, value in numbers.items()}
        return numbers

    def confusion(self) -> Tensor:
        """``(C, C)`` int64: number of samples by class (row) and prediction (column)."""
        found = self.answers()
        return multiclass_confusion_matrix(found.prediction, found.target, self.num_classes)

    def reset(self) -> None:
        """Removes all samples."""
        self.collected.reset()
        self._count = 0


def accuracy_of(right: Tensor, name: str = "accuracy") -> dict[str, Tensor]:
    """The accuracy of answers ``(N,)``, 1 if correct and NaN if not finite, with Wilson's interval."""
    return _named(name, right, len(right))


def _named(name: str, values: Tensor, answers: int = 0) -> dict[str, Tensor]:
    values = values.double()
    found = estimate(len(values), float(values.sum()), float(values.square().sum()), answers)
    return named(name, torch.tensor(found, device=values.device).unbind())


def reliability(found: Answers, bins: int = 15) -> tuple[Tensor, Tensor, Tensor]:
    """Number of predictions, of correct ones, and sum of confidences in equal bins from 0 to 1, all ``(bins,)``."""
    place = (found.confidence * bins).ceil().long().sub(1).clamp(0, bins - 1)
    right = (found.prediction == found.target).float()
    parts = (torch.ones_like(right), right, found.confidence.float())
    count, right, confidence = (torch.zeros(bins, device=right.device).index_add_(0, place, part) for part in parts)
    return count, right, confidence
