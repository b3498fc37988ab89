"""Features of a frozen network, computed once and kept on disk."""

from __future__ import annotations

import contextlib
import hashlib
import os
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from metatransfer.arguments import plain_arguments
from metatransfer.errors import UserError
from metatransfer.methods.base import MethodModule
from metatransfer.nn import Backbone

_FORMAT = 2
_CHECKSUM = hashlib.sha256().digest_size


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
    # buffers that are kept in no checkpoint shape the features, too
    for name, value in sorted((dict(network.named_buffers()) | network.state_dict()).items()):
        if not isinstance(value, Tensor):
            continue
        plain = value.detach().cpu().contiguous()
        digest.update(f"{name} {plain.dtype} {tuple(plain.shape)}".encode())
        digest.update(plain.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


@torch.no_grad()
def features_of(module: MethodModule, loader: Iterable[Any]) -> Iterator[tuple[Any, Tensor]]:
    """Features of all samples, in the precision of the module's Trainer.

    Args:
        module: with ``backbone``, attached to a Trainer.
        loader: gives batches with ``x``.

    Yields:
        Each batch on the module's device, and its features ``(B, E)``.
    """
    precision = module.trainer.precision_plugin
    for place, batch in enumerate(loader):
        moved = module.transfer_batch_to_device(precision.convert_input(batch), module.device, 0)
        if not place:
            module.check_samples(moved.x)
        with precision.forward_context():
            features = module.backbone(moved.x)  # type: ignore[operator]
        yield moved, features


def cached_features(
    backbone: Backbone,
    content: str,
    batches: Callable[[], Iterable[tuple[Tensor, Tensor]]],
    samples: int,
    cache_dir: str | None = None,
) -> NDArray[np.float32]:
    """Features of some samples, from the cache where they were computed before.

    Args:
        backbone: the network, in evaluation mode.
        content: names samples and transform; equal for equal samples.
        batches: gives the numbers ``(B,)`` of samples and their features ``(B, E)`` until all had their turn, in any
            order; asked only where there are none yet.
        samples: how many there are.
        cache_dir: folder of the cache.

    Returns:
        ``(N, E)`` float32.

    Raises:
        UserError: the folder cannot be written to, or features that are not finite.
    """
    key = hashlib.sha256(f"{_FORMAT} {weights_key(backbone)} {content}".encode()).hexdigest()[:32]
    folder = cache_folder(cache_dir)
    path = folder / f"features-{key}.npy"
    shape = (samples, backbone.out_features)
    found = _read(path, shape)
    if found is not None:
        return found
    temporary = folder / f".features-{key}-{uuid.uuid4().hex}"
    with _told_of(folder):
        folder.mkdir(parents=True, exist_ok=True)
        temporary.touch()  # refused now rather than after the work
    try:
        found = _computed(shape, batches(), type(backbone).__name__)
        with _told_of(folder):
            _write(temporary, found)
            temporary.replace(path)  # whole or not at all, and whoever comes first
    finally:
        temporary.unlink(missing_ok=True)
    return found


@contextlib.contextmanager
def _told_of(folder: Path) -> Iterator[None]:
    """Says what a folder refuses; samples that cannot be read are another matter.

    Yields:
        Nothing.

    Raises:
        UserError: in one sentence.
    """
    try:
        yield
    except OSError as error:
        raise UserError(
            f"features cannot be kept in '{folder}' ({error.strerror or error}): give another folder by cache_dir or "
            "METATRANSFER_CACHE."
        ) from error


def _computed(shape: tuple[int, int], batches: Iterable[tuple[Tensor, Tensor]], name: str) -> NDArray[np.float32]:
    """The features of all batches, each in the place of its sample.

    Raises:
        UserError: a feature is not finite.
    """
    array, given = np.empty(shape, np.float32), np.zeros(shape[0], bool)
    for numbers, features in batches:
        finite = torch.isfinite(features).all(1)
        if not finite.all():
            raise UserError(
                f"{name} gives features that are NaN or infinite, first of sample {int(numbers[~finite][0])}: look at "
                "it and at the weights."
            )
        rows = numbers.cpu().numpy()
        array[rows] = features.float().cpu().numpy()
        given[rows] = True
    assert given.all(), f"{(~given).sum()} samples were left out"
    return array


def _write(path: Path, array: NDArray[np.float32]) -> None:
    """An array file with a checksum behind it, which numpy does not look at."""
    with path.open("w+b") as file:
        np.save(file, array, allow_pickle=False)
        length = file.tell()
        checksum = _checksum(file, length)
        file.seek(length)
        file.write(checksum)
        file.flush()
        os.fsync(file.fileno())  # else a machine that goes down may leave the right name and no content


def _read(path: Path, shape: tuple[int, int]) -> NDArray[np.float32] | None:
    """What was kept, ``None`` where it is missing, cut short or damaged: it is then computed anew."""
    try:
        with path.open("rb") as file:
            length = max(0, path.stat().st_size - _CHECKSUM)
            if _checksum(file, length) != file.read():
                return None
            file.seek(0)
            found: NDArray[np.float32] = np.load(file, allow_pickle=False)
    except OSError:
        return None
    return found if found.shape == shape and found.dtype == np.float32 else None


def _checksum(file: BinaryIO, length: int) -> bytes:
    """That of the first bytes of a file, which is left behind them."""
    digest = hashlib.sha256()
    file.seek(0)
    while length and (part := file.read(min(length, 2**20))):
        digest.update(part)
        length -= len(part)
    return digest.digest()
