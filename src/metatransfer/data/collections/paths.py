"""The collection that opens a path."""

import os
from pathlib import Path
from typing import Any

from metatransfer.checks import did_you_mean
from metatransfer.data.readers.array_files import SUFFIXES as ARRAY_SUFFIXES
from metatransfer.data.readers.array_files import open_arrays
from metatransfer.data.readers.image_files import IMAGE_SUFFIXES
from metatransfer.data.readers.tables import TABLE_SUFFIXES, read_table
from metatransfer.data.sources import Collection, split_of
from metatransfer.errors import UserError

_LOOK = 50  # rows of a table that are examined
_TEXTS = ("text", "texts", "sentence", "utterance", "review", "comment", "message", "question", "content", "body")
_LABELS = ("label", "labels", "class", "category", "target", "y", "intent", "species")
_PARTNERS = (("x", "y"), ("X", "y"), ("X", "Y"), ("images", "labels"), ("data", "labels"), ("features", "labels"))
_SENTENCE = 4  # minimum average number of words in a cell of texts


def describe_path(path: str | Path) -> dict[str, Any]:
    """The collection that opens a path, found from its content.

    - a folder or zip file: :class:`ImageFolder`
    - a table with a column of image files: :class:`ImageTable`
    - a table with a column of texts: :class:`Texts`
    - any other table: :class:`Table`
    - ``.npz``, ``.npy``, ``.mat``, ``.pt``, ``.safetensors`` or ``.svm``: :class:`Arrays`

    Returns:
        ``{"class_path": ..., "init_args": {...}}`` as in a configuration file.

    Raises:
        UserError: the path does not exist, or no collection can open it.
    """
    place = Path(path).expanduser()
    suffix = place.suffix.lower()
    if not place.exists():
        raise UserError(f"the data '{path}' does not exist as a path{_meant(str(path), place)}")
    if place.is_dir() or suffix == ".zip":
        return _described("ImageFolder", root=str(place))
    if suffix in ARRAY_SUFFIXES:
        unlabelled = suffix in (".npy", ".npz") and list(open_arrays(str(place))) == ["x"]  # .npz if it is sparse
        labels = _labels_beside(place) if unlabelled else None
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


def _meant(given: str, place: Path) -> str:
    from metatransfer.data import collections

    known = [] if os.sep in given else [name for name in collections.__all__ if name[0].isupper()]
    siblings = [entry.name for entry in place.parent.iterdir()] if place.parent.is_dir() else []
    near = did_you_mean(place.name, [*siblings, *known])
    return near if near != "." else ": give an existing path, or the name of a collection, e.g. Glyphs."


def _labels_beside(file: Path) -> str | None:
    """The file of labels beside a file of samples, by their usual names."""
    for samples, labels in _PARTNERS:
        other = file.with_name(f"{labels}{file.stem.removeprefix(samples)}.npy")
        if file.stem.startswith(samples) and other.is_file() and other != file:
            return str(other)
    return None


def _table(file: Path) -> dict[str, Any]:
    columns = read_table(str(file)).columns
    heads = {name: [cell for cell in cells[:_LOOK] if cell is not None] for name, cells in columns.items()}
    words = {name: cells for name, cells in heads.items() if cells and all(isinstance(cell, str) for cell in cells)}
    label = next((name for name in _LABELS if name in columns), "label")
    given = {} if label == "label" else {"label": label}
    if "split" in columns and all(split_of(str(cell)) for cell in columns["split"]):
        given["split"] = "split"
    images = next((name for name, cells in words.items() if all(map(_is_image, cells))), None)
    if images is not None:
        return _described("ImageTable", path=str(file), **({} if images == "filename" else {"file": images}), **given)
    lengths = {name: sum(len(cell.split()) for cell in cells) / len(cells) for name, cells in words.items()}
    sentences = (name for name in words if name != label and lengths[name] >= _SENTENCE)
    text = next((name for name in _TEXTS if name in words), None) or next(sentences, None)
    if text is not None:
        return _described("Texts", path=str(file), **({} if text == "text" else {"text": text}), **given)
    return _described("Table", path=str(file), **given)


def _is_image(cell: str) -> bool:
    return os.path.splitext(cell)[1].lower() in IMAGE_SUFFIXES
