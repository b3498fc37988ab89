"""Labelled images listed in a table."""

from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

from metatransfer.data.collections.image_collection import ImageCollection
from metatransfer.data.readers.image_files import IMAGE_SUFFIXES, ImageFile, ImageTree, open_tree
from metatransfer.data.readers.image_look import ImageLook
from metatransfer.data.readers.image_source import MEMORY_LIMIT, ImageReader, OnBadSample
from metatransfer.data.readers.tables import Table, read_table
from metatransfer.data.sources import Source, UnlabelledPart, natural_order
from metatransfer.errors import UserError


class ImageTable(ImageCollection):
    """Images listed in a table, with a row for each file and its class.

    A column ``split`` with ``train``, ``val`` (``valid``, ``validation``) and ``test`` divides the images; without it
    they are undivided. File names may omit their extension, such as ``.jpg``. Images are resized by their shorter side
    and cropped at the centre.

    Args:
        path: ``.csv``, ``.tsv``, ``.tab``, ``.txt``, ``.jsonl`` or ``.parquet`` file with named columns.
        root: folder or zip file of the images. Defaults to the folder of ``path``.
        file: column of the file names, relative to ``root``.
        label: column of the classes; a target domain needs none.
        split: column with ``train``, ``val`` or ``test`` in each row.
        image_size: side of a sample in pixels.
        channels: 3 for RGB, 1 for grey.
        on_bad_sample: ``"error"``, or ``"skip"`` to leave out and count missing and unusable images.
        memory_limit: maximum bytes of decoded images in memory for each split; larger splits are decoded when drawn.
        bits: bits that images of more than 8 bits use, if these are fewer than they store, e.g. 12 of 16. By default
            the largest value that a file can store is white.
    """

    def __init__(
        self,
        path: str,
        root: str | None = None,
        file: str = "filename",
        label: str = "label",
        split: str | None = None,
        image_size: int = 84,
        channels: int = 3,
        on_bad_sample: OnBadSample = "error",
        memory_limit: int = MEMORY_LIMIT,
        bits: int | None = None,
    ) -> None:
        self.path, self.root = path, root if root is not None else str(Path(path).parent)
        self.file, self.label, self.split = file, label, split
        self.reader = ImageReader(ImageLook(image_size, channels, bits=bits), on_bad_sample, memory_limit)

    def parts(self) -> Mapping[str, Source]:
        """The images, in memory if they fit into ``memory_limit``."""
        table = read_table(self.path)
        labels = table.labels(self.label)
        files = self._files(table, labels)
        parts: dict[str, Source] = {}
        for part, rows in table.rows(self.split).items():
            classes: dict[str, list[ImageFile]] = {name: [] for name in natural_order([labels[row] for row in rows])}
            for row in rows:
                classes[labels[row]].append(files[row])
            parts[part], self.skipped[part] = self.reader.labelled(classes, self._name(part))
        return parts

    def unlabelled_parts(self) -> Mapping[str, UnlabelledPart]:
        """The images in the order of the table, with or without a column of classes."""
        table = read_table(self.path)
        known = self.label != "label" or "label" in table.columns  # another name was set by the user
        labels = table.labels(self.label) if known else None
        files = self._files(table, labels)
        return {
            part: self._withheld([files[row] for row in rows], [labels[row] for row in rows] if labels else None, part)
            for part, rows in table.rows(self.split).items()
        }

    def _files(self, table: Table, labels: Sequence[str] | None) -> list[ImageFile]:
        # the file of each row; a file in two rows might be used for both training and testing
        tree = open_tree(self.root, "image folder")
        files = [_find(tree, name, table.at(row)) for row, name in enumerate(table.filled(self.file, "file"))]
        seen: dict[str, int] = {}
        for row, file in enumerate(files):
            other = seen.setdefault(file.name.replace("\\", "/"), row)
            if other != row:
                told = (
                    f", as '{labels[other]}' and as '{labels[row]}'" if labels and labels[other] != labels[row] else ""
                )
                raise UserError(
                    f"{table.at(row)}: '{file.name}' is already in {table.unit} {table.lines[other]}{told}: keep "
                    "one of the two rows."
                )
        return files


def _find(tree: ImageTree, name: str, where: str) -> ImageFile:
    """The file of a row, possibly with backslashes or without its extension."""
    for asked in dict.fromkeys(str(PurePosixPath(one)) for one in (name, name.replace("\\", "/"))):
        exact = tree.find(asked)
        found = [exact] if exact else [file for ending in IMAGE_SUFFIXES if (file := tree.find(asked + ending))]
        if len(found) == 1:
            return found[0]
        if found:
            both = " and ".join(sorted(file.name for file in found)[:2])
            return ImageFile(tree.root, name, problem=f"{where}: '{name}' may be {both}: add the extension.")
    problem = (
        f"{where}: '{name}' does not exist in '{tree.root}': fix the name, or set root to the folder of the images."
    )
    return ImageFile(tree.root, name, problem=problem)
