"""How methods are scored and their results reported."""

from metatransfer.methods.evaluation.base import Evaluation
from metatransfer.methods.evaluation.on_episodes import OnEpisodes
from metatransfer.methods.evaluation.on_samples import OnSamples
from metatransfer.methods.evaluation.on_sequences import OnSequences
from metatransfer.methods.evaluation.on_target import OnTarget

__all__ = ["Evaluation", "OnEpisodes", "OnSamples", "OnSequences", "OnTarget"]
