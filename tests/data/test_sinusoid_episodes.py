"""Sinusoid tasks: the published distribution, and the same rules as all episodes."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

from metatransfer import MetaDatasetShape, SinusoidEpisodes, UserError
from metatransfer.data.sinusoid_episodes import SinusoidSampler

CPU = torch.device("cpu")


def test_points_lie_on_sine_waves_of_the_published_range():
    sampler = SinusoidSampler("train", 0, num_shots=10, num_queries=10)
    batch = sampler.episodes(np.arange(2000), CPU)
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


def test_a_task_does_not_depend_on_its_company_and_splits_share_none():
    data = SinusoidEpisodes(tasks_per_batch=4, train_episodes=8, val_episodes=8, test_episodes=8)
    data.setup()
    alone = data.episode("val", 5)
    together = data.samplers["val"].episodes(np.arange(8), CPU)
    assert torch.equal(alone.support_x[0], together.support_x[5])
    firsts = {data.episode(split, 0).support_x[0, 0].item() for split in ("train", "val", "test")}
    assert len(firsts) == 3


def test_evaluation_may_have_other_shots():
    data = SinusoidEpisodes(num_shots=10, eval_num_shots=5)
    data.setup("fit")
    assert data.episode("train", 0).support_x.shape == (1, 10, 1)
    assert data.episode("val", 0).support_x.shape == (1, 5, 1)
    assert data.protocol()["eval_episode"] == {"num_shots": 5, "num_queries": 10}


def test_pictures_cannot_be_predicted():
    data = SinusoidEpisodes(support="a", query="b")
    with pytest.raises(UserError, match="SinusoidEpisodes does not say how to read image files"):
        data.convert_image(None)


@pytest.mark.parametrize(
    ("name", "value"),
    [("task_shape", MetaDatasetShape()), ("rotations", "classes"), ("group_by", True), ("episode_files", "x")],
)
def test_what_only_classes_have_is_refused(name, value):
    with pytest.raises(UserError, match=f"generates its tasks, .*: leave out {name}"):
        SinusoidEpisodes(**{name: value}).setup("fit")
