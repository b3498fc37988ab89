"""Sinusoid tasks: the published distribution."""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy import stats

from metatransfer.data.collections import Sinusoids
from metatransfer.functional.random import stream_keys

CPU = torch.device("cpu")


def test_points_lie_on_sine_waves_of_the_published_range():
    generator = Sinusoids().parts()["train"]
    assert generator.num_targets == 1
    batch = generator.generate(stream_keys(0, 0, np.arange(2000)), 10, 10, CPU)
    assert batch.support_x.shape == batch.support_y.shape == (2000, 10, 1)
    x = torch.cat([batch.support_x, batch.query_x], 1)[..., 0].double()
    y = torch.cat([batch.support_y, batch.query_y], 1)[..., 0].double()
    # y = a sin x + b cos x, solved by least squares, gives amplitude and phase back
    design = torch.stack([x.sin(), x.cos()], -1)
    solution = torch.linalg.lstsq(design, y.unsqueeze(-1)).solution[..., 0]
    torch.testing.assert_close((design @ solution.unsqueeze(-1))[..., 0], y, rtol=1e-4, atol=1e-4)
    amplitude = solution.norm(dim=1).numpy()
    phase = torch.atan2(-solution[:, 1], solution[:, 0]).numpy()
    assert stats.kstest(amplitude, stats.uniform(0.1, 4.9).cdf).pvalue > 1e-3
    assert stats.kstest(phase, stats.uniform(0, math.pi).cdf).pvalue > 1e-3
    assert stats.kstest(x.flatten().numpy(), stats.uniform(-5, 10).cdf).pvalue > 1e-3


def test_a_task_does_not_depend_on_its_company():
    generator = Sinusoids().parts()["val"]
    together = generator.generate(stream_keys(0, 1, np.arange(8)), 3, 4, CPU)
    alone = generator.generate(stream_keys(0, 1, np.array([5])), 3, 4, CPU)
    assert torch.equal(alone.query_y[0], together.query_y[5])
    assert alone.query_x.shape == (1, 4, 1)
