"""Features of a frozen network, computed once and kept on disk."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from metatransfer.arguments import plain_arguments
from metatransfer.errors import UserError
from metatransfer.nn import Backbone

_FORMAT = 1


def cache_folder(cache_dir: str | None = None) -> Path:
    """Where features are kept.

    Args:
        cache_dir: as the user gave it.

    Returns:
        ``cache_dir``, else ``features`` in what the environment variable ``METATRANSFER_CACHE`` says, else in
        ``~/.cache/metatransfer``.
    """
    if cache_dir:
        return Path(cache_dir).expanduser()
    return Path(os.environ.get("METATRANSFER_CACHE") or "~/.cache/metatransfer").expanduser() / "features"


def weights_key(network: nn.Module) -> str:
    """A hash of all that a network's features depend on: architecture, arguments and weights.

    Args:
        network: in evaluation mode.

    Returns:
        64 hexadecimal digits.
    """
    digest = hashlib.sha256()
    arguments = plain_arguments(network.__dict__.get("_init_arguments", {}))
    arguments.pop("weights", None)  # a path; the weights themselves follow
    digest.update(f"{type(network).__qualname__} {arguments}\n{network}".encode())
    for name, value in network.state_dict().items():
        if not isinstance(value, Tensor):
            continue
        plain = value.detach().cpu().contiguous()
        digest.update(f"{name} {plain.dtype} {tuple(plain.shape)}".encode())
        digest.update(plain.view(torch.uint8).numpy().tobytes() if plain.dim() else repr(plain.item()).encode())
    return digest.hexdigest()


def cached_features(
    backbone: Backbone,
    content: str,
    batches: Callable[[], Iterable[Tensor]],
    samples: int,
    cache_dir: str | None = None,
) -> NDArray[np.float32]:
    """Features of some samples, from the cache where they were computed before.

    Args:
        backbone: the network, in evaluation mode.
        content: names samples and transform; equal for equal samples.
        batches: gives the features in their order, as long as they are wanted.
        samples: how many there are.
        cache_dir: folder of the cache.

    Returns:
        ``(N, E)`` float32, mapped from the file: read-only, in memory only where it is looked at.

    Raises:
        UserError: the folder cannot be written to, or features that are not finite.
    """
    key = hashlib.sha256(f"{_FORMAT} {weights_key(backbone)} {content}".encode()).hexdigest()[:32]
    folder = cache_folder(cache_dir)
    path = folder / f"features-{key}.npy"
    shape = (samples, backbone.out_features)
    found = _mapped(path, shape)
    if found is not None:
        return found
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=".features-", suffix=".npy", dir=folder)
        os.close(handle)
    except OSError as error:
        raise UserError(
            f"features cannot be kept in '{folder}' ({error.strerror}): give another folder by cache_dir or "
            "METATRANSFER_CACHE."
        ) from error
    temporary = Path(name)
    try:
        _write(temporary, shape, batches(), type(backbone).__name__)
        temporary.replace(path)  # whole or not at all, and whoever comes first
    finally:
        temporary.unlink(missing_ok=True)
    written = _mapped(path, shape)
    assert written is not None
    return written


def _write(path: Path, shape: tuple[int, int], batches: Iterable[Tensor], name: str) -> None:
    """Fills an array file batch by batch.

    Raises:
        UserError: a feature is not finite.
    """
    array = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape)
    start = 0
    for features in batches:
        if not torch.isfinite(features).all():
            raise UserError(
                f"{name} gives features that are NaN or infinite, first in sample {start} or soon after it: look at "
                "the samples and at the weights."
            )
        array[start : start + len(features)] = features.float().cpu().numpy()
        start += len(features)
    array.flush()


def _mapped(path: Path, shape: tuple[int, int]) -> NDArray[np.float32] | None:
    try:
        found: NDArray[np.float32] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError):  # not there, or cut short by a full disk: computed anew
        return None
    return found if found.shape == shape and found.dtype == np.float32 else None
