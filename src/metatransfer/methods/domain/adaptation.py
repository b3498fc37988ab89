"""Arguments shared by all adaptation methods."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from metatransfer.checks import check_choice
from metatransfer.methods.domain.schedules import Annealing
from metatransfer.metrics.validators import Validator

Normalization = Literal["joint", "separate", "domain_specific", "adabn"]


@dataclass(frozen=True)
class Adaptation:
    """Arguments shared by all adaptation methods: BatchNorm across domains, selection without labels, learning rate.

    Attributes:
        normalization: BatchNorm statistics in training: ``"joint"`` over both domains, ``"separate"`` by domain with
            common running statistics, ``"domain_specific"`` layers (1906.03950), or ``"adabn"``, common scales and
            shifts with statistics estimated from all samples of the target (1603.04779). Defaults to that of the
            method.
        validator: selects the best state of a run; defaults to ``InformationMaximization``.
        annealing: learning rate of each step by the progress of the run, instead of an ``lr_scheduler``.

    Raises:
        UserError: unknown ``normalization``.
    """

    normalization: Normalization | None = None
    validator: Validator | None = None
    annealing: Annealing | None = None

    def __post_init__(self) -> None:
        if self.normalization is not None:
            check_choice("normalization", self.normalization, get_args(Normalization))


DEFAULT = Adaptation()
