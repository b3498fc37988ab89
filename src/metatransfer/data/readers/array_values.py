"""Samples and labels in arrays, as they are held in memory."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from metatransfer.data.readers.tables import check_classes
from metatransfer.errors import UserError, explained


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
