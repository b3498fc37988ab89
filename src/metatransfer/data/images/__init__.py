"""Image files in folders and zips: found, checked, decoded once, and kept as uint8."""

from metatransfer.data.images.fetching import fetch
from metatransfer.data.images.finding import ImageFile, ImageTree, open_tree
from metatransfer.data.images.looking import ImageLook
from metatransfer.data.images.source import (
    MEMORY_LIMIT,
    ON_BAD_SAMPLE,
    ImageFileSource,
    OnBadSample,
    check_class_names,
    open_images,
)

__all__ = [
    "MEMORY_LIMIT",
    "ON_BAD_SAMPLE",
    "ImageFile",
    "ImageFileSource",
    "ImageLook",
    "ImageTree",
    "OnBadSample",
    "check_class_names",
    "fetch",
    "open_images",
    "open_tree",
]
