"""What is known of a task before anything is trained: the features that a recommendation is based on."""

import math

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from metatransfer.adapters import Labelled
from metatransfer.experiments.similarity import ProbedTask, converted, default_backbone
from metatransfer.functional import task_features
from metatransfer.functional.task_features import landmarks

PRETRAINED = ("pretrained_nearest_neighbour", "pretrained_nearest_mean", "pretrained_linear_probe")
"""Landmarks on the features of the network of the package, for images only."""


def described(
    x: Tensor,
    labels: NDArray[np.int64],
    *,
    ways: int | None = None,
    shots: int | None = None,
    all_labels: ArrayLike | None = None,
    seed: int = 0,
) -> dict[str, float]:
    """The task features of samples ``(N, *shape)``, and of images the landmarks of the network of the package.

    Args:
        x: the samples; images in [0, 1].
        labels: see :func:`~metatransfer.functional.task_features`, as all other arguments.
        ways: classes of an episode.
        shots: labels per class of an episode.
        all_labels: labels of all samples.
        seed: of all random parts.

    Returns:
        Values by name; NaN where they are not defined.
    """
    arguments = {"ways": ways, "shots": shots, "all_labels": all_labels, "seed": seed}
    found = task_features(x.flatten(1).numpy(), labels, **arguments)._asdict()  # type: ignore[arg-type]
    if x.dim() != 4:
        return {**found, **dict.fromkeys(PRETRAINED, math.nan)}
    network = default_backbone(x).eval()
    task = ProbedTask(Labelled(converted(x, network, "the data"), torch.from_numpy(labels)), network)
    seen = landmarks(task.features.x.numpy().astype(np.float64), labels, seed)
    return {**found, **{name: seen[name.removeprefix("pretrained_")] for name in PRETRAINED}}
