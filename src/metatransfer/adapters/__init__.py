"""Methods that are fitted to features at once, without a gradient through the network."""

from metatransfer.adapters import classifiers
from metatransfer.adapters.classifiers import *

__all__ = []
__all__ += classifiers.__all__
