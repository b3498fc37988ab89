"""Episodes of any folder of images."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from metatransfer.checks import check_choice, check_file, check_positive, did_you_mean
from metatransfer.data.division import SPLIT_NAMES, RandomDivision
from metatransfer.data.episodic import EpisodicDataModule
from metatransfer.data.images import (
    MEMORY_LIMIT,
    ON_BAD_SAMPLE,
    ImageFile,
    ImageLook,
    ImageTree,
    OnBadSample,
    check_class_names,
    open_images,
    open_tree,
)
from metatransfer.data.samplers import SPLITS
from metatransfer.data.sources import Source
from metatransfer.errors import UserError


class ImageFolderEpisodes(EpisodicDataModule):
    """Photographs or any other images, one folder per class, in a folder or a zip file.

    Three layouts are known, the first that fits being taken:

    - lists: ``train.csv``, ``val.csv`` and ``test.csv`` with the columns ``filename`` and ``label``, over images in
      ``root`` or ``root/images``, as mini-ImageNet is passed around (Ravi and Larochelle 2017);
    - ``<split>/<class>/<image>`` with the splits ``train``, ``val`` (or ``valid``, ``validation``) and ``test``, as
      tiered-ImageNet, CUB and CIFAR-FS are;
    - ``<class>/<image>``: the classes are divided at random, by ``split_seed``, each split getting at least the classes
      of one episode.

    An image is scaled by its shorter side and cut out in the centre. The remaining arguments are those of
    :class:`EpisodicDataModule`.

    Args:
        root: the folder, or a zip file of it.
        image_size: side of a sample in pixels.
        channels: 3 for RGB, 1 for grey.
        split_files: list of each split, or the folder that holds ``train.csv``, ``val.csv`` and ``test.csv``; ``root``
            itself is tried without it.
        split_seed: which random division of the classes, where they come undivided.
        val_fraction: part of the classes for validation, where they come undivided.
        test_fraction: part of the classes for the test, where they come undivided.
        on_bad_sample: ``"error"`` or ``"skip"``: leave out and count images that cannot be used and empty classes.
        cache_dir: where decoded images are kept; ``~/.cache/metatransfer`` or ``METATRANSFER_CACHE`` without it.
        memory_limit: bytes of decoded images up to which a split is held in memory; larger ones are decoded when drawn.
        **episodes: arguments of :class:`EpisodicDataModule`.

    Attributes:
        skipped: images and empty classes left out, for each split that was opened.

    Raises:
        UserError: fractions that leave no training classes, an impossible size, channels or ``on_bad_sample``.
    """

    def __init__(
        self,
        root: str,
        image_size: int = 84,
        channels: int = 3,
        split_files: dict[str, str] | str | None = None,
        split_seed: int = 0,
        val_fraction: float = 0.2,
        test_fraction: float = 0.2,
        on_bad_sample: OnBadSample = "error",
        cache_dir: str | None = None,
        memory_limit: int = MEMORY_LIMIT,
        **episodes: Any,  # noqa: ANN401
    ) -> None:
        super().__init__(**episodes)
        check_positive(memory_limit=memory_limit)
        check_choice("on_bad_sample", on_bad_sample, ON_BAD_SAMPLE)
        if isinstance(split_files, dict):
            for split in split_files:
                check_choice("split_files' split", split, SPLITS)
        self.root = root
        self.look = ImageLook(image_size, channels)
        self.split_files = split_files
        self.division = RandomDivision(split_seed, val_fraction, test_fraction)
        self.on_bad_sample = on_bad_sample
        self.cache_dir = cache_dir
        self.memory_limit = memory_limit
        self.skipped: dict[str, int] = {}
        self._tree: ImageTree | None = None

    @property
    def tree(self) -> ImageTree:
        """The image files, found when first asked for."""
        if self._tree is None:
            self._tree = open_tree(self.root, "image folder")
        return self._tree

    def source(self, split: str) -> Source:
        """The images of a split.

        Args:
            split: ``"train"``, ``"val"`` or ``"test"``.

        Returns:
            A source held in memory where it fits into ``memory_limit``.
        """
        source, self.skipped[split] = open_images(
            self._classes(split),
            self.look,
            f"'{self.root}' {split}",
            on_bad_sample=self.on_bad_sample,
            cache_dir=self.cache_dir,
            memory_limit=self.memory_limit,
        )
        return source

    def convert_image(self, image: Image.Image) -> Tensor:
        """An image as the training images look: ``(C, H, W)`` in [0, 1]."""
        return self.look.sample(image)

    def protocol(self) -> dict[str, Any]:
        """As of the base, with the way the classes were divided and the size of the images."""
        return super().protocol() | {
            "split": self._layout(),
            "image_size": self.look.size,
            "channels": self.look.channels,
        }

    # ---- which files

    def _layout(self) -> str:
        if self._lists():
            return "by lists"
        if self._split_folders():
            return "by folders"
        return str(self.division)

    def _classes(self, split: str) -> Mapping[str, Sequence[ImageFile]]:
        lists, folders = self._lists(), self._split_folders()
        if lists:
            return self._listed(lists, split)
        if folders:
            if split not in folders:
                raise UserError(
                    f"'{self.tree.root}' has the folders {', '.join(folders.values())}, but none for {split} "
                    f"({' or '.join(SPLIT_NAMES[split])}): add it, or give the one folder of classes to be divided."
                )
            names = {one: self.tree.folders(folder) for one, folder in folders.items()}
            check_class_names(names)
            return {name: self.tree.files(f"{folders[split]}/{name}") for name in names[split]}
        return {name: self.tree.files(name) for name in self._drawn()[split]}

    def _split_folders(self) -> dict[str, str]:
        """The folder of each split; empty where the classes come undivided."""
        top = self.tree.folders()
        found = {
            split: name for split, names in SPLIT_NAMES.items() for name in reversed(names) if name in top
        }  # fmt: skip
        # a class may be called 'train': as a split it has company, and folders of classes inside
        return found if "train" in found and len(found) > 1 and self.tree.folders(found["train"]) else {}

    def _drawn(self) -> dict[str, list[str]]:
        """The classes of each split, divided at random.

        Raises:
            UserError: too few for an episode of each split.
        """
        names = self.tree.folders()
        check_class_names({self.tree.root: names})
        where, what = f"'{self.tree.root}'", "folders of classes"
        divided = self.division(names, self.num_ways, self.eval_num_ways, where, what)
        return {split: sorted(found) for split, found in divided.items()}

    # ---- lists

    def _lists(self) -> dict[str, Path]:
        if isinstance(self.split_files, dict):
            return {split: Path(path) for split, path in self.split_files.items()}
        folder = Path(self.root if self.split_files is None else self.split_files)
        found = {split: folder / f"{split}.csv" for split in SPLITS}
        return found if self.split_files is not None or found["train"].is_file() else {}

    def _listed(self, lists: Mapping[str, Path], split: str) -> dict[str, list[ImageFile]]:
        if split not in lists:
            raise UserError(f"split_files has no list for {split}, only for {', '.join(lists)}: add it.")
        rows = {one: _rows(path) for one, path in lists.items() if one == split or path.is_file()}
        check_class_names({one: list(dict.fromkeys(label for _, label in found)) for one, found in rows.items()})
        classes: dict[str, list[ImageFile]] = {}
        seen: set[str] = set()
        for name, label in rows[split]:
            if name in seen:
                raise UserError(f"'{lists[split]}' names '{name}' twice: keep one of the two rows.")
            seen.add(name)
            classes.setdefault(label, []).append(self._find(name, lists[split]))
        return dict(sorted(classes.items()))

    def _find(self, name: str, path: Path) -> ImageFile:
        file = self.tree.find(name) or self.tree.find(f"images/{name}")
        if file is not None:
            return file
        problem = f"'{path}' names '{name}', which is neither in '{self.tree.root}' nor in its folder 'images'."
        return ImageFile(self.tree.root, name, problem=problem)


def _rows(path: Path) -> list[tuple[str, str]]:
    """``(filename, label)`` of each row of a list.

    Raises:
        UserError: no such file, no such columns, an empty field, or no CSV at all.
    """
    with check_file(path, "split file").open(newline="", encoding="utf-8-sig") as file:
        try:
            table = csv.DictReader(file)
            columns = [name.strip() for name in table.fieldnames or ()]
            for needed in ("filename", "label"):
                if needed not in columns:
                    raise UserError(
                        f"'{path}' must have a column '{needed}' in its first row, but has "
                        f"{', '.join(columns) or 'none'}{did_you_mean(needed, columns)}"
                    )
            table.fieldnames = columns
            rows = [(row["filename"] or "", row["label"] or "") for row in table]
        except (UnicodeDecodeError, csv.Error) as error:
            raise UserError(f"'{path}' cannot be read as a CSV file ({error}): save it as CSV in UTF-8.") from error
    for number, (name, label) in enumerate(rows, start=2):
        if not name.strip() or not label.strip():
            raise UserError(f"'{path}', line {number}: filename or label is empty: complete the row or remove it.")
    return [(name.strip(), label.strip()) for name, label in rows]
