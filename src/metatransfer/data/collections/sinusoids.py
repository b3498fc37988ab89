"""Regression tasks: sine waves of random amplitude and phase."""

import math
from collections.abc import Mapping

import torch

from metatransfer.batches import Episode
from metatransfer.data.sources import SPLITS, Collection, TaskGenerator
from metatransfer.functional.random import Bits, random_uniforms


class Sinusoids(Collection):
    r"""The regression tasks of MAML (Finn et al. 2017, 1703.03400, section 5.1): learn a sine wave from a few points.

    .. math:: y = A\sin(x - \varphi), \qquad A\sim U[0.1, 5],\ \varphi\sim U[0, \pi],\ x\sim U[-5, 5]

    Support and query points are float tensors ``(T, S, 1)``; the number of ways has no effect. The tasks are generated,
    so training, validation and test have any number of tasks and share none.
    """

    divided_by = "class"

    def parts(self) -> Mapping[str, TaskGenerator]:
        """A generator for each split."""
        return dict.fromkeys(SPLITS, SineWaves())


class SineWaves(TaskGenerator):
    """Sine waves, each with its own random stream."""

    num_targets = 1

    def generate(self, keys: Bits, num_shots: int, num_queries: int, device: torch.device) -> Episode:
        """Draws on the CPU, in float32."""
        u = torch.from_numpy(random_uniforms(keys, 2 + num_shots + num_queries)).to(device)
        amplitude, phase = 0.1 + 4.9 * u[:, :1], math.pi * u[:, 1:2]
        x = 10 * u[:, 2:] - 5
        y = (amplitude * torch.sin(x - phase)).unsqueeze(-1)
        x = x.unsqueeze(-1)
        return Episode(x[:, :num_shots], y[:, :num_shots], x[:, num_shots:], y[:, num_shots:])
