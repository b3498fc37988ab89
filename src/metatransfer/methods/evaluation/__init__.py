"""What methods are scored by, and how that is reported."""

from metatransfer.methods.evaluation.base import Evaluation
from metatransfer.methods.evaluation.on_episodes import OnEpisodes
from metatransfer.methods.evaluation.on_samples import OnSamples
from metatransfer.methods.evaluation.on_target import OnTarget

__all__ = ["Evaluation", "OnEpisodes", "OnSamples", "OnTarget"]
