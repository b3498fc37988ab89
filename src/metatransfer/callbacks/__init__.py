"""Lightning callbacks: checkpoints with their protocol, the report, pictures, predictions."""

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
]
