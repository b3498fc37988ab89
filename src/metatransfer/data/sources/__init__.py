"""Where samples come from: sources that are read by index, generators of tasks, names of splits and classes."""

from metatransfer.data.sources.base import Encoder, Source, TensorSource
from metatransfer.data.sources.collection import Collection, LazyParts, TaskGenerator
from metatransfer.data.sources.derived import NO_CLASS as NO_CLASS
from metatransfer.data.sources.derived import JoinedSource as JoinedSource
from metatransfer.data.sources.derived import RotatedClasses as RotatedClasses
from metatransfer.data.sources.derived import UnlabelledPart, without_labels
from metatransfer.data.sources.derived import View as View
from metatransfer.data.sources.derived import first_not_finite as first_not_finite
from metatransfer.data.sources.derived import joined as joined
from metatransfer.data.sources.derived import of_classes as of_classes
from metatransfer.data.sources.derived import relabelled as relabelled
from metatransfer.data.sources.derived import rotate as rotate
from metatransfer.data.sources.derived import subset as subset
from metatransfer.data.sources.names import SPLIT_NAMES as SPLIT_NAMES
from metatransfer.data.sources.names import SPLITS as SPLITS
from metatransfer.data.sources.names import check_disjoint as check_disjoint
from metatransfer.data.sources.names import group_of_classes as group_of_classes
from metatransfer.data.sources.names import natural_order as natural_order
from metatransfer.data.sources.names import numbered as numbered
from metatransfer.data.sources.names import split_of as split_of

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
