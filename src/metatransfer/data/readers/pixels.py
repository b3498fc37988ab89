"""Small images as they are held in memory: uint8, of one size, with one or three channels."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from metatransfer.checks import check_positive
from metatransfer.data.readers.image_look import ImageLook, in_mode
from metatransfer.data.sources import TensorSource
from metatransfer.errors import UserError

_GREY = ("1", "L", "LA", "La", "F")


@dataclass(frozen=True)
class PixelLook:
    """How a small image becomes a sample.

    Args:
        size: side of the sample in pixels: the shorter side is scaled bilinearly and the centre cut out; as the image
            has where left out.
        channels: 1 for luminance, 3 for RGB, where grey is repeated; as the image has where left out.

    Raises:
        UserError: a size below 1, or other channels.
    """

    size: int | None = None
    channels: int | None = None

    def __post_init__(self) -> None:
        check_positive(image_size=self.size)
        if self.channels not in (None, 1, 3):
            raise UserError(f"channels must be 1 (grey), 3 (RGB) or left out, but is {self.channels}.")

    def __call__(self, image: Image.Image | NDArray[np.uint8]) -> Tensor:
        """Looks at an image."""
        if isinstance(image, np.ndarray):
            image = Image.fromarray(np.ascontiguousarray(image))
        grey = image.mode in _GREY or image.mode.startswith("I")
        channels = self.channels or (1 if grey else 3)
        if self.size is not None:
            return torch.from_numpy(ImageLook(self.size, channels)(image))
        pixels = np.asarray(in_mode(image, channels)).reshape(image.height, image.width, channels)
        return torch.from_numpy(np.array(pixels.transpose(2, 0, 1), order="C"))


def gathered(samples: Iterable[Tensor], count: int, where: str) -> Tensor:
    """Samples one after the other as one tensor; not stacked, which would need twice the memory.

    Raises:
        UserError: images of different sizes or channels, or none.
    """
    found: Tensor | None = None
    for number, sample in enumerate(samples):
        if found is None:
            found = torch.empty((count, *sample.shape), dtype=torch.uint8)
        if sample.shape != found.shape[1:]:
            raise UserError(
                f"{where}: image {number} is {_described(sample)}, but the first is {_described(found[0])}: set "
                "image_size and channels."
            )
        found[number] = sample
    if found is None:
        raise UserError(f"{where} has no images: add some.")
    return found


def labelled_pixels(data: Tensor, labels: NDArray[np.int64], class_names: Sequence[str], where: str) -> TensorSource:
    """Images and labels as a source; classes without images are left out."""
    present, places = np.unique(labels, return_inverse=True)
    return TensorSource(data, places.astype(np.int64), [class_names[label] for label in present], where)


def by_content(source: TensorSource) -> TensorSource:
    """The same samples in an order that follows from their pixels alone, so that it tells nothing of their labels."""
    digests = [hashlib.sha256(sample.contiguous().numpy()).digest() for sample in source.data.cpu()]
    order = np.array(sorted(range(len(source)), key=digests.__getitem__), np.int64)
    return TensorSource(source.data[torch.from_numpy(order)], source.labels[order], source.class_names, source.name)


def _described(sample: Tensor) -> str:
    channels, height, width = sample.shape
    return f"{width}x{height} pixels in {channels} channel{'s' * (channels > 1)}"
