"""Pickles of plain values and numeric arrays, read without running what they name."""

from __future__ import annotations

import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metatransfer.checks import check_file
from metatransfer.errors import UserError


class _Type:
    """Stands for ``numpy.dtype``, whose own state can make numpy follow forged pointers."""

    def __init__(self, code: str, *_: object) -> None:
        if not re.fullmatch(r"[|<>=]?[biuf][1248]", code):
            raise ValueError(f"arrays of '{code}'")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: Any) -> None:  # noqa: ANN401
        self.dtype = self.dtype.newbyteorder(state[1] if state[1] in "<>" else "=")


class _Array:
    """Stands for ``numpy.ndarray``, for the same reason."""

    array: NDArray[Any] | None = None

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, state: Any) -> None:  # noqa: ANN401
        _, shape, kind, fortran, raw = state
        self._fill(raw, kind, shape, "F" if fortran else "C")

    def _fill(self, raw: Any, kind: _Type, shape: Any, order: str) -> None:  # noqa: ANN401
        raw = raw.encode("latin-1") if isinstance(raw, str) else raw  # Python 2 wrote bytes as text
        self.array = np.frombuffer(raw, kind.dtype).reshape(shape, order="F" if order == "F" else "C")


def _from_buffer(raw: Any, kind: _Type, shape: Any, order: str) -> _Array:  # noqa: ANN401
    array = _Array()
    array._fill(raw, kind, shape, order)
    return array


def _encode(text: str, _: str) -> bytes:
    return text.encode("latin-1")


_ALLOWED: dict[str, Any] = {
    **{f"numpy.{core}.multiarray._reconstruct": _Array for core in ("core", "_core")},
    **{f"numpy.{core}.numeric._frombuffer": _from_buffer for core in ("core", "_core")},
    "numpy.ndarray": None,  # only ever an argument
    "numpy.dtype": _Type,
    "_codecs.encode": _encode,
}


class _PlainUnpickler(pickle.Unpickler):
    """Knows the names that arrays of numbers are written with, and no others."""

    def find_class(self, module: str, name: str) -> Any:  # noqa: ANN401
        full = f"{module}.{name}"
        if full not in _ALLOWED:
            raise UserError(f"asks for '{full}', which could run code")
        return _ALLOWED[full]


def read_plain_pickle(path: Path, remedy: str) -> dict[str, Any]:
    """A pickled dictionary of plain values, lists and numeric arrays.

    Raises:
        UserError: the file asks for anything else, is damaged, or is not a dictionary.
    """
    try:
        with check_file(path, "pickle").open("rb") as file:
            content = _PlainUnpickler(file, encoding="latin1").load()
        return {
            key.decode() if isinstance(key, bytes) else str(key): value.array if isinstance(value, _Array) else value
            for key, value in content.items()
        }
    except UserError as error:
        raise UserError(f"'{path}' {error}: do not use this file; {remedy}") from error
    except Exception as error:  # whatever a damaged file leads the unpickler to
        raise UserError(f"'{path}' is damaged or not a dictionary of arrays ({error}): {remedy}") from error
