"""The group of arguments that all adaptation methods share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from metatransfer.checks import check_choice
from metatransfer.methods.domain.schedules import Annealing
from metatransfer.metrics.validators import Validator

Normalization = Literal["joint", "separate", "domain_specific", "adabn"]


@dataclass(frozen=True)
class Adaptation:
    """What all adaptation methods share: BatchNorm across domains, selection without labels, schedule of the rate.

    Attributes:
        normalization: statistics of BatchNorm layers in training: ``"joint"`` over both domains at once,
            ``"separate"`` by domain with common running statistics, ``"domain_specific"`` layers (1906.03950), or
            ``"adabn"``, common scales and shifts with statistics of the target from all its samples (1603.04779); the
            method's own if left out.
        validator: what selects the best state of a run; ``InformationMaximization`` if left out.
        annealing: learning rate of each step by the progress of the run, instead of an ``lr_scheduler``.

    Raises:
        UserError: an unknown ``normalization``.
    """

    normalization: Normalization | None = None
    validator: Validator | None = None
    annealing: Annealing | None = None

    def __post_init__(self) -> None:
        if self.normalization is not None:
            check_choice("normalization", self.normalization, get_args(Normalization))


DEFAULT = Adaptation()
