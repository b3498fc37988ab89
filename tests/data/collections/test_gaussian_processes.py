"""Functions from Gaussian processes: the published distribution, and numbers of shots that vary."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from metatransfer import Episodes, EpisodicDataModule, Task, UserError
from metatransfer.data.collections import GaussianProcesses
from metatransfer.functional.random import random_uniforms, stream_keys

CPU = torch.device("cpu")


def test_values_have_the_covariance_of_the_kernel():
    """Whitened with the kernel written out, they are independent standard normal numbers."""
    keys = stream_keys(0, 0, np.arange(400))
    batch = GaussianProcesses().parts()["train"].generate(keys, 4, 6, CPU)
    assert batch.support_x.shape == batch.support_y.shape == (400, 4, 1)
    x = torch.cat([batch.support_x, batch.query_x], 1)[..., 0].double().numpy()
    y = torch.cat([batch.support_y, batch.query_y], 1)[..., 0].double().numpy()
    assert stats.kstest(x.flatten(), stats.uniform(-2, 4).cdf).pvalue > 1e-3
    white = []
    for own_x, own_y, (length, scale) in zip(x, y, random_uniforms(keys, 2).astype(float), strict=True):
        length, scale = 0.1 + 0.5 * length, 0.1 + 0.9 * scale
        kernel = [[scale**2 * np.exp(-((a - b) ** 2) / (2 * length**2)) for b in own_x] for a in own_x]
        white.append(np.linalg.solve(np.linalg.cholesky(kernel + 0.02**2 * np.eye(10)), own_y))
    assert stats.kstest(np.concatenate(white), stats.norm.cdf).pvalue > 1e-3


def served(min_shots, shots=7, queries=3):
    data = EpisodicDataModule(
        GaussianProcesses(min_shots), Task(num_shots=shots, num_queries=queries), episodes=Episodes(64, 8, 8, 8)
    )
    data.setup("fit")
    return data.open("train")


def test_the_number_of_shots_varies_by_block_and_not_with_the_batch():
    sampler = served(2)
    together = sampler.batch(np.arange(640), CPU)
    shots = [len(one.support_y[0]) for one in together for _ in one.support_y]
    assert set(shots) == {2, 3, 4, 5, 6, 7}
    assert all(one.support_y.shape[1] + one.query_y.shape[1] == 10 for one in together)
    assert all(len(set(shots[start : start + 16])) == 1 for start in range(0, 640, 16))
    alone = sampler.batch(np.array([333]), CPU)
    own = torch.cat([torch.cat([one.support_y, one.query_y], 1) for one in together])[333]
    assert torch.equal(torch.cat([alone.support_y, alone.query_y], 1)[0], own)
    assert alone.support_y.shape[1] == shots[333]


def test_without_a_smallest_number_all_tasks_have_the_same_shots():
    assert served(None).batch(np.arange(40), CPU).support_y.shape == (40, 7, 1)


def test_more_shots_than_the_task_has():
    with pytest.raises(UserError, match="min_shots must be at most num_shots of the task, but is 8 and num_shots is 7"):
        served(8)
    with pytest.raises(UserError, match="min_shots"):
        GaussianProcesses(0)
