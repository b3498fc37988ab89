"""Validators of user input: numbers, batches, weights and paths."""

from metatransfer.checks import batches, paths, values
from metatransfer.checks.batches import *
from metatransfer.checks.paths import *
from metatransfer.checks.values import *

__all__ = []
__all__ += batches.__all__
__all__ += paths.__all__
__all__ += values.__all__
