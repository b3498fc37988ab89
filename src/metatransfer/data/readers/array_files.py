"""Reads arrays from files of NumPy, torch, safetensors and MATLAB without running their code, and checks them."""

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
from metatransfer.data.readers.tables import check_classes
from metatransfer.errors import UserError, explained

_Read: TypeAlias = Callable[[], Any]
_Kind = TypeVar("_Kind")
_CHUNK = 2**24  # values checked at once, to limit memory
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
        """Reads an array; a sparse matrix of scipy stays one."""
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
    if not hasattr(value, "tocoo"):
        return as_array(value, where)
    _check_size((1, *value.shape[1:]), 4, where)  # batches are dense
    return value


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


# ---- samples and labels


def plain(value: Any) -> Any:  # noqa: ANN401
    """An array, series or list of the user, without pandas types."""
    value = value.to_numpy() if hasattr(value, "to_numpy") else value
    if isinstance(value, list | tuple) and any(one is None or isinstance(one, str) for one in value):
        objects = np.array(value, dtype=object)  # NumPy would convert missing values to the texts 'None' and 'nan'
    else:
        objects = value
    if not isinstance(objects, np.ndarray) or objects.dtype != object or not objects.size:
        return value
    for kinds, missing in ((bool | np.bool_, None), (int | float | np.number, np.nan), (str, "")):
        cells = [missing if _is_missing(one) else one for one in objects.flat]
        if all(isinstance(one, kinds) for one in cells):
            return np.array(cells).reshape(objects.shape)
    return value


def _is_missing(value: object) -> bool:
    return value is None or type(value).__name__ == "NAType" or (isinstance(value, float) and value != value)


def class_labels(given: NDArray[Any], where: str) -> NDArray[np.str_]:
    """Labels as texts."""
    if given.ndim == 2 and 1 in given.shape:
        given = given.reshape(-1)
    if given.ndim != 1:
        numbers = given.ndim == 2 and given.dtype.kind in "buif"
        one_hot = numbers and bool((((given == 0) | (given == 1)).all(1) & (given.sum(1) == 1)).all())
        advice = ", one-hot: pass y.argmax(1)" if one_hot else ""
        raise UserError(f"{where} must hold one label for each sample, (N,), but has shape {given.shape}{advice}.")
    if given.dtype.kind == "c":
        raise UserError(f"{where} holds {given.dtype}, but labels are whole numbers or texts: convert them.")
    if given.dtype.kind == "f":
        given = given.astype(np.float64)
        wrong = ~np.isfinite(given) | (given != np.floor(given)) | (np.abs(given) > 2**53)  # beyond it numbers merge
        if wrong.any():
            row = int(wrong.argmax())
            raise UserError(
                f"{where} holds {given[row]} for sample {row}, but labels are whole numbers up to 2**53 or texts."
            )
        given = given.astype(np.int64)
    if given.dtype.kind == "S":
        with explained(f"{where} holds bytes that are not UTF-8 text", "give texts", UnicodeDecodeError, quoted=False):
            given = np.char.decode(given, "utf-8")
    labels = given.astype(np.str_)
    if given.dtype.kind in "US":
        check_classes(labels.tolist(), lambda row: f"{where}, sample {row}: the label")
    return labels


def sample_tensor(given: Any, channels_last: bool | None, where: str) -> Tensor:  # noqa: ANN401
    """Samples, an array or a sparse matrix of scipy, as they are held in memory."""
    if given.dtype.kind not in "buif":
        raise UserError(f"{where} holds {given.dtype}, but samples must be real numbers: encode them.")
    if given.ndim < 2:
        raise UserError(f"{where} must be samples (N, *shape), but has shape {given.shape}: add a second axis.")
    if not given.size:
        raise UserError(f"{where} of shape {given.shape} is empty: add samples.")
    kept = given.dtype == np.uint8 and given.ndim > 2
    with np.errstate(over="ignore"):
        # copies read-only arrays such as memory-mapped files
        if hasattr(given, "tocoo"):
            entries = given.tocsr().tocoo()
            places = torch.from_numpy(np.stack([entries.row, entries.col]).astype(np.int64))
            values = torch.from_numpy(entries.data.astype(np.float32))
            x = torch.sparse_coo_tensor(places, values, given.shape, check_invariants=False).coalesce()
        else:
            x = torch.from_numpy(np.require(given, np.uint8 if kept else np.float32, ["C", "W"]))
    sizes = x.shape[1:]
    if channels_last and len(sizes) != 3:
        raise UserError(
            f"{where}: channels_last is for images (N, H, W, C), but the shape is {given.shape}: leave it out."
        )
    images = len(sizes) == 3 and sizes[-1] in (1, 3) and sizes[0] not in (1, 3)
    if channels_last or (channels_last is None and images):
        return x.permute(0, 3, 1, 2).contiguous()
    return x.unsqueeze(1) if channels_last is None and len(sizes) == 2 and kept else x


def check_alike(x: Tensor, other: Tensor, what: str, others: str) -> None:
    """Raises an error if two arrays of samples differ in shape or type."""
    if x.shape[1:] != other.shape[1:]:
        raise UserError(
            f"{what} have the shape {tuple(x.shape[1:])}, but {others} {tuple(other.shape[1:])}: resize one."
        )
    if x.dtype != other.dtype:
        kinds = [str(one.dtype).removeprefix("torch.") for one in (x, other)]
        raise UserError(f"{what} are {kinds[0]}, but {others} are {kinds[1]}: give both the same type.")
