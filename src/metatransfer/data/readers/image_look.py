"""How an image becomes a sample: it is read, decoded, turned upright and resized."""

import io
import os
import threading
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

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
# others start programs or hide commands: PostScript, for example, starts Ghostscript
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "AVIF", "PPM")
_MAX_SIDE = 4096
_BITS, _FORMAT, _UNSIGNED = 258, 339, 1  # tags of TIFF, and a value of the second


class Look(Protocol):
    """How an image becomes a sample of one shape."""

    @property
    def shape(self) -> tuple[int, ...]:
        """``(C, H, W)`` of a sample."""

    def __call__(self, image: Image.Image, /) -> NDArray[np.uint8]:
        """The sample of an image."""


@dataclass(frozen=True)
class ImageLook:
    """How an image of any mode becomes a sample.

    Args:
        size: side of the sample in pixels; ``None`` leaves images as large as they are.
        channels: 1 for grey, 3 for RGB; ``None`` keeps those of the image.
        rule: ``"crop"`` resizes the shorter side and crops the centre, for photographs; ``"resize"`` resizes both
            sides, for Omniglot.
        invert: whether dark pixels get high values, for ink on paper.
        bits: bits that images of more than 8 bits use, if these are fewer than they store: white is ``2**bits - 1``.
    """

    size: int | None
    channels: int | None = 3
    rule: str = "crop"
    invert: bool = False
    bits: int | None = None

    def __post_init__(self) -> None:
        check_image_size(self.size)
        check_choice("rule", self.rule, ("crop", "resize"))
        if self.channels not in (1, 3, None):
            raise UserError(f"channels must be 1 (grey) or 3 (RGB), but is {self.channels}.")
        if self.bits is not None and self.bits not in range(8, 33):
            raise UserError(f"bits must be a whole number from 8 to 32, but is {self.bits}.")

    @property
    def shape(self) -> tuple[int, ...]:
        """``(C, H, W)`` of a sample, if it does not depend on the image."""
        assert self.size is not None
        assert self.channels is not None
        return self.channels, self.size, self.size

    def __call__(self, image: Image.Image | NDArray[np.uint8], /) -> NDArray[np.uint8]:
        """The sample of an image of any mode: ``(C, H, W)`` uint8."""
        image = Image.fromarray(image) if isinstance(image, np.ndarray) else image
        image = in_mode(image, self.channels, self.bits)
        if self.size is not None:
            side = min(image.size)
            left, top = ((length - side) / 2 for length in image.size)
            box = (left, top, left + side, top + side) if self.rule == "crop" else None
            image = image.resize((self.size, self.size), Image.Resampling.BILINEAR, box)
        pixels = np.asarray(image, np.uint8).reshape(image.height, image.width, -1).transpose(2, 0, 1)
        return np.array(255 - pixels if self.invert else pixels, order="C")  # a copy, because PIL's array is read-only


def check_image_size(size: int | None) -> None:
    """Raises an error if the side of the samples is not positive, or so large that no memory could hold them."""
    check_positive(image_size=size)
    if size is not None and size > _MAX_SIDE:
        raise UserError(f"image_size must be at most {_MAX_SIDE} pixels, but is {size}.")


def as_sample(image: Image.Image, look: Look) -> Tensor:
    """The sample of an image as float32 in [0, 1]."""
    return torch.from_numpy(look(image)).to(torch.float32).div_(255)


def in_mode(image: Image.Image, channels: int | None, bits: int | None = None) -> Image.Image:
    """An image of any mode, upright, as grey or RGB: more than 8 bits become 8, and transparent pixels white."""
    white = white_of(image)  # first, because a copy forgets the format of its file
    white = min(white, 2**bits - 1) if bits is not None and white > 1 else white
    image = ImageOps.exif_transpose(image)
    image = _eight_bits(image, white) if white else image
    grey = channels == 1 or (channels is None and image.mode in ("1", "L", "LA", "La"))
    mode = "L" if grey else "RGB"
    if image.mode == mode:
        return image
    # on white, because transparent pixels are often stored as black
    if image.mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert(mode)


def white_of(image: Image.Image) -> int:
    """The value of white in an image of more than 8 bits, by its type; 0 for other images."""
    if image.mode == "F":
        return 1
    if not image.mode.startswith("I"):
        return 0
    # only TIFF stores more than 16 bits; Pillow reads 16 bits of other formats as 32 bits
    tags = getattr(image, "tag_v2", {_BITS: (16,)})
    bits, kind = tags.get(_BITS, (16,))[0], tags.get(_FORMAT, (_UNSIGNED,))[0]
    return int(2 ** (bits - (kind != _UNSIGNED)) - 1)


def _eight_bits(image: Image.Image, white: int) -> Image.Image:
    # all images of a type are scaled alike, so that a darker one stays darker
    given = np.asarray(image)
    values = np.nan_to_num((given.view(np.uint32) if white >= 2**31 else given).astype(np.float32))
    if values.size and not 0 <= values.min() <= values.max() <= np.float32(white):
        raise UserError(
            f"its values go from {values.min():.6g} to {values.max():.6g}, but for this type of image must lie between "
            f"0 (black) and {white} (white): rescale them, or correct bits."
        )
    values *= 255 / white
    return Image.fromarray(np.rint(values).astype(np.uint8))


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
    """Reads an image file of one of the ``FORMATS``."""
    data = file_bytes(file)
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            _check_pixels(image)
            if isinstance(look, ImageLook) and look.rule == "crop" and look.size is not None:
                image.draft(None, (2 * look.size, 2 * look.size))  # decodes JPEG files faster; keeps the mode
            return look(image)
    except MemoryError:
        raise
    except UserError as error:
        raise UserError(f"image {file.where}: {error}") from error
    except Exception as error:  # the error depends on the decoder
        reason = "not an image" if isinstance(error, PIL.UnidentifiedImageError) else error
        raise UserError(f"{file.where} cannot be read as an image ({reason}); remove it or save it again.") from error


def _check_pixels(image: Image.Image) -> None:
    # Pillow itself only warns up to twice its limit, which is gigabytes in 16 bits
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and image.width * image.height > limit:
        raise UserError(
            f"it has {image.width}x{image.height} pixels, more than the {limit} that Pillow allows: make it smaller, "
            "or remove it."
        )
