"""Lightning callbacks: checkpoints with their protocol, report, figures, predictions, gains over twins."""

from collections.abc import Callable, Iterable

from lightning.pytorch import Callback

from metatransfer.callbacks.adaptation_gain import AdaptationGain
from metatransfer.callbacks.domain_diagnostics import DomainDiagnostics
from metatransfer.callbacks.figures import Figures
from metatransfer.callbacks.gain import TransferGain
from metatransfer.callbacks.run.checkpoint import BestCheckpoint
from metatransfer.callbacks.run.interrupt import FinishBatch
from metatransfer.callbacks.run.predictions import PredictionWriter
from metatransfer.callbacks.run.report import Report
from metatransfer.callbacks.run.start_checks import StartChecks

__all__ = [
    "AdaptationGain", "BestCheckpoint", "DomainDiagnostics", "Figures", "FinishBatch", "PredictionWriter", "Report",
    "StartChecks", "TransferGain", "standard_callbacks",
]  # fmt: skip

# in this order: the diagnostics use the twin of the gain, and the report names the checkpoint that the gain selects
_STANDARD: tuple[Callable[[], Callback], ...] = (
    FinishBatch, AdaptationGain.unasked, DomainDiagnostics, Report, Figures, PredictionWriter,
)  # fmt: skip


def standard_callbacks(given: Iterable[Callback]) -> list[Callback]:
    """The callbacks that the command line adds to every run, without those that the ``given`` ones of a user replace.

    Each ignores methods that it does not apply to.
    """
    kinds = tuple(type(one) for one in given)
    return [one for one in (make() for make in _STANDARD) if not any(issubclass(kind, type(one)) for kind in kinds)]
