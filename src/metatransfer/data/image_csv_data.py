"""Labelled images that a table lists."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metatransfer.checks import did_you_mean
from metatransfer.data.division import SPLIT_NAMES, natural_order, split_of
from metatransfer.data.folders import IMAGE_SUFFIXES
from metatransfer.data.images import MEMORY_LIMIT, ImageFile, ImageLook, ImageTree, OnBadSample, open_tree
from metatransfer.data.labelled_images import ImageOpening, LabelledImages
from metatransfer.data.samplers import SPLITS
from metatransfer.data.sources import Source
from metatransfer.data.table_episodes import Table, read_table
from metatransfer.data.unlabelled import UnlabelledPart
from metatransfer.errors import UserError


class ImageCSVDataModule(LabelledImages):
    """Images listed by a CSV or TSV file, one row for each: its file and its class.

    With the column ``split`` the rows say themselves what they are for (``train``, ``val`` and ``test``, or ``valid``,
    ``validation``); without it every class is divided at random. An image is scaled by its shorter side and cut out in
    the centre. The remaining arguments are those of :class:`LabelledDataModule`::

        lightning fit --config CONFIG.yaml --data ImageCSVDataModule --data.path FILE.csv --data.root FOLDER

    Args:
        path: ``.csv``, ``.tsv``, ``.tab`` or ``.txt``, in UTF-8, with named columns.
        root: folder or zip file of the images; the folder of ``path`` where left out.
        file: column of the file names, relative to ``root``.
        label: column of the classes; a target domain needs none.
        split: column with ``train``, ``val`` or ``test`` in each row.
        suffix: ending of the files where the column leaves it out, e.g. ``".jpg"``.
        delimiter: between fields; by the file's ending where left out.
        image_size: side of a sample in pixels.
        channels: 3 for RGB, 1 for grey.
        on_bad_sample: ``"error"`` or ``"skip"``: leave out and count images that are missing or cannot be used.
        cache_dir: where decoded images are kept; ``~/.cache/metatransfer`` or ``METATRANSFER_CACHE`` without it.
        memory_limit: bytes of decoded images up to which a split is held in memory; larger ones are decoded when drawn.
        predict: folder or zip file of images for ``lightning predict`` to label, at any depth.
        **labelled: arguments of :class:`LabelledDataModule`.

    Attributes:
        skipped: images left out, for each part that was opened.

    Raises:
        UserError: an impossible size, channels or ``on_bad_sample``, or as :class:`LabelledDataModule`.
    """

    def __init__(
        self,
        path: str,
        root: str | None = None,
        file: str = "filename",
        label: str = "label",
        split: str | None = None,
        suffix: str = "",
        delimiter: str | None = None,
        image_size: int = 224,
        channels: int = 3,
        on_bad_sample: OnBadSample = "error",
        cache_dir: str | None = None,
        memory_limit: int = MEMORY_LIMIT,
        predict: str | None = None,
        **labelled: Any,  # noqa: ANN401
    ) -> None:
        super().__init__(**labelled)
        self.path, self.root = path, root if root is not None else str(Path(path).parent)
        self.columns = {"file": file, "label": label} | ({"split": split} if split is not None else {})
        self.suffix, self.delimiter, self.predict = suffix, delimiter, predict
        self.opening = ImageOpening(ImageLook(image_size, channels), on_bad_sample, cache_dir, memory_limit)
        self.skipped: dict[str, int] = {}

    def parts(self) -> Mapping[str, Source]:
        """The images that the table lists.

        Returns:
            All of them, or those of each split; in memory where they fit into ``memory_limit``.

        Raises:
            UserError: a table that cannot be read, a column that does not exist, an empty field, a file that is listed
                twice or does not exist, or an image that cannot be used.
        """
        table = read_table(self.path, self.delimiter)
        columns = {argument: self._column(table, argument) for argument in self.columns}
        self._check_once(table, columns["file"], columns["label"])
        tree = open_tree(self.root, "image folder")
        parts: dict[str, Source] = {}
        for part, rows in self._rows_of_parts(table, columns).items():
            classes: dict[str, list[ImageFile]] = {name: [] for name in natural_order(columns["label"][rows])}
            for row in rows.tolist():
                classes[columns["label"][row]].append(self._find(tree, str(columns["file"][row]), table.lines[row]))
            name = f"'{self.path}'" if part == "all" else f"'{self.path}' {part}"
            parts[part], self.skipped[part] = self.opening.labelled(classes, name)
        return parts

    def unlabelled_parts(self) -> Mapping[str, UnlabelledPart]:
        """The images in the order of the table, with or without the column of the classes.

        Raises:
            UserError: as :meth:`parts`, but for a column ``label`` that does not exist.
        """
        table = read_table(self.path, self.delimiter)
        known = self.columns["label"] != "label" or "label" in table.columns  # another name is there on purpose
        wanted = [argument for argument in self.columns if argument != "label" or known]
        columns = {argument: self._column(table, argument) for argument in wanted}
        words = columns.get("label")
        self._check_once(table, columns["file"], columns["file"] if words is None else words)
        tree = open_tree(self.root, "image folder")
        parts: dict[str, UnlabelledPart] = {}
        for part, rows in self._rows_of_parts(table, columns).items():
            files = [self._find(tree, str(columns["file"][row]), table.lines[row]) for row in rows.tolist()]
            given = words[rows].tolist() if words is not None else None
            parts[part] = self._withheld(files, given, part, f"'{self.path}'")
        return parts

    # ---- the table

    def _column(self, table: Table, argument: str) -> NDArray[np.str_]:
        name = self.columns[argument]
        if name not in table.columns:
            raise UserError(
                f"'{self.path}' has no column '{name}' ({argument}), only {', '.join(table.columns)}"
                f"{did_you_mean(name, table.columns)}"
            )
        column = table.cells[:, table.columns.index(name)]
        # words such as 'none' may well be a class
        if (column == "").any():
            line = table.lines[int((column == "").argmax())]
            raise UserError(f"'{self.path}', line {line}: '{name}' is empty: complete the row or remove it.")
        return column

    def _check_once(self, table: Table, files: NDArray[np.str_], labels: NDArray[np.str_]) -> None:
        """A file in two rows could be learned from and tested on.

        Raises:
            UserError: with both lines.
        """
        seen: dict[PurePosixPath, int] = {}
        for row, name in enumerate(files.tolist()):
            other = seen.setdefault(PurePosixPath(name.replace("\\", "/")), row)
            if other != row:
                told = f", as '{labels[other]}' and as '{labels[row]}'" if labels[other] != labels[row] else ""
                raise UserError(
                    f"'{self.path}', line {table.lines[row]}: '{name}' stands already in line {table.lines[other]}"
                    f"{told}: keep one of the two rows."
                )

    def _rows_of_parts(self, table: Table, columns: Mapping[str, NDArray[np.str_]]) -> dict[str, NDArray[np.int64]]:
        if "split" not in columns:
            return {"all": np.arange(len(table.cells))}
        words, name = columns["split"], self.columns["split"]
        found = {word: split_of(word) for word in np.unique(words).tolist()}
        for word, split in found.items():
            if split is None:
                line = table.lines[int((words == word).argmax())]
                known = ", ".join(one for names in SPLIT_NAMES.values() for one in names)
                raise UserError(
                    f"'{self.path}', line {line}: column '{name}' holds '{word}', but must hold one of {known}."
                )
        splits = np.array([found[word] for word in words.tolist()], dtype=np.str_)
        if "train" not in splits:
            raise UserError(f"'{self.path}': column '{name}' says train in no row: a classifier needs some to learn.")
        return {split: np.flatnonzero(splits == split) for split in SPLITS if split in splits}

    def _find(self, tree: ImageTree, name: str, line: int) -> ImageFile:
        """The file of a row; tables from Windows have backslashes."""
        asked = str(PurePosixPath(name + self.suffix))
        file = tree.find(asked) or (tree.find(asked.replace("\\", "/")) if "\\" in asked else None)
        if file is not None:
            return file
        endings = [ending for ending in sorted(IMAGE_SUFFIXES) if not self.suffix and tree.find(name + ending)]
        advice = (
            f"set suffix to '{endings[0]}'" if endings else "mend the name, or give the folder of the images by root"
        )
        problem = f"'{self.path}', line {line}: '{asked}' does not exist in '{tree.root}': {advice}."
        return ImageFile(tree.root, name, problem=problem)
