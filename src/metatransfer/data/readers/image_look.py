"""How an image file becomes a sample: it is read, decoded and resized."""

from __future__ import annotations

import io
import os
import threading
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import PIL
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from metatransfer.checks import check_choice, check_positive
from metatransfer.data.readers.image_files import ImageFile
from metatransfer.errors import UserError

T = TypeVar("T")


@dataclass(frozen=True)
class ImageLook:
    """How an image file becomes a sample.

    Args:
        size: side of the sample in pixels.
        channels: 1 for grey, 3 for RGB.
        rule: ``"crop"`` applies the EXIF orientation, resizes the shorter side and crops the centre, for photographs;
            ``"resize"`` resizes both sides, for Omniglot.
        invert: whether dark pixels get high values, for ink on paper.

    Raises:
        UserError: the size is below 1, or the channels or the rule are unknown.
    """

    size: int
    channels: int = 3
    rule: str = "crop"
    invert: bool = False

    def __post_init__(self) -> None:
        check_positive(image_size=self.size)
        check_choice("rule", self.rule, ("crop", "resize"))
        if self.channels not in (1, 3):
            raise UserError(f"channels must be 1 (grey) or 3 (RGB), but is {self.channels}.")

    @property
    def shape(self) -> tuple[int, int, int]:
        """``(C, H, W)`` of a sample."""
        return self.channels, self.size, self.size

    def __call__(self, image: Image.Image) -> NDArray[np.uint8]:
        """The sample of an image of any mode: ``(C, H, W)`` uint8."""
        target = (self.size, self.size)
        if self.rule == "resize":
            image = in_mode(image, self.channels).resize(target, Image.Resampling.BILINEAR)
        else:
            image = in_mode(ImageOps.exif_transpose(image), self.channels)
            side = min(image.size)
            left, top = ((length - side) / 2 for length in image.size)
            image = image.resize(target, Image.Resampling.BILINEAR, (left, top, left + side, top + side))
        pixels = np.asarray(image, dtype=np.uint8).reshape(self.size, self.size, self.channels).transpose(2, 0, 1)
        return np.array(255 - pixels if self.invert else pixels, order="C")  # a copy, because PIL's array is read-only

    def sample(self, image: Image.Image) -> Tensor:
        """The sample of an image as float32 in [0, 1]."""
        return torch.from_numpy(self(image)).to(torch.float32).div_(255)


def in_mode(image: Image.Image, channels: int) -> Image.Image:
    """An image of any mode as grey or RGB: 16 bits become 8, and transparent pixels white."""
    mode = "L" if channels == 1 else "RGB"
    if image.mode == mode:
        return image
    if image.mode.startswith("I") or image.mode == "F":  # 16 bits or more, which PIL would clip at 255
        values = np.asarray(image, dtype=np.float64)
        scale = 255.0 if image.mode == "F" and values.max(initial=0) <= 1 else 1 / 257 if values.max() > 255 else 1.0
        return Image.fromarray((values * scale).clip(0, 255).astype(np.uint8)).convert(mode)
    # on white, because transparent pixels are often stored as black
    if image.mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert(mode)


_handles = threading.local()


def _zip(path: str) -> zipfile.ZipFile:
    """A zip file opened once per thread and process: a forked worker must not share its parent's file position."""
    opened: dict[tuple[str, int, int], zipfile.ZipFile] = _handles.__dict__.setdefault("opened", {})
    key = (path, os.getpid(), os.stat(path).st_mtime_ns)
    if key not in opened:
        if len(opened) >= 8:  # few data sets have more parts
            opened.clear()
        opened[key] = zipfile.ZipFile(path)
    return opened[key]


class UnreadableError(UserError):
    """The file could not be read, possibly for a temporary reason."""


def file_bytes(file: ImageFile) -> bytes:
    """The bytes of an image file."""
    try:
        if file.zipped:
            return _zip(file.container).read(file.name)
        return Path(file.container, file.name).read_bytes()
    except OSError as error:
        raise UnreadableError(f"{file.where} cannot be read ({error.strerror}): check its permissions.") from error
    except Exception as error:  # the error depends on the decompressor
        raise UserError(f"{file.where} cannot be unpacked ({error}); pack it again.") from error


def decode(file: ImageFile, look: Callable[[Image.Image], T]) -> T:
    """Reads an image file."""
    data = file_bytes(file)
    try:
        with Image.open(io.BytesIO(data)) as image:
            if isinstance(look, ImageLook) and look.rule == "crop":
                image.draft(None, (2 * look.size, 2 * look.size))  # decodes JPEG files faster; keeps the mode
            return look(image)
    except MemoryError:
        raise
    except Exception as error:  # the error depends on the decoder
        reason = "not an image" if isinstance(error, PIL.UnidentifiedImageError) else error
        raise UserError(f"{file.where} cannot be read as an image ({reason}); remove it or save it again.") from error


def check_header(file: ImageFile) -> None:
    """Raises an error if the first bytes of a file are not those of an image."""
    data = io.BytesIO(file_bytes(file)) if file.zipped else os.path.join(file.container, file.name)
    try:
        with Image.open(data):
            pass
    except Exception as error:
        unreadable = isinstance(error, OSError) and error.errno is not None
        raise (UnreadableError if unreadable else UserError)(
            f"{file.where} cannot be read as an image (not an image); remove it or save it again."
        ) from error
