"""Labelled images of any folder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from metatransfer.data.division import SPLIT_NAMES, natural_order, split_of
from metatransfer.data.images import (
    MEMORY_LIMIT,
    ImageLook,
    ImageTree,
    OnBadSample,
    open_tree,
)
from metatransfer.data.labelled_images import ImageOpening, LabelledImages, by_name_and_content
from metatransfer.data.samplers import SPLITS
from metatransfer.data.sources import Source
from metatransfer.data.unlabelled import UnlabelledPart
from metatransfer.errors import UserError


class ImageFolderDataModule(LabelledImages):
    """Photographs or any other images, one folder per class, in a folder or a zip file.

    Two layouts are known:

    - ``<class>/<image>``: every class is divided at random among training, validation and test;
    - ``<split>/<class>/<image>`` with the split ``train`` and, where there are any, ``val`` (or ``valid``,
      ``validation``) and ``test``. What is missing of ``val`` is taken from the training; a test never is.

    As a target domain, the top or a split may also hold images without folders of classes.

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

    def unlabelled_parts(self) -> Mapping[str, UnlabelledPart]:
        """The images sorted by the names of the files alone, with or without folders of classes.

        Raises:
            UserError: no such folder, no image in it, or one that cannot be used.
        """
        tree = open_tree(self.root, "image folder")
        parts: dict[str, UnlabelledPart] = {}
        for part, (folder, flat) in _folders_of_target(tree).items():
            inside = f"{folder}/" if folder else ""
            names = [None] if flat else natural_order(tree.folders(folder))
            found = [(one, name) for name in names for one in tree.files(folder if name is None else inside + name)]
            if not found:
                raise UserError(f"'{tree.root}/{folder}' holds no image: add some.")
            order = by_name_and_content([file for file, _ in found])
            words = None if flat else [str(found[index][1]) for index in order]
            parts[part] = self._withheld([found[index][0] for index in order], words, part, f"'{self.root}'")
        return parts


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


def _folders_of_target(tree: ImageTree) -> dict[str, tuple[str, bool]]:
    """The folder of each part, and whether images lie in it without folders of classes.

    Raises:
        UserError: two folders for one split, or folders that are neither classes nor splits.
    """
    top = tree.folders()
    if not top or (len(top) == 1 and not tree.folders(top[0]) and not _is_training_of_zip(tree, top[0])):
        only = top[0] if top else ""
        return {split_of(only) or "all": (only, True)}
    splits = [split_of(name) for name in top]
    if "train" in splits and None not in splits and len(set(splits)) == len(splits):
        found = {str(split): name for split, name in zip(splits, top, strict=True)}
        return {split: (found[split], not tree.folders(found[split])) for split in SPLITS if split in found}
    return {part: (folder, False) for part, folder in _folders_of_parts(tree).items()}


def _is_training_of_zip(tree: ImageTree, folder: str) -> bool:
    """Whether a zip file holds a training split alone, whose folder the tree took for a wrapper."""
    files = tree.files(folder)
    above = files[0].name.split(f"/{folder}/")[0] if files and files[0].zipped else ""
    return split_of(above.rpartition("/")[2]) == "train"
