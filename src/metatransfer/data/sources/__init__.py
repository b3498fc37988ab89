"""Where samples come from: sources that are read by index, generators of tasks, names of splits and classes."""

from metatransfer.data.sources.base import Encoder, Source, TensorSource, shown
from metatransfer.data.sources.collection import Collection, LazyParts
from metatransfer.data.sources.derived import (
    NO_CLASS,
    JoinedSource,
    RotatedClasses,
    UnlabelledPart,
    View,
    first_not_finite,
    joined,
    of_classes,
    relabelled,
    rotate,
    subset,
    without_labels,
)
from metatransfer.data.sources.generator import TaskGenerator
from metatransfer.data.sources.names import (
    SPLIT_NAMES,
    SPLITS,
    check_disjoint,
    group_of_classes,
    natural_order,
    numbered,
    split_of,
)

__all__ = [
    "NO_CLASS",
    "SPLITS",
    "SPLIT_NAMES",
    "Collection",
    "Encoder",
    "JoinedSource",
    "LazyParts",
    "RotatedClasses",
    "Source",
    "TaskGenerator",
    "TensorSource",
    "UnlabelledPart",
    "View",
    "check_disjoint",
    "first_not_finite",
    "group_of_classes",
    "joined",
    "natural_order",
    "numbered",
    "of_classes",
    "relabelled",
    "rotate",
    "shown",
    "split_of",
    "subset",
    "without_labels",
]
