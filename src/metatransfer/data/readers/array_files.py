"""Files of arrays: what numpy, torch, safetensors and MATLAB write, read without running what a file says."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from metatransfer.checks import check_file
from metatransfer.errors import UserError

SUFFIXES = (".npz", ".npy", ".pt", ".pth", ".safetensors", ".mat")
_MATLAB_OTHERS = {"cell": "a cell array", "struct": "a struct", "sparse": "a sparse matrix"}


class ArrayFile(Mapping[str, NDArray[Any]]):
    """Arrays by name, read when asked for.

    Args:
        name: the file, to be named in messages.
        arrays: what reads each of them.
    """

    def __init__(self, name: str, arrays: Mapping[str, Callable[[], Any]]) -> None:
        self.name = name
        self._arrays = arrays

    def __getitem__(self, key: str) -> NDArray[Any]:
        """One array.

        Raises:
            UserError: it is damaged, no array, one of Python objects, or too large for the memory.
        """
        try:
            return as_array(self._arrays[key](), f"{self.name}: '{key}'")
        except UserError:
            raise
        except MemoryError as error:
            raise UserError(f"{self.name}: '{key}' does not fit into memory: use a smaller one.") from error
        except Exception as error:  # a damaged member raises whatever its decompressor does
            raise UserError(f"{self.name}: '{key}' cannot be read ({_reason(error)}): save the file again.") from error

    def __contains__(self, key: object) -> bool:
        return key in self._arrays  # the inherited one reads the array to find out

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)


def as_array(value: Any, where: str) -> NDArray[Any]:  # noqa: ANN401
    """An array of plain numbers or texts.

    Args:
        value: an array, a tensor or a list.
        where: what it is, to be named.

    Returns:
        The same as a numpy array, without a copy where possible.

    Raises:
        UserError: Python objects, sparse or quantised tensors, or something that is not an array.
    """
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
        raise UserError(f"{where} holds rows of different lengths: bring them to one length.") from error
    if array.dtype.kind not in "biufcUS":
        kind = "Python objects" if array.dtype.kind == "O" else f"values of type {array.dtype}"
        raise UserError(f"{where} holds {kind}, but must hold numbers or texts: save it with such a dtype.")
    return array


def open_arrays(path: str, labels_path: str | None = None) -> ArrayFile:
    """Opens a file of arrays.

    Args:
        path: ``.npz``, ``.npy``, ``.pt``, ``.pth``, ``.safetensors`` or ``.mat`` (MATLAB up to version 7).
        labels_path: the labels, for a ``.npy`` file of samples.

    Returns:
        The arrays; those of ``.npy`` files, and of a pair in a torch file, are called ``x`` and ``y``.

    Raises:
        UserError: no such file, a file of another kind, or a damaged one.
    """
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
    if suffix == ".npy":
        if labels_path is None:
            return ArrayFile(f"'{path}'", {"x": lambda: _numpy(file)})
        if Path(labels_path).suffix.lower() != ".npy":
            raise UserError(f"labels_path '{labels_path}' must end in .npy: save the labels with numpy.save.")
        labels = check_file(Path(labels_path).expanduser(), "labels file")
        return ArrayFile(f"'{path}'", {"x": lambda: _numpy(file), "y": lambda: _numpy(labels)})
    if suffix == ".npz":
        return ArrayFile(f"'{path}'", _npz(file))
    if suffix == ".safetensors":
        return ArrayFile(f"'{path}'", _safetensors(file))
    if suffix == ".mat":
        return ArrayFile(f"'{path}'", _matlab(file))
    return ArrayFile(f"'{path}'", _torch(file))


def _reason(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return (
        "it is not one, or it holds Python objects, which could run code"
        if "allow_pickle" in text
        else text.rstrip(".")[:120]
    )


def _numpy(file: Path) -> Any:  # noqa: ANN401
    """What numpy reads: an array, mapped, or the arrays of a ``.npz`` file.

    Raises:
        UserError: it is neither, or damaged.
    """
    try:
        return np.load(file, mmap_mode="r" if file.suffix.lower() == ".npy" else None, allow_pickle=False)
    except Exception as error:  # a damaged header raises whatever its parser does
        reason = "it is empty" if file.stat().st_size == 0 else _reason(error)
        raise UserError(f"'{file}' cannot be read as arrays of numpy ({reason}): save it again.") from error


def _npz(file: Path) -> dict[str, Callable[[], Any]]:
    content = _numpy(file)
    if isinstance(content, np.ndarray):
        raise UserError(f"'{file}' is a single array under another name: rename it to .npy, or save it by numpy.savez.")
    with content:
        names = list(content.files)

    def read(name: str) -> Callable[[], Any]:
        def reading() -> Any:  # noqa: ANN401
            with np.load(file, allow_pickle=False) as opened:  # no file is kept open, for other processes to share
                return opened[name]

        return reading

    return {name: read(name) for name in names}


def _torch(file: Path) -> dict[str, Callable[[], Any]]:
    """The dictionary or pair of a torch file.

    Raises:
        UserError: damaged, something else, or more than plain values.
    """
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # as does a damaged archive
        raise UserError(
            f"'{file}' cannot be read as tensors and plain values (damaged, empty, or with Python objects, which could "
            "run code): save it again by torch.save({'x': samples, 'y': labels}, path)."
        ) from error
    if isinstance(content, list | tuple) and len(content) == 2:
        content = dict(zip("xy", content, strict=True))
    if not isinstance(content, Mapping):
        kind = f"{len(content)} values" if isinstance(content, Sequence) else f"a {type(content).__name__}"
        raise UserError(f"'{file}' must hold a dictionary of tensors or the pair (samples, labels), but holds {kind}.")

    def keep(value: Any) -> Callable[[], Any]:  # noqa: ANN401
        return lambda: value

    return {str(name): keep(value) for name, value in content.items()}


def _safetensors(file: Path) -> dict[str, Callable[[], Any]]:
    """The tensors of a safetensors file.

    Raises:
        UserError: it is damaged.
    """
    from safetensors import safe_open  # needed by few

    def read(name: str) -> Callable[[], Any]:
        def reading() -> Any:  # noqa: ANN401
            with safe_open(file, framework="pt") as opened:
                return opened.get_tensor(name)

        return reading

    try:
        with safe_open(file, framework="pt") as opened:
            names = list(opened.keys())
    except Exception as error:  # the package's own, which stubs do not know
        raise UserError(f"'{file}' cannot be read as safetensors ({_reason(error)}): save it again.") from error
    return {name: read(name) for name in names}


def _matlab(file: Path) -> dict[str, Callable[[], Any]]:
    """The arrays of a MATLAB file.

    Raises:
        UserError: it is damaged, or of version 7.3, which is another format.
    """
    from scipy.io import loadmat, whosmat  # needed by few

    def read(name: str, kind: str) -> Callable[[], Any]:
        def reading() -> Any:  # noqa: ANN401
            if kind in ("cell", "struct", "sparse", "object", "opaque", "function"):
                raise UserError(
                    f"'{file}': '{name}' is {_MATLAB_OTHERS.get(kind, 'an object')}, but must be a full array of "
                    "numbers: convert it in MATLAB (cell2mat, full) and save it again."
                )
            return loadmat(file, variable_names=[name])[name]

        return reading

    try:
        return {name: read(name, kind) for name, _, kind in whosmat(file) if not name.startswith("__")}
    except NotImplementedError as error:
        raise UserError(
            f"'{file}' is a MATLAB file of version 7.3, which cannot be read here: save it with save(..., '-v7')."
        ) from error
    except Exception as error:  # a damaged header raises whatever its parser does
        raise UserError(f"'{file}' cannot be read as a MATLAB file ({_reason(error)}): save it again.") from error
