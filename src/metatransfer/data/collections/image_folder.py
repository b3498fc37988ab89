"""Labelled images in folders."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from metatransfer.checks import check_choice
from metatransfer.data.collections.image_collection import ImageCollection, report_passed_over
from metatransfer.data.readers.image_files import ImageFile, ImageTree, kind_of, open_tree
from metatransfer.data.readers.image_look import ImageLook
from metatransfer.data.readers.image_source import (
    MEMORY_LIMIT,
    ImageReader,
    OnBadSample,
    by_name_and_content,
    check_class_names,
)
from metatransfer.data.readers.tables import read_table
from metatransfer.data.sources import SPLIT_NAMES, SPLITS, LazyParts, Source, UnlabelledPart, natural_order, split_of
from metatransfer.errors import UserError


class ImageFolder(ImageCollection):
    """Photographs or other images, with one folder per class, in a folder or a zip file.

    The first of these layouts that fits is used:

    - lists: ``train.csv``, ``val.csv`` and ``test.csv`` with the columns ``filename`` and ``label``, and images in
      ``root`` or ``root/images``, as in mini-ImageNet (Ravi and Larochelle 2017);
    - ``<split>/<class>/<image>`` with the split ``train`` and optionally ``val`` (or ``valid``, ``validation``,
      ``dev``) and ``test``, as in tiered-ImageNet, CUB and CIFAR-FS; names such as ``training``, ``test_set`` or
      ``seg_test`` are also recognised;
    - ``<class>/<image>``, undivided.

    As a target domain, the top or a split may also contain images without folders of classes. Images are resized by
    their shorter side and cropped at the centre. Decoded images are cached in the folder of the environment variable
    ``METATRANSFER_CACHE``, by default ``~/.cache/metatransfer``.

    Args:
        root: the folder, or a zip file of it.
        image_size: side of a sample in pixels.
        channels: 3 for RGB, 1 for grey.
        split_files: the list of each split, or the folder of ``train.csv``, ``val.csv`` and ``test.csv``. Defaults to
            the lists in ``root``, if there are any.
        on_bad_sample: ``"error"``, or ``"skip"`` to leave out and count unusable images and empty classes.
        memory_limit: maximum bytes of decoded images in memory for each split; larger splits are decoded when drawn.
        bits: bits that images of more than 8 bits use, if these are fewer than they store, e.g. 12 of 16. By default
            the largest value that a file can store is white.
    """

    def __init__(
        self,
        root: str,
        image_size: int = 84,
        channels: int = 3,
        split_files: dict[str, str] | str | None = None,
        on_bad_sample: OnBadSample = "error",
        memory_limit: int = MEMORY_LIMIT,
        bits: int | None = None,
    ) -> None:
        for split in split_files if isinstance(split_files, dict) else ():
            check_choice("split_files' split", split, SPLITS)
        self.root = self.path = root
        self.split_files = split_files
        self.reader = ImageReader(ImageLook(image_size, channels, bits=bits), on_bad_sample, memory_limit)
        self._layout = ""

    def parts(self) -> Mapping[str, Source]:
        """The images, in memory if they fit into ``memory_limit``."""
        tree = open_tree(self.root, "image folder")
        lists = self._lists()
        if lists:
            classes: dict[str, dict[str, Any]] = {split: _listed(tree, path) for split, path in lists.items()}
        else:
            folders = _folders_of_parts(tree)
            for folder in folders.values():
                tree.passed_over.update(map(kind_of, tree.entries(folder)[1]))
            classes = {
                part: {name: f"{folder}/{name}" if folder else name for name in natural_order(tree.folders(folder))}
                for part, folder in folders.items()
            }
        check_class_names(dict.fromkeys(name for names in classes.values() for name in names), f"'{self.root}'")
        self._layout = "by lists" if lists else "" if "all" in classes else "by folders"
        self.divided_by = _divided_by([set(names) for names in classes.values()])

        def opened(part: str) -> Source:
            files = {name: tree.files(at) if isinstance(at, str) else at for name, at in classes[part].items()}
            report_passed_over(tree.passed_over, self._name(part))
            source, self.skipped[part] = self.reader.labelled(files, self._name(part))
            return source

        return LazyParts(opened, list(classes))

    def unlabelled_parts(self) -> Mapping[str, UnlabelledPart]:
        """The images sorted by file name, with or without folders of classes."""
        tree = open_tree(self.root, "image folder")
        parts: dict[str, UnlabelledPart] = {}
        for part, folder in _folders_of_parts(tree, labelled=False).items():
            inside = f"{folder}/" if folder else ""
            names = natural_order(tree.folders(folder))
            flat = not names
            found = [(one, name) for name in names or [""] for one in tree.files((inside + name).rstrip("/"))]
            if not found:
                raise UserError(f"'{tree.root}/{folder}' holds no image: add some.")
            order = by_name_and_content([file for file, _ in found])
            words = None if flat else [found[index][1] for index in order]
            report_passed_over(tree.passed_over, self._name(part))
            parts[part] = self._withheld([found[index][0] for index in order], words, part)
        return parts

    def protocol(self) -> dict[str, Any]:
        """The size of the images, and the layout of the splits."""
        self.opened()
        return super().protocol() | ({"split": self._layout} if self._layout else {})

    def _lists(self) -> dict[str, Path]:
        if isinstance(self.split_files, dict):
            return {split: Path(self.split_files[split]) for split in SPLITS if split in self.split_files}
        folder = Path(self.root if self.split_files is None else self.split_files).expanduser()
        found = {split: folder / f"{split}.csv" for split in SPLITS}
        if self.split_files is None and not found["train"].is_file():
            return {}
        return {split: path for split, path in found.items() if split == "train" or path.is_file()}


def _divided_by(classes: Sequence[set[str]]) -> Literal["class", "sample"] | None:
    if len(classes) > 1 and len(set().union(*classes)) == sum(map(len, classes)):
        return "class"
    return "sample" if len(classes) > 1 and all(one == classes[0] for one in classes) else None


def _listed(tree: ImageTree, path: Path) -> dict[str, list[ImageFile]]:
    table = read_table(str(path))
    names, labels = table.filled("filename", "split_files"), table.filled("label", "split_files")
    classes: dict[str, list[ImageFile]] = {label: [] for label in natural_order(labels)}
    seen: set[str] = set()
    for name, label in zip(names, labels, strict=True):
        problem = f"'{path}' names '{name}', which is neither in '{tree.root}' nor in its folder 'images'."
        file = tree.find(name) or tree.find(f"images/{name}") or ImageFile(tree.root, name, problem=problem)
        if file.name in seen:
            raise UserError(f"'{path}' names '{name}' twice: keep one of the two rows.")
        seen.add(file.name)
        classes[label].append(file)
    return classes


def _folders_of_parts(tree: ImageTree, labelled: bool = True) -> dict[str, str]:
    """The folder of each split, or the top for undivided images."""
    top = tree.folders()
    if not top and labelled:
        raise UserError(
            f"'{tree.root}' has no folders: put the images of each class into a folder of its own, <class>/<image>."
        )
    if top and split_of(tree.prefix.rstrip("/").rpartition("/")[2]) == "train":  # a zip file with nothing else
        return {"train": ""}
    if len(top) == 1 and not labelled and not tree.folders(top[0]):
        return {split_of(top[0]) or "all": top[0]}
    found = {name: split for name in top if (split := split_of(name))}
    # such a folder is a split, not a class, if it contains folders
    if any(map(tree.folders, found)) or (not labelled and len(found) == len(top) and "train" in found.values()):
        _check_splits(tree, found, labelled)
        return {split: name for split in SPLITS for name in found if found[name] == split}
    if len(top) == 1 and tree.folders(top[0]):
        raise UserError(
            f"'{tree.root}' contains only the folder '{top[0]}': give the folder that contains the folders of the "
            f"classes or of the splits ({', '.join(SPLIT_NAMES)})."
        )
    return {"all": ""}


def _check_splits(tree: ImageTree, found: Mapping[str, str], labelled: bool) -> None:
    """Raises an error unless the folders, with the split of each, are those of splits."""
    others = [name for name in tree.folders() if name not in found]
    names = list(found.values())
    if "train" not in names or (others and len(found) == 1):
        odd = f"'{others[0]}' is not a split" if others else "none is for train"
        raise UserError(
            f"'{tree.root}' has folders named like splits ({', '.join(found)}), but {odd}: rename the folders to "
            "train, val and test, or move the other folders elsewhere."
        )
    for name, split in found.items():
        if names.count(split) > 1:
            both = " and ".join(f"'{one}'" for one in found if found[one] == split)
            raise UserError(f"'{tree.root}' has two folders for {split}, {both}: merge them.")
        if labelled and not tree.folders(name):
            raise UserError(
                f"'{tree.root}/{name}' has no folders of classes: put its images into <class>/<image>; put images "
                f"without labels into a folder outside of '{tree.root}', to be given as predict."
            )
    tree.passed_over.update(f"folder '{name}'" for name in others)
