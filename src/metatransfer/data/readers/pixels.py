"""Small images in memory: uint8, of one size, with one or three channels."""

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
        size: side of the sample in pixels: the shorter side is resized bilinearly and the centre cropped. Defaults to
            the size of the image.
        channels: 1 for luminance, 3 for RGB (grey is repeated). Defaults to the channels of the image.

    Raises:
        UserError: the size is below 1, or the channels are neither 1 nor 3.
    """

    size: int | None = None
    channels: int | None = None

    def __post_init__(self) -> None:
        check_positive(image_size=self.size)
        if self.channels not in (None, 1, 3):
            raise UserError(f"channels must be 1 (grey), 3 (RGB) or left out, but is {self.channels}.")

    def __call__(self, image: Image.Image | NDArray[np.uint8]) -> Tensor:
        """The sample of an image: ``(C, H, W)`` uint8."""
        if isinstance(image, np.ndarray):
            image = Image.fromarray(np.ascontiguousarray(image))
        grey = image.mode in _GREY or image.mode.startswith("I")
        channels = self.channels or (1 if grey else 3)
        if self.size is not None:
            return torch.from_numpy(ImageLook(self.size, channels)(image))
        pixels = np.asarray(in_mode(image, channels)).reshape(image.height, image.width, channels)
        return torch.from_numpy(np.array(pixels.transpose(2, 0, 1), order="C"))


def gathered(samples: Iterable[Tensor], count: int, where: str) -> Tensor:
    """Samples as one tensor; stacking them would need twice the memory."""
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
    """A source of labelled images; classes without images are left out."""
    present, places = np.unique(labels, return_inverse=True)
    return TensorSource(data, places.astype(np.int64), [class_names[label] for label in present], where)


def by_content(source: TensorSource) -> TensorSource:
    """The same samples ordered by a hash of their pixels, so that the order reveals nothing about the labels."""
    digests = [hashlib.sha256(sample.contiguous().numpy()).digest() for sample in source.data.cpu()]
    order = np.array(sorted(range(len(source)), key=digests.__getitem__), np.int64)
    return TensorSource(source.data[torch.from_numpy(order)], source.labels[order], source.class_names, source.name)


def _described(sample: Tensor) -> str:
    channels, height, width = sample.shape
    return f"{width}x{height} pixels in {channels} channel{'s' * (channels > 1)}"
