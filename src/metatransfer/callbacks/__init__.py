"""Lightning callbacks: checkpoints with their protocol, the report, pictures, predictions."""

from metatransfer.callbacks.checkpoint import BestCheckpoint
from metatransfer.callbacks.figures import EpisodeFigures
from metatransfer.callbacks.interrupt import FinishBatch
from metatransfer.callbacks.predictions import PredictionWriter
from metatransfer.callbacks.report import Report
from metatransfer.callbacks.start_checks import StartChecks

__all__ = ["BestCheckpoint", "EpisodeFigures", "FinishBatch", "PredictionWriter", "Report", "StartChecks"]
