"""Reads arrays from files of NumPy, torch, safetensors and MATLAB without running their code."""

import math
import os
from collections import UserDict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from metatransfer.checks import check_file
from metatransfer.errors import UserError, explained

_Read: TypeAlias = Callable[[], Any]
_Kind = TypeVar("_Kind")
_MATLAB_OTHERS = {"cell": "a cell array", "struct": "a struct"}
SVMLIGHT_SUFFIXES = (".svm", ".svmlight", ".libsvm")
_SPARSE_PARTS = {"data", "format", "shape"}  # arrays of each file of scipy.sparse.save_npz


class ArrayFile(UserDict[str, Any]):
    """Arrays by name, read on access from functions; messages call the file ``name``."""

    def __init__(self, name: str, arrays: Mapping[str, _Read]) -> None:
        super().__init__(arrays)
        self.name = name

    def __getitem__(self, key: str) -> NDArray[Any]:
        """Reads an array."""
        return self._read(key, as_array)

    def samples(self, key: str) -> Any:  # noqa: ANN401
        """Reads an array; a sparse matrix of scipy or torch becomes one of scipy."""
        return self._read(key, _sparse_or_array)

    def _read(self, key: str, convert: Callable[[Any, str], _Kind]) -> _Kind:
        try:
            return convert(self.data[key](), f"{self.name}: '{key}'")
        except UserError:
            raise
        except MemoryError as error:
            raise UserError(f"{self.name}: '{key}' does not fit into memory: use a smaller array.") from error
        except Exception as error:  # the error depends on the decompressor
            raise UserError(f"{self.name}: '{key}' cannot be read ({_reason(error)}): save the file again.") from error


def _sparse_or_array(value: Any, where: str) -> Any:  # noqa: ANN401
    # a hybrid tensor has whole rows as entries
    sparse = isinstance(value, Tensor) and value.layout != torch.strided and value.dim() == value.sparse_dim() == 2
    if not sparse and not hasattr(value, "tocoo"):
        return as_array(value, where)
    _check_size((1, *value.shape[1:]), 4, where)  # batches are dense
    return _of_scipy(value) if sparse else value


def _of_scipy(value: Tensor) -> Any:  # noqa: ANN401
    from scipy.sparse import coo_array  # optional in most runs

    entries = value.detach().to_sparse(layout=torch.sparse_coo).coalesce()
    parts = (as_array(part, "its entries") for part in (entries.values(), entries.indices()))
    return coo_array((next(parts), tuple(next(parts))), shape=tuple(value.shape))


def as_array(value: Any, where: str) -> NDArray[Any]:  # noqa: ANN401
    """Converts a value to an array of numbers or texts; sparse matrices become ordinary ones."""
    _check_size(getattr(value, "shape", ()), getattr(value, "itemsize", 4), where)
    if isinstance(value, Tensor):
        value = value.detach().dequantize() if value.is_quantized else value.detach().to_dense()
        if value.dtype in (torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2):  # unknown to numpy
            value = value.float()
        return np.asarray(value.cpu().resolve_conj().resolve_neg().numpy())
    value = value.toarray() if hasattr(value, "toarray") else value  # scipy.sparse
    if not isinstance(value, np.ndarray | list | tuple):
        raise UserError(f"{where} must be an array, but is of type {type(value).__name__}.")
    with explained(f"{where} holds rows of different lengths", "make them equally long", ValueError, quoted=False):
        array = np.asarray(value)
    if array.dtype.kind not in "biufcUS":
        kind = "Python objects" if array.dtype.kind == "O" else f"values of type {array.dtype}"
        raise UserError(f"{where} holds {kind}, but must hold numbers or texts: save it with such a dtype.")
    return array


def _check_size(shape: Sequence[int], itemsize: int, where: str) -> None:
    """Raises an error before memory is allocated; samples become float32, which has 4 bytes."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 2**40
    size = math.prod(shape) * min(itemsize, 4)
    if size > memory:
        raise UserError(
            f"{where} of shape {tuple(shape)} needs {size / 2**30:,.0f} GiB of memory, but this machine has "
            f"{memory / 2**30:,.0f}: use fewer samples or features."
        )


def open_arrays(path: str, labels_path: str | None = None) -> ArrayFile:
    """Opens a file of arrays; those without names, as in ``.npy`` files, are called ``x`` and ``y``."""
    file = check_file(Path(path).expanduser(), "array file", "put it there, or give its path")
    suffix = file.suffix.lower()
    if suffix not in SUFFIXES:
        table = suffix in (".csv", ".tsv", ".tab", ".txt", ".parquet")
        advice = "use the collection Table for a table" if table else "save it as one of these"
        raise UserError(
            f"array file '{path}' must end in {', '.join(SUFFIXES)}, but ends in '{suffix or file.name}': {advice}."
        )
    found = _arrays(file, suffix)
    if labels_path is not None:
        if list(found) != ["x"] or Path(labels_path).suffix.lower() != ".npy":
            raise UserError(
                f"labels_path is the .npy file of the labels of a .npy or sparse .npz file, but the files are '{path}' "
                f"and '{labels_path}': leave it out and name the labels y, or save the samples in such a file."
            )
        found["y"] = _arrays(check_file(Path(labels_path).expanduser(), "labels file"), ".npy")["x"]
    return ArrayFile(f"'{path}'", found)


def _arrays(file: Path, suffix: str) -> dict[str, _Read]:
    what, reading = _FORMATS[suffix]
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
        raise UserError(f"'{file}' cannot be read as {what} ({reason}): save it again.") from error


def _reason(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    objects = "allow_pickle" in text or type(error).__name__ == "UnpicklingError"
    return "damaged, or with Python objects, which could run code" if objects else text.rstrip(".")[:120]


def _npy(file: Path) -> dict[str, _Read]:
    array = np.load(file, mmap_mode="r", allow_pickle=False)
    return {"x": lambda: array}


def _npz(file: Path) -> dict[str, _Read]:
    def read(name: str) -> Any:  # noqa: ANN401
        with np.load(file, allow_pickle=False) as opened:  # not kept open, because forked processes would share it
            _check_size([opened.zip.getinfo(f"{name}.npy").file_size], 1, f"'{file}': '{name}'")
            return opened[name]

    def sparse() -> Any:  # noqa: ANN401
        from scipy.sparse import load_npz  # optional in most runs

        return load_npz(file)

    content = np.load(file, allow_pickle=False)
    if isinstance(content, np.ndarray):
        raise UserError(f"'{file}' is a single array: rename it to .npy, or save it with numpy.savez.")
    with content:
        return {"x": sparse} if {*content} >= _SPARSE_PARTS else {name: partial(read, name) for name in content}


def _svmlight(file: Path) -> dict[str, _Read]:
    from sklearn.datasets import load_svmlight_file  # a second that other runs need not pay

    x, y = load_svmlight_file(str(file), dtype=np.float32)
    return {"x": lambda: x, "y": lambda: y}


def _torch(file: Path) -> dict[str, _Read]:
    content = torch.load(file, map_location="cpu", weights_only=True)
    if isinstance(content, list | tuple) and len(content) == 2:
        content = dict(zip("xy", content, strict=True))
    if not isinstance(content, Mapping):
        raise UserError(
            f"'{file}' must hold a dictionary of tensors or the pair (samples, labels), but holds a "
            f"{type(content).__name__}: use torch.save({{'x': samples, 'y': labels}}, path)."
        )
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

    def read(name: str, shape: tuple[int, ...], kind: str) -> Any:  # noqa: ANN401
        _check_size(shape if kind != "sparse" else (), 1, f"'{file}': '{name}'")
        if kind in ("cell", "struct", "object", "opaque", "function"):
            raise UserError(
                f"'{file}': '{name}' is {_MATLAB_OTHERS.get(kind, 'an object')}, but must be an array of numbers: "
                "convert it in MATLAB (cell2mat) and save it again."
            )
        return loadmat(file, variable_names=[name])[name]

    return {name: partial(read, name, *form) for name, *form in whosmat(file) if not name.startswith("__")}


_FORMATS: dict[str, tuple[str, Callable[[Path], dict[str, _Read]]]] = {
    ".npz": ("arrays of numpy", _npz),
    ".npy": ("arrays of numpy", _npy),
    ".pt": ("tensors and plain values", _torch),
    ".pth": ("tensors and plain values", _torch),
    ".safetensors": ("safetensors", _safetensors),
    ".mat": ("a MATLAB file", _matlab),
    **dict.fromkeys(SVMLIGHT_SUFFIXES, ("svmlight", _svmlight)),
}
SUFFIXES = tuple(_FORMATS)
