"""Reads arrays from files of NumPy, torch, safetensors and MATLAB without running code from them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from metatransfer.checks import check_file, did_you_mean
from metatransfer.data.sources import SPLIT_NAMES
from metatransfer.errors import UserError

_Read: TypeAlias = Callable[[], Any]
SAMPLES = ("x", "X", "data", "images")
LABELS = ("y", "Y", "labels", "targets")
_FEATURES = ("features", "fts")  # samples of files of feature vectors, if none of the above exists
SUFFIXES = (".npz", ".npy", ".pt", ".pth", ".safetensors", ".mat")
_MATLAB_OTHERS = {"cell": "a cell array", "struct": "a struct", "sparse": "a sparse matrix"}


class ArrayFile(Mapping[str, NDArray[Any]]):
    """Arrays by name, read on access.

    Args:
        name: the file, for messages.
        arrays: a function that reads each array.
    """

    def __init__(self, name: str, arrays: Mapping[str, Callable[[], Any]]) -> None:
        self.name = name
        self._arrays = arrays

    def __getitem__(self, key: str) -> NDArray[Any]:
        """Reads an array."""
        try:
            return as_array(self._arrays[key](), f"{self.name}: '{key}'")
        except UserError:
            raise
        except MemoryError as error:
            raise UserError(f"{self.name}: '{key}' does not fit into memory: use a smaller array.") from error
        except Exception as error:  # the error depends on the decompressor
            raise UserError(f"{self.name}: '{key}' cannot be read ({_reason(error)}): save the file again.") from error

    def __contains__(self, key: object) -> bool:
        return key in self._arrays  # the inherited method reads the array

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)


def as_array(value: Any, where: str) -> NDArray[Any]:  # noqa: ANN401
    """Converts a value to an array of numbers or texts."""
    if isinstance(value, Tensor):
        value = value.detach()
        if value.layout != torch.strided or value.is_quantized:
            raise UserError(f"{where} is a sparse or quantised tensor, but must be an ordinary one: convert it.")
        if value.dtype in (torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2):  # unknown to numpy
            value = value.float()
        return np.asarray(value.cpu().resolve_conj().resolve_neg().numpy())
    if not isinstance(value, np.ndarray | list | tuple):
        raise UserError(f"{where} must be an array, but is of type {type(value).__name__}.")
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise UserError(f"{where} holds rows of different lengths: make them equally long.") from error
    if array.dtype.kind not in "biufcUS":
        kind = "Python objects" if array.dtype.kind == "O" else f"values of type {array.dtype}"
        raise UserError(f"{where} holds {kind}, but must hold numbers or texts: save it with such a dtype.")
    return array


def open_arrays(path: str, labels_path: str | None = None) -> ArrayFile:
    """Opens a file of arrays; those of ``.npy`` files and of a pair in a torch file are named ``x`` and ``y``."""
    file = check_file(Path(path).expanduser(), "array file", "put it there, or give its path")
    suffix = file.suffix.lower()
    if suffix not in SUFFIXES:
        table = suffix in (".csv", ".tsv", ".tab", ".txt", ".parquet")
        advice = "use the collection Table for a table" if table else "save it as one of these"
        raise UserError(
            f"array file '{path}' must end in {', '.join(SUFFIXES)}, but ends in '{suffix or file.name}': {advice}."
        )
    if labels_path is not None and suffix != ".npy":
        raise UserError(
            f"labels_path belongs to a .npy file of samples, but '{path}' ends in '{suffix}', where y names the labels."
        )
    if labels_path is not None and Path(labels_path).suffix.lower() != ".npy":
        raise UserError(f"labels_path '{labels_path}' must end in .npy: save the labels with numpy.save.")
    found = _arrays(file, suffix)
    if labels_path is not None:
        found["y"] = _arrays(check_file(Path(labels_path).expanduser(), "labels file"), ".npy")["x"]
    return ArrayFile(f"'{path}'", found)


def _arrays(file: Path, suffix: str) -> dict[str, _Read]:
    what, reading, save = _FORMATS[suffix]
    try:
        return reading(file)
    except UserError:
        raise
    except NotImplementedError as error:
        raise UserError(
            f"'{file}' is a MATLAB file of version 7.3, which is not supported: save it with save(..., '-v7')."
        ) from error
    except Exception as error:  # the error depends on the parser
        reason = "it is empty" if file.stat().st_size == 0 else _reason(error)
        raise UserError(f"'{file}' cannot be read as {what} ({reason}): {save}.") from error


def _reason(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    objects = "allow_pickle" in text or type(error).__name__ == "UnpicklingError"
    return "damaged, or with Python objects, which could run code" if objects else text.rstrip(".")[:120]


def _npy(file: Path) -> dict[str, _Read]:
    array = np.load(file, mmap_mode="r", allow_pickle=False)
    return {"x": lambda: array}


def _npz(file: Path) -> dict[str, _Read]:
    content = np.load(file, allow_pickle=False)
    if isinstance(content, np.ndarray):
        raise UserError(f"'{file}' is a single array: rename it to .npy, or save it with numpy.savez.")

    def read(name: str) -> Any:  # noqa: ANN401
        with np.load(file, allow_pickle=False) as opened:  # not kept open, because forked processes would share it
            return opened[name]

    with content:
        return {name: partial(read, name) for name in content.files}


def _torch(file: Path) -> dict[str, _Read]:
    content = torch.load(file, map_location="cpu", weights_only=True)
    if isinstance(content, list | tuple) and len(content) == 2:
        content = dict(zip("xy", content, strict=True))
    if not isinstance(content, Mapping):
        kind = f"{len(content)} values" if isinstance(content, Sequence) else f"a {type(content).__name__}"
        raise UserError(f"'{file}' must hold a dictionary of tensors or the pair (samples, labels), but holds {kind}.")
    return {str(name): partial(content.__getitem__, name) for name in content}


def _safetensors(file: Path) -> dict[str, _Read]:
    from safetensors import safe_open  # optional in most runs

    def read(name: str) -> Any:  # noqa: ANN401
        with safe_open(file, framework="pt") as opened:
            return opened.get_tensor(name)

    with safe_open(file, framework="pt") as opened:
        return {name: partial(read, name) for name in opened.keys()}  # noqa: SIM118 # not a mapping


def _matlab(file: Path) -> dict[str, _Read]:
    from scipy.io import loadmat, whosmat  # optional in most runs

    def read(name: str, kind: str) -> Any:  # noqa: ANN401
        if kind in ("cell", "struct", "sparse", "object", "opaque", "function"):
            raise UserError(
                f"'{file}': '{name}' is {_MATLAB_OTHERS.get(kind, 'an object')}, but must be a full array of numbers: "
                "convert it in MATLAB (cell2mat, full) and save it again."
            )
        return loadmat(file, variable_names=[name])[name]

    return {name: partial(read, name, kind) for name, _, kind in whosmat(file) if not name.startswith("__")}


_TORCH = ("tensors and plain values", _torch, "save it again with torch.save({'x': samples, 'y': labels}, path)")
_FORMATS: dict[str, tuple[str, Callable[[Path], dict[str, _Read]], str]] = {
    ".npz": ("arrays of numpy", _npz, "save it again"),
    ".npy": ("arrays of numpy", _npy, "save it again"),
    ".pt": _TORCH,
    ".pth": _TORCH,
    ".safetensors": ("safetensors", _safetensors, "save it again"),
    ".mat": ("a MATLAB file", _matlab, "save it again"),
}


def named_pair(
    arrays: ArrayFile, names: Mapping[str, str | None], split: str | None, *, labelled: bool = True
) -> tuple[str, str | None] | None:
    """The names of the arrays of samples and labels, of a split or undivided."""
    samples, labels = (_named(arrays, names, argument, split) for argument in ("x", "y"))
    if samples is None and labels is not None:
        raise UserError(f"{arrays.name} has '{labels}' without its samples: add them, or set x to their name.")
    if samples is not None and labels is None and labelled:
        raise UserError(
            f"{arrays.name} has the samples '{samples}' without labels: add them, set y to their name, or set "
            "labels_path to their .npy file if the samples are a .npy file."
        )
    return (samples, labels) if samples is not None else None


def split_names(word: str, split: str | None) -> list[str]:
    """Possible names of an array: ``x`` itself, or in a split ``x_train``, ``train_x``, ..."""
    if split is None:
        return [word]
    return [one for name in SPLIT_NAMES[split] for one in (f"{word}_{name}", f"{name}_{word}")]


def _named(arrays: ArrayFile, names: Mapping[str, str | None], argument: str, split: str | None) -> str | None:
    given = names[argument]
    usual: tuple[tuple[str, ...], ...] = (SAMPLES, _FEATURES) if argument == "x" else (LABELS,)
    there: list[str] = []
    for known in ((given,),) if given is not None else usual:
        there = there or [name for word in known for name in split_names(word, split) if name in arrays]
    if len(there) > 1:
        raise UserError(f"{arrays.name} has both '{there[0]}' and '{there[1]}': set {argument} to one of them.")
    if not there and given is not None and split is None:
        raise UserError(
            f"{arrays.name} has no array '{given}' ({argument}), only {', '.join(arrays)}{did_you_mean(given, arrays)}"
        )
    return there[0] if there else None
