"""Labelled images of any folder."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from metatransfer.checks import check_choice, check_positive
from metatransfer.data.division import SPLIT_NAMES, natural_order, split_of
from metatransfer.data.images import (
    MEMORY_LIMIT,
    ON_BAD_SAMPLE,
    ImageFile,
    ImageFileSource,
    ImageLook,
    ImageTree,
    OnBadSample,
    open_images,
    open_tree,
)
from metatransfer.data.images.cache import cached_headers, cached_images
from metatransfer.data.labelled import LabelledDataModule
from metatransfer.data.samplers import SPLITS
from metatransfer.data.sources import Source, TensorSource
from metatransfer.errors import UserError


class ImageFolderDataModule(LabelledDataModule):
    """Photographs or any other images, one folder per class, in a folder or a zip file.

    Two layouts are known:

    - ``<class>/<image>``: every class is divided at random among training, validation and test;
    - ``<split>/<class>/<image>`` with the split ``train`` and, where there are any, ``val`` (or ``valid``,
      ``validation``) and ``test``. What is missing of ``val`` is taken from the training; a test never is.

    An image is scaled by its shorter side and cut out in the centre. The remaining arguments are those of
    :class:`LabelledDataModule`::

        lightning fit --config CONFIG.yaml --data ImageFolderDataModule --data.root FOLDER

    Args:
        root: the folder, or a zip file of it.
        image_size: side of a sample in pixels.
        channels: 3 for RGB, 1 for grey.
        on_bad_sample: ``"error"`` or ``"skip"``: leave out and count images that cannot be used and empty classes.
        cache_dir: where decoded images are kept; ``~/.cache/metatransfer`` or ``METATRANSFER_CACHE`` without it.
        memory_limit: bytes of decoded images up to which a split is held in memory; larger ones are decoded when drawn.
        predict: folder or zip file of images for ``lightning predict`` to label, at any depth.
        **labelled: arguments of :class:`LabelledDataModule`.

    Attributes:
        skipped: images and empty classes left out, for each part that was opened.

    Raises:
        UserError: an impossible size, channels or ``on_bad_sample``, or as :class:`LabelledDataModule`.
    """

    def __init__(
        self,
        root: str,
        image_size: int = 224,
        channels: int = 3,
        on_bad_sample: OnBadSample = "error",
        cache_dir: str | None = None,
        memory_limit: int = MEMORY_LIMIT,
        predict: str | None = None,
        **labelled: Any,  # noqa: ANN401
    ) -> None:
        super().__init__(**labelled)
        self.root, self.predict = root, predict
        self.opening = ImageOpening(ImageLook(image_size, channels), on_bad_sample, cache_dir, memory_limit)
        self.skipped: dict[str, int] = {}

    def parts(self) -> Mapping[str, Source]:
        """The images of the folder.

        Returns:
            All of them, or those of each split; in memory where they fit into ``memory_limit``.

        Raises:
            UserError: no such folder, no folders of classes in it, or an image that cannot be used.
        """
        tree = open_tree(self.root, "image folder")
        parts: dict[str, Source] = {}
        for part, folder in _folders_of_parts(tree).items():
            inside = f"{folder}/" if folder else ""
            classes = {name: tree.files(inside + name) for name in natural_order(tree.folders(folder))}
            name = f"'{self.root}'" if part == "all" else f"'{self.root}' {part}"
            parts[part], self.skipped[part] = self.opening.labelled(classes, name)
        return parts

    def unlabelled(self) -> tuple[Source, tuple[str, ...]]:
        """The images of ``predict``, named relative to it.

        Raises:
            UserError: ``predict`` was not given, holds no image, or one that cannot be used.
        """
        source, names, self.skipped["predict"] = self.opening.unlabelled(self.predict)
        return source, names

    def protocol(self) -> dict[str, Any]:
        """As of the base, with the size of the images."""
        look = self.opening.look
        return super().protocol() | {"image_size": look.size, "channels": look.channels}


@dataclass(frozen=True)
class ImageOpening:
    """How image files are opened, for every part of the data in the same way.

    Args:
        look: how to look at a file.
        on_bad_sample: ``"error"`` or ``"skip"``.
        cache_dir: where decoded images are kept.
        memory_limit: bytes of decoded images to hold.

    Raises:
        UserError: no positive ``memory_limit`` or an unknown ``on_bad_sample``.
    """

    look: ImageLook
    on_bad_sample: OnBadSample = "error"
    cache_dir: str | None = None
    memory_limit: int = MEMORY_LIMIT

    def __post_init__(self) -> None:
        check_positive(memory_limit=self.memory_limit)
        check_choice("on_bad_sample", self.on_bad_sample, ON_BAD_SAMPLE)

    def labelled(self, classes: Mapping[str, Sequence[ImageFile]], name: str) -> tuple[Source, int]:
        """A source of the files of some classes.

        Args:
            classes: the files of each.
            name: how to call them in messages.

        Returns:
            The source, and how many files and empty classes were left out.

        Raises:
            UserError: files that cannot be used, if these are not to be left out, or no others.
        """
        source, left_out = open_images(
            classes,
            self.look,
            name,
            on_bad_sample=self.on_bad_sample,
            cache_dir=self.cache_dir,
            memory_limit=self.memory_limit,
        )
        if not len(source):
            raise UserError(f"{name}: none of the {left_out} images and classes can be used: mend them.")
        return source, left_out

    def unlabelled(self, path: str | None) -> tuple[Source, tuple[str, ...], int]:
        """A source of all image files in a folder or zip file, whatever folder they are in.

        Args:
            path: the folder; ``None`` where the user gave none.

        Returns:
            The source, the relative names of its files, and how many were left out.

        Raises:
            UserError: no folder, no image in it, or images that cannot be used, if these are not to be left out.
        """
        if path is None:
            raise UserError("nothing is given to label: set predict to a folder of images (--data.predict FOLDER).")
        files = open_tree(path, "predict folder").files()
        if not files:
            raise UserError(f"predict folder '{path}' holds no image: give one with images in it, at any depth.")
        problems = [file.problem for file in files if file.problem]
        files = [file for file in files if not file.problem]
        images = None
        if len(files) * math.prod(self.look.shape) <= self.memory_limit:
            images, bad = cached_images(files, self.look, self.cache_dir)
        else:
            bad = cached_headers(files, self.cache_dir)
        problems += bad.values()
        if problems and self.on_bad_sample == "error":
            raise UserError(
                f"{problems[0].rstrip('.')}; or set on_bad_sample=skip to label the others, {len(problems)} here "
                "cannot be used."
            )
        kept = [file for index, file in enumerate(files) if index not in bad]
        if not kept:
            raise UserError(f"predict folder '{path}': none of its {len(problems)} images can be used: mend them.")
        labels, name = np.zeros(len(kept), np.int64), f"'{path}'"
        names = tuple(file.name for file in kept)
        if images is None:
            return ImageFileSource(kept, labels, ["unlabelled"], name, self.look), names, len(problems)
        held = torch.from_numpy(np.delete(images, list(bad), axis=0))  # a copy of what is mapped from the cache
        return TensorSource(held, labels, ["unlabelled"], name), names, len(problems)


def _folders_of_parts(tree: ImageTree) -> dict[str, str]:
    """The folder of each part: the top for all samples, or one for each split.

    Raises:
        UserError: no folders of classes, or two folders for one split.
    """
    top = tree.folders()
    if not top:
        raise UserError(
            f"'{tree.root}' has no folders: put the images of each class into a folder of its own, <class>/<image>."
        )
    found: dict[str, str] = {}
    for name in top:
        split = split_of(name)
        if split in found:
            raise UserError(f"'{tree.root}' has two folders for {split}, '{found[split]}' and '{name}': merge them.")
        if split is not None:
            found[split] = name
    # a class may be called 'train': as a split it has company or is all there is, and has folders of classes inside
    if "train" in found and (len(found) > 1 or len(top) == 1) and tree.folders(found["train"]):
        for name in found.values():
            if not tree.folders(name):
                raise UserError(
                    f"'{tree.root}/{name}' has no folders of classes: put its images into <class>/<image>; images "
                    f"without labels belong into a folder outside of '{tree.root}', to be given as predict."
                )
        return {split: found[split] for split in SPLITS if split in found}
    if _is_training_of_zip(tree, top[0]):
        return {"train": ""}
    if len(top) == 1 and tree.folders(top[0]):
        raise UserError(
            f"'{tree.root}' holds the folder '{top[0]}' and nothing else: give the folder that holds those of the "
            f"classes, or those of the splits ({', '.join(SPLIT_NAMES)})."
        )
    return {"all": ""}


def _is_training_of_zip(tree: ImageTree, folder: str) -> bool:
    """Whether a zip file holds a training split alone, whose folder the tree took for a wrapper."""
    files = tree.files(folder)
    above = files[0].name.split(f"/{folder}/")[0] if files and files[0].zipped else ""
    return split_of(above.rpartition("/")[2]) == "train"
