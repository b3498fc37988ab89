"""Features of a frozen network, computed once and cached on disk."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_warn
from numpy.typing import NDArray
from torch import Tensor

from metatransfer.checks import check_writable
from metatransfer.errors import UserError
from metatransfer.methods.base import MethodModule
from metatransfer.module_keys import module_key
from metatransfer.nn import Backbone
from metatransfer.storage import cache_file, cache_folder, keep_array, kept_array

_FORMAT = 4


@torch.no_grad()
def features_of(module: MethodModule, loader: Iterable[Any]) -> Iterator[tuple[Any, Tensor]]:
    """Yields each batch on the module's device and its features ``(B, E)``, in the precision of the Trainer."""
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
    """Features ``(N, E)`` float32 of samples, read from the cache if possible.

    Args:
        backbone: the network, in evaluation mode.
        content: identifies samples and transform.
        batches: returns numbers ``(B,)`` and features ``(B, E)`` of all samples in any order; called only if the cache
            has none.
        samples: number of samples.
        cache_dir: folder of the cache.

    Raises:
        UserError: the folder cannot be written to, or features are not finite.
    """
    shape = (samples, backbone.out_features)
    path = cache_file(cache_folder("features", cache_dir), "features", str(_FORMAT), module_key(backbone), content)
    kept = kept_array(path, shape, np.float32)
    if kept is not None:
        return kept.array
    # an error now rather than after the work
    check_writable(path.parent, "the folder of cached features (cache_dir or METATRANSFER_CACHE)")
    found = _computed(shape, batches(), type(backbone).__name__)
    try:
        keep_array(path, found)
    except OSError as error:  # e.g. a full disk: the work is not lost
        rank_zero_warn(f"the features could not be saved in '{path.parent}' ({error.strerror or error}).")
    return found


def _computed(shape: tuple[int, int], batches: Iterable[tuple[Tensor, Tensor]], name: str) -> NDArray[np.float32]:
    """The features of all batches, in the order of the samples."""
    array, given = np.empty(shape, np.float32), np.zeros(shape[0], bool)
    for numbers, features in batches:
        finite = torch.isfinite(features).all(1)
        if not finite.all():
            raise UserError(
                f"{name} computes features that are NaN or infinite, first for sample {int(numbers[~finite][0])}: "
                "check the sample and the weights."
            )
        rows = numbers.cpu().numpy()
        array[rows] = features.float().cpu().numpy()
        given[rows] = True
    assert given.all(), f"{(~given).sum()} samples were left out"
    return array
