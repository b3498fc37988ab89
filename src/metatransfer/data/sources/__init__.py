"""Where samples come from: sources that are read by index, generators of tasks, names of splits and classes."""

from metatransfer.data.sources.base import *
from metatransfer.data.sources.collection import *
from metatransfer.data.sources.derived import *

# what a user's own collection needs; the rest is for the rooms of this package
__all__ = [
    "Collection",
    "Encoder",
    "LazyParts",
    "Source",
    "TaskGenerator",
    "TensorSource",
    "UnlabelledPart",
    "without_labels",
]
