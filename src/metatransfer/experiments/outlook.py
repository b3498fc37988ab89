"""What can be said of a transfer between two domains before anything is trained."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from metatransfer.adapters import Labelled
from metatransfer.errors import UserError
from metatransfer.experiments.similarity import ProbedTask, converted, default_backbone
from metatransfer.functional.domain.distance import proxy_a_distance
from metatransfer.functional.transferability import h_score
from metatransfer.nn import Backbone

_ALIKE, _FAR = 0.5, 1.5  # A-distances: a domain classifier errs in more than 37 %, in less than 13 %
_FEWEST = 5  # samples of a domain, one for each fold
_SEPARATED = 0.5  # share of the largest H-score


class Outlook(NamedTuple):
    """Measurements that tell whether transfer from a source to a target may hurt.

    Attributes:
        a_distance: proxy A-distance of the features, from 0 to 2 (Ben-David et al. 2007, NeurIPS).
        separation: H-score of the features and the source labels, divided by its largest value.
        source_classes: names of the classes of the source.
        target_classes: names of the classes of the target; empty if they are unknown.
    """

    a_distance: float
    separation: float
    source_classes: tuple[str, ...]
    target_classes: tuple[str, ...]

    def __str__(self) -> str:
        apart = "alike" if self.a_distance < _ALIKE else "far apart" if self.a_distance > _FAR else "different"
        well = "well" if self.separation > _SEPARATED else "badly"
        return (
            f"The domains look {apart} (A-distance {self.a_distance:.2f} of 2), {self._overlap()}, and the features "
            f"separate the classes of the source {well} (H-score {100 * self.separation:.0f} % of its maximum): "
            f"{self._advice()}."
        )

    def _overlap(self) -> str:
        if not self.target_classes:
            return "the classes of the target are unknown"
        others = len(set(self.target_classes) - set(self.source_classes))
        return f"the target has {len(self._shared())} of the {len(self.source_classes)} classes of the source" + (
            f" and {others} other{'s' * (others != 1)}" if others else ""
        )

    def _shared(self) -> set[str]:
        return set(self.source_classes) & set(self.target_classes)

    def _advice(self) -> str:
        if self.target_classes and not self._shared():
            return "no method can transfer labels between different classes; rename the classes if they are the same"
        if self.target_classes and set(self.source_classes) != set(self.target_classes):
            return (
                "aligning domains with different classes may be worse than source_only, and the methods need the same "
                "classes in both, so remove the others"
            )
        if self.a_distance < _ALIKE:
            return "there is little to adapt, so expect little gain over source_only"
        return "adaptation may help or hurt, so compare it with source_only"


def outlook(
    source: Labelled,
    target: Tensor,
    source_classes: Sequence[str],
    target_classes: Sequence[str] = (),
    backbone: Backbone | None = None,
) -> Outlook:
    """Measures two domains, without labels of target samples.

    Args:
        source: ``(N, *shape)`` samples, and labels ``(N,)`` of at least two classes.
        target: ``(M, *shape)`` samples.
        source_classes: names of all classes of the source.
        target_classes: names of all classes of the target, if they are known.
        backbone: network of the features; by default :class:`~metatransfer.nn.Conv4` with the weights of the package
            for images, and the values themselves for anything else.

    Raises:
        UserError: samples that do not fit each other, fewer than five samples of a domain, or one class only.
    """
    _check_enough(source, target)
    network = (backbone or default_backbone(source.x)).eval()
    y = torch.unique(source.y, return_inverse=True)[1]
    sides = [converted(x, network, name) for x, name in ((source.x, "the source"), (target, "the target"))]
    known = ProbedTask(Labelled(sides[0], y), network).features
    new = ProbedTask(Labelled(sides[1], y.new_zeros(len(target))), network).features.x
    most = min(int(y.max()), known.x.shape[1])
    separation = float(h_score(known.x, y, shrinkage=True)) / most
    return Outlook(
        proxy_a_distance(known.x, new, folds=_FEWEST), separation, tuple(source_classes), tuple(target_classes)
    )


def _check_enough(source: Labelled, target: Tensor) -> None:
    if len(torch.unique(source.y)) < 2:
        raise UserError(
            "the samples of the source must be of at least 2 classes, but all are of one: add samples of another class."
        )
    for who, x in (("source", source.x), ("target", target)):
        if len(x) < _FEWEST:
            raise UserError(
                f"the {who} must have at least {_FEWEST} samples to be compared, but has {len(x)}: add samples."
            )
