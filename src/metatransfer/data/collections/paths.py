"""The collection that opens a path."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from metatransfer.checks import did_you_mean
from metatransfer.data.readers.array_files import SUFFIXES as ARRAY_SUFFIXES
from metatransfer.data.readers.image_files import IMAGE_SUFFIXES
from metatransfer.data.readers.tables import TABLE_SUFFIXES, Table, read_table
from metatransfer.data.sources import Collection, split_of
from metatransfer.errors import UserError

_LOOK = 50  # rows of a table that are examined
_TEXTS = ("text", "texts", "sentence", "utterance", "review", "comment", "message", "question", "content", "body")
_LABELS = ("label", "labels", "class", "category", "target", "y", "intent", "species")
_PARTNERS = (("x", "y"), ("X", "y"), ("X", "Y"), ("images", "labels"), ("data", "labels"), ("features", "labels"))
_SENTENCE = 4  # minimum average number of words in a cell of texts


def describe_path(path: str | Path) -> dict[str, Any]:
    """The collection that opens a path, found from its content.

    - a folder or a zip file of images: :class:`ImageFolder`
    - a table with a column of image files: :class:`ImageTable`
    - a table with a column of texts: :class:`Texts`
    - any other table: :class:`Table`
    - ``.npz``, ``.npy``, ``.mat``, ``.pt`` or ``.safetensors``: :class:`Arrays`

    Args:
        path: ``~`` is the home folder.

    Returns:
        ``{"class_path": ..., "init_args": {...}}`` as in a configuration file.

    Raises:
        UserError: the path does not exist, or no collection can open it.
    """
    place = Path(path).expanduser()
    suffix = place.suffix.lower()
    if place.is_dir():
        _check_images(place)
        return _described("ImageFolder", root=str(place))
    if not place.exists():
        raise UserError(f"the data '{path}' {_not_there(str(path), place)}")
    if suffix == ".zip":
        return _described("ImageFolder", root=str(place))
    if suffix in ARRAY_SUFFIXES:
        labels = _labels_beside(place) if suffix == ".npy" else None
        return _described("Arrays", path=str(place), **({"labels_path": labels} if labels else {}))
    if suffix in TABLE_SUFFIXES:
        return _table(place)
    if suffix in IMAGE_SUFFIXES:
        raise UserError(f"the data '{path}' is a single image: give a folder with one folder of images per class.")
    raise UserError(
        f"the data '{path}' is neither a folder or zip file of images, nor a table ({', '.join(TABLE_SUFFIXES)}), "
        f"nor a file of arrays ({', '.join(ARRAY_SUFFIXES)}): convert it, or unpack it if it is an archive."
    )


def open_path(path: str | Path) -> Collection:
    """Creates the collection of :func:`describe_path`."""
    from metatransfer.data import collections

    described = describe_path(path)
    made: Collection = getattr(collections, described["class_path"].rpartition(".")[2])(**described["init_args"])
    return made


def _described(name: str, **arguments: Any) -> dict[str, Any]:  # noqa: ANN401
    return {"class_path": f"metatransfer.data.collections.{name}", "init_args": arguments}


def _not_there(given: str, place: Path) -> str:
    from metatransfer.data import collections

    known = [name for name in collections.__all__ if name[0].isupper()]
    named = get_close_matches(given.lower(), [name.lower() for name in known], n=1, cutoff=0.7)
    if named and os.sep not in given:
        name = next(one for one in known if one.lower() == named[0])
        return f"does not exist as a path, and is not the name of a collection. Did you mean {name}?"
    siblings = [entry.name for entry in place.parent.iterdir()] if place.parent.is_dir() else []
    near = did_you_mean(place.name, siblings)
    return (
        f"does not exist{near if near != '.' else ': give an existing path, or the name of a collection, e.g. Glyphs.'}"
    )


def _check_images(folder: Path) -> None:
    # stops at the first image, since a folder may contain millions
    found: list[str] = []
    for _, folders, files in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        if any(os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES for name in files):
            return
        found += files[: 3 - len(found)]
        if len(found) >= 3 and not folders:
            break
    inside = f"only files such as {', '.join(sorted(found)[:3])}" if found else "no files"
    raise UserError(
        f"the folder '{folder}' holds no images but {inside}: give a folder with a folder of images for each class, or "
        "one of these files."
    )


def _labels_beside(file: Path) -> str | None:
    """The file of labels beside a file of samples, by their usual names."""
    for samples, labels in _PARTNERS:
        other = file.with_name(f"{labels}{file.stem.removeprefix(samples)}{file.suffix}")
        if file.stem.startswith(samples) and other.is_file() and other != file:
            return str(other)
    return None


def _table(file: Path) -> dict[str, Any]:
    table = read_table(str(file))
    heads = {name: [cell for cell in cells[:_LOOK] if cell is not None] for name, cells in table.columns.items()}
    label = next((name for name in _LABELS if name in heads), None)
    given = {} if label in (None, "label") else {"label": label}
    given |= {"split": "split"} if _names_splits(table, heads) else {}
    images = next((name for name in heads if _holds_images(heads[name])), None)
    if images is not None:
        return _described("ImageTable", path=str(file), **({} if images == "filename" else {"file": images}), **given)
    text = next((name for name in _TEXTS if name in heads and _holds_words(heads[name])), None)
    text = text or next((name for name in heads if name != label and _holds_sentences(heads[name])), None)
    if text is not None:
        return _described("Texts", path=str(file), **({} if text == "text" else {"text": text}), **given)
    return _described("Table", path=str(file), **given)


def _names_splits(table: Table, heads: Mapping[str, Sequence[Any]]) -> bool:
    return "split" in heads and all(split_of(str(cell)) for cell in table.columns["split"])


def _holds_words(cells: Sequence[Any]) -> bool:
    return bool(cells) and all(isinstance(cell, str) for cell in cells)


def _holds_images(cells: Sequence[Any]) -> bool:
    return _holds_words(cells) and all(os.path.splitext(cell)[1].lower() in IMAGE_SUFFIXES for cell in cells)


def _holds_sentences(cells: Sequence[Any]) -> bool:
    return _holds_words(cells) and sum(len(cell.split()) for cell in cells) >= _SENTENCE * len(cells)
