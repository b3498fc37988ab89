"""Lightning callbacks: checkpoints with their protocol, the report, pictures, predictions."""

from collections.abc import Callable, Iterable

from lightning.pytorch import Callback

from metatransfer.callbacks.adaptation_gain import AdaptationGain
from metatransfer.callbacks.domain_diagnostics import DomainDiagnostics
from metatransfer.callbacks.figures import Figures
from metatransfer.callbacks.run.checkpoint import BestCheckpoint
from metatransfer.callbacks.run.interrupt import FinishBatch
from metatransfer.callbacks.run.predictions import PredictionWriter
from metatransfer.callbacks.run.report import Report
from metatransfer.callbacks.run.start_checks import StartChecks
from metatransfer.callbacks.transfer_gain import TransferGain

__all__ = [
    "AdaptationGain",
    "BestCheckpoint",
    "DomainDiagnostics",
    "Figures",
    "FinishBatch",
    "PredictionWriter",
    "Report",
    "StartChecks",
    "TransferGain",
    "standard_callbacks",
]

# in this order: the diagnostics look at the gain's twin, and the report names the checkpoint that it chose
_STANDARD: tuple[Callable[[], Callback], ...] = (
    FinishBatch,
    AdaptationGain.unasked,
    DomainDiagnostics,
    Report,
    Figures,
    PredictionWriter,
)


def standard_callbacks(given: Iterable[Callback]) -> list[Callback]:
    """The callbacks of every run of the command line; each does nothing for a method that it does not apply to.

    Args:
        given: the user's own, which replace those of the same class.

    Returns:
        The others.
    """
    own = list(given)
    return [one for one in (make() for make in _STANDARD) if not any(isinstance(mine, type(one)) for mine in own)]
