"""Regression tasks: functions drawn from Gaussian processes."""

from collections.abc import Mapping

import numpy as np
import torch
from scipy.special import ndtri

from metatransfer.batches import Episode
from metatransfer.checks import check_count
from metatransfer.data.sources import SPLITS, Collection, TaskGenerator
from metatransfer.functional.random import Bits, random_uniforms

_NOISE = 0.02


class GaussianProcesses(Collection):
    r"""The regression tasks of neural processes (Nguyen, Grover 2022, 2207.04179): learn a smooth function from points.

    .. math:: y \sim GP(0, k),\quad k(x, x') = s^2\exp\Big(-\frac{(x - x')^2}{2\ell^2}\Big) + 0.02^2\,[x = x'],\qquad
              \ell\sim U[0.1, 0.6],\ s\sim U[0.1, 1],\ x\sim U[-2, 2]

    These are the ranges of the authors' program. Support and query points are float tensors ``(T, S, 1)``; the number
    of ways has no effect. The tasks are generated, so training, validation and test have any number of tasks and share
    none.

    Args:
        min_shots: smallest number of support points. If it is given, the number varies between it and ``num_shots`` of
            the task from one block of 16 tasks to the next, and the other points of ``num_shots + num_queries`` are
            queries: with 3, ``num_shots: 47`` and ``num_queries: 3``, 3 to 47 of 50 points are support points.

    Raises:
        UserError: a number below 1.
    """

    divided_by = "class"

    def __init__(self, min_shots: int | None = None) -> None:
        check_count(min_shots=min_shots)
        self.min_shots = min_shots

    def parts(self) -> Mapping[str, TaskGenerator]:
        """A generator for each split."""
        return dict.fromkeys(SPLITS, Functions(self.min_shots))


class Functions(TaskGenerator):
    """Functions, each with its own random stream."""

    num_targets = 1

    def __init__(self, min_shots: int | None = None) -> None:
        self.min_shots = min_shots

    def generate(self, keys: Bits, num_shots: int, num_queries: int, device: torch.device) -> Episode:
        """Draws on the CPU, in float64, and returns float32."""
        points = num_shots + num_queries
        u = random_uniforms(keys, 2 + 2 * points).astype(np.float64)
        length, scale = 0.1 + 0.5 * u[:, :1, None], 0.1 + 0.9 * u[:, 1:2, None]
        x = (4 * u[:, 2 : 2 + points, None] - 2).astype(np.float32).astype(np.float64)
        covariance = scale**2 * np.exp(-0.5 * ((x - x.transpose(0, 2, 1)) / length) ** 2) + _NOISE**2 * np.eye(points)
        # uniforms are multiples of 2^-24 and may be 0, whose normal quantile is infinite
        y = np.linalg.cholesky(covariance) @ ndtri(u[:, 2 + points :, None] + 2.0**-25)
        found = [torch.from_numpy(one.astype(np.float32)).to(device) for one in (x, y)]
        (support_x, query_x), (support_y, query_y) = (torch.split(one, [num_shots, num_queries], 1) for one in found)
        return Episode(support_x, support_y, query_x, query_y)
