"""Validators of user input: numbers, batches, weights and paths."""

from metatransfer.checks import batches, values
from metatransfer.checks.batches import *
from metatransfer.checks.values import *

__all__ = []
__all__ += batches.__all__
__all__ += values.__all__
