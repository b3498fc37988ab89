"""Base classes of collections of images."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from metatransfer.checks import check_file
from metatransfer.data.readers.image_files import ImageFile, open_tree
from metatransfer.data.readers.image_look import ImageLook, as_sample
from metatransfer.data.readers.image_source import ImageReader
from metatransfer.data.sources import Collection, Source, TensorSource, UnlabelledPart
from metatransfer.errors import UserError


class ImageCollection(Collection):
    """Base class of collections of image files, which ``reader`` reads; error messages contain their ``path``."""

    reader: ImageReader
    path: str = ""

    def unlabelled(self, path: str | Sequence[str]) -> tuple[Source, tuple[str, ...]]:
        """The images of a folder or zip file at any depth, with their relative names; or a list of image files."""
        if not isinstance(path, str):
            places = [check_file(one, "image file") for one in path]
            files = [
                ImageFile(str(one.parent), one.name, one.stat().st_size, str(one.stat().st_mtime_ns)) for one in places
            ]
            source, kept = self.reader.in_order(files, "the image files")
            return source, tuple(str(path[index]) for index in kept)
        source, names, self.skipped["predict"] = images_below(path, self.reader)
        return source, names

    def convert(self, item: Image.Image) -> Tensor:
        """An image in the format of the samples: ``(C, H, W)`` in [0, 1]."""
        return as_sample(item, self.reader.look)

    def protocol(self) -> dict[str, Any]:
        """The size of the images."""
        channels, size, _ = self.reader.look.shape
        bits = getattr(self.reader.look, "bits", None)
        return {"image_size": size, "channels": channels} | ({"bits": bits} if bits is not None else {})

    def _name(self, part: str) -> str:
        return f"'{self.path}'" if part == "all" else f"'{self.path}' {part}"

    def _withheld(self, files: Sequence[ImageFile], words: Sequence[str] | None, part: str) -> UnlabelledPart:
        """A part of a target domain: the files in the given order, with their classes ``words``."""
        source, kept = self.reader.in_order(files, self._name(part))
        self.skipped[part] = len(files) - len(kept)
        return UnlabelledPart(source, np.array(words, np.str_)[kept] if words is not None else None)


def images_below(path: str, reader: ImageReader) -> tuple[Source, tuple[str, ...], int]:
    """The images of a folder or zip file at any depth, their relative names, and the number of unusable ones."""
    where = f"predict folder '{path}'"
    tree = open_tree(path, "predict folder")
    files = tree.files()
    report_passed_over(tree.passed_over, where)
    if not files:
        raise UserError(f"{where} holds no image: give a folder with images, at any depth.")
    source, kept = reader.in_order(files, where)
    names = tuple(files[index].name.removeprefix(tree.prefix) for index in kept)
    return source, names, len(files) - len(kept)


class PixelCollection(Collection):
    """Base class of published data sets of small images, divided by sample and held in memory as uint8.

    Args:
        root: folder of the files.
        image_size: side of a sample in pixels: when an image is read, its shorter side is resized bilinearly and the
            centre cropped. Defaults to the size of the images, which must then be the same for all.
        channels: 1 for luminance, 3 for RGB (grey is repeated). Defaults to the channels of the images.
    """

    divided_by = "sample"

    def __init__(self, root: str, image_size: int | None = None, channels: Literal[1, 3] | None = None) -> None:
        self.root = root
        self.look = ImageLook(image_size, channels)

    def protocol(self) -> dict[str, Any]:
        """The size of the images."""
        source = self.opened()["train"]
        assert isinstance(source, Source)
        channels, *size = source.sample_shape
        return {"image_size": size[0] if size[0] == size[1] else size, "channels": channels}


def report_passed_over(counts: Counter[str], where: str) -> None:
    """Logs in one line how many files were not read, by extension, and forgets them."""
    if counts:
        each = ", ".join(f"{count} {ending}" for ending, count in counts.most_common())
        rank_zero_info(f"{where}: files that are not images of a class are skipped: {each}.")
        counts.clear()


def labelled_pixels(
    data: NDArray[np.uint8], labels: NDArray[np.int64], class_names: Sequence[str], where: str
) -> TensorSource:
    """A source of labelled images ``(N, C, H, W)``; classes without images are left out."""
    present, places = np.unique(labels, return_inverse=True)
    return TensorSource(torch.from_numpy(data), places, [class_names[label] for label in present], where)


def gathered(samples: Iterable[NDArray[np.uint8]], count: int, where: str) -> NDArray[np.uint8]:
    """Samples as one array; stacking them would need twice the memory."""
    found: NDArray[np.uint8] | None = None
    for number, sample in enumerate(samples):
        if found is None:
            found = np.empty((count, *sample.shape), np.uint8)
        if sample.shape != found.shape[1:]:
            raise UserError(
                f"{where}: image {number} is {_described(sample)}, but the first is {_described(found[0])}: set "
                "image_size and channels."
            )
        found[number] = sample
    if found is None:
        raise UserError(f"{where} has no images: add some.")
    return found


def by_content(source: TensorSource) -> TensorSource:
    """The same samples ordered by a hash of their pixels, so that the order reveals nothing about the labels."""
    digests = [hashlib.sha256(sample.contiguous().numpy()).digest() for sample in source.data.cpu()]
    order = np.array(sorted(range(len(source)), key=digests.__getitem__), np.int64)
    return TensorSource(source.data[torch.from_numpy(order)], source.labels[order], source.class_names, source.name)


def _described(sample: NDArray[np.uint8]) -> str:
    channels, height, width = sample.shape
    return f"{width}x{height} pixels in {channels} channel{'s' * (channels > 1)}"
