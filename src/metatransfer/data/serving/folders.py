"""Reads the image folders of a few-shot prediction."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from metatransfer.batches import PredictionTask
from metatransfer.checks import check_folder
from metatransfer.errors import UserError

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm"})


def image_files(folder: Path) -> list[Path]:
    """The image files below a folder, sorted, without hidden ones."""
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in IMAGE_SUFFIXES
        and path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )


def open_image(path: Path, convert: Callable[[Image.Image], Tensor]) -> Tensor:
    """Reads an image file."""
    try:
        with Image.open(path) as image:
            image.load()
            return convert(image)
    except UserError as error:
        raise UserError(f"image '{path}': {error}") from error
    except Exception as error:  # for damaged files, PIL's plugins raise errors of any type
        raise UserError(f"'{path}' cannot be read as an image ({error}); remove it or save it again.") from error


def prediction_task(support: str | Path, query: str | Path, convert: Callable[[Image.Image], Tensor]) -> PredictionTask:
    """The task of labelling the images of one folder by the examples in another."""
    support, query = check_folder(support, "support folder"), check_folder(query, "query folder")
    labels = sorted(entry for entry in support.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if len(labels) < 2:
        raise UserError(
            f"support folder '{support}' must contain one folder of example images per label (<label>/<image>), at "
            f"least two, but has {len(labels)}."
        )
    examples = [(label.name, path) for label in labels for path in _images_of(label, "label folder")]
    files = _images_of(query, "query folder")
    return PredictionTask(
        support_x=_stacked([path for _, path in examples], convert),
        support_labels=tuple(label for label, _ in examples),
        query_x=_stacked(files, convert),
        files=tuple(path.relative_to(query).as_posix() for path in files),
    )


def _images_of(folder: Path, what: str) -> list[Path]:
    files = image_files(folder)
    if not files:
        raise UserError(f"{what} '{folder}' contains no images (looked for {', '.join(sorted(IMAGE_SUFFIXES))}).")
    return files


def _stacked(files: list[Path], convert: Callable[[Image.Image], Tensor]) -> Tensor:
    samples = [open_image(path, convert) for path in files]
    for path, sample in zip(files, samples, strict=True):
        if sample.shape != samples[0].shape:
            raise UserError(
                f"image '{path}' has shape {tuple(sample.shape)} after conversion, but '{files[0]}' has "
                f"{tuple(samples[0].shape)}: resize all images to the same size."
            )
    return torch.stack(samples)
