"""The mean and its interval against numpy, and the ways in which processes are merged."""

import copy
import pickle

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from metatransfer.metrics import EpisodeMean


def expected(scores):
    scores = np.asarray(scores, dtype=np.float64).reshape(-1)
    return scores.mean(), stats.t.ppf(0.975, len(scores) - 1) * scores.std(ddof=1) / np.sqrt(len(scores))


def assert_equals(metric, scores, rel=1e-6):
    mean, half_width, *_ = metric.compute()
    assert mean.shape == half_width.shape == ()
    assert mean.dtype == half_width.dtype == torch.float32
    assert float(mean) == pytest.approx(expected(scores)[0], rel=rel)
    assert float(half_width) == pytest.approx(expected(scores)[1], rel=rel)


@pytest.mark.parametrize("batches", [[600], [1] * 50, [7, 16, 1, 100], [2]])
def test_equals_numpy_however_it_is_batched(batches):
    scores = np.random.default_rng(0).random(sum(batches))
    metric = EpisodeMean()
    for chunk in np.split(scores, np.cumsum(batches)[:-1]):
        metric.update(torch.from_numpy(chunk))
    assert_equals(metric, scores)


def test_any_shape_and_type_of_scores():
    metric = EpisodeMean()
    metric.update(torch.tensor(1))
    metric.update(torch.tensor([[0.5, 0.25]], dtype=torch.bfloat16))
    metric.update(torch.tensor([True, False]))
    metric.update(torch.zeros(0))
    assert_equals(metric, [1, 0.5, 0.25, 1, 0])


def test_interval_is_over_episodes_not_over_batch_means():
    scores = torch.tensor([[0.0, 1.0], [0.0, 1.0]])
    metric = EpisodeMean()
    for batch in scores:
        metric.update(batch)  # both batch means are 0.5
    assert float(metric.compute()[1]) == pytest.approx(3.182446 * np.sqrt(1 / 3) / 2)


def test_halves_merge_to_the_whole():
    """What torchmetrics does under DDP: states of the processes are summed."""
    scores = torch.from_numpy(np.random.default_rng(1).random(101))
    whole, left, right = EpisodeMean(), EpisodeMean(), EpisodeMean()
    whole.update(scores)
    left.update(scores[:30])
    right.update(scores[30:])
    merged = EpisodeMean()
    for name, reduction in merged._reductions.items():
        setattr(merged, name, reduction(torch.stack([getattr(left, name), getattr(right, name)])))
    merged._update_count = 2
    assert_equals(merged, scores.numpy())
    left.merge_state(right)
    assert_equals(left, scores.numpy())
    torch.testing.assert_close(left.compute()[:2], whole.compute()[:2])


def test_a_process_without_episodes_changes_nothing():
    full, empty = EpisodeMean(), EpisodeMean()
    full.update(torch.tensor([0.1, 0.4, 0.7]))
    full.merge_state(empty)
    assert_equals(full, [0.1, 0.4, 0.7])


def test_half_width_is_nan_with_one_episode():
    metric = EpisodeMean()
    metric.update(torch.tensor([0.5]))
    mean, half_width, *_ = metric.compute()
    assert float(mean) == 0.5
    assert torch.isnan(half_width)


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_both_are_nan_without_episodes():
    assert all(torch.isnan(value) for value in EpisodeMean().compute())


def test_equal_scores_have_no_width():
    metric = EpisodeMean()
    metric.update(torch.full((1000,), 0.1, dtype=torch.float64))
    mean, half_width, *_ = metric.compute()
    assert float(mean) == pytest.approx(0.1)
    assert 0 <= float(half_width) < 1e-8


def test_many_float32_scores_are_summed_in_float64():
    scores = torch.rand(200_000, generator=torch.Generator().manual_seed(0)) * 1e-3 + 1000
    metric = EpisodeMean()
    for chunk in scores.split(1000):
        metric.update(chunk)
    assert_equals(metric, scores.double().numpy(), rel=1e-3)
    assert float(metric.total / metric.count) == pytest.approx(scores.double().mean().item(), rel=1e-12)


def test_reset():
    metric = EpisodeMean()
    metric.update(torch.tensor([0.0, 1.0]))
    metric.compute()
    metric.reset()
    metric.update(torch.tensor([0.5, 0.7]))
    assert_equals(metric, [0.5, 0.7])


def test_scores_hold_no_graph():
    metric = EpisodeMean()
    metric.update(torch.rand(3, requires_grad=True) * 2)
    assert not metric.total.requires_grad
    assert metric.total.grad_fn is None


@pytest.mark.parametrize("cast", ["half", "bfloat16", "float"])
def test_the_precision_of_the_module_around_it_does_not_reach_the_sums(cast):
    holder = nn.ModuleList([EpisodeMean()])
    getattr(holder, cast)()
    scores = np.linspace(0.123, 0.987, 1000)
    holder[0].update(torch.from_numpy(scores))
    assert_equals(holder[0], scores)


def test_copies_and_pickles():
    metric = EpisodeMean()
    metric.update(torch.tensor([0.25, 0.75, 0.25]))
    for other in (copy.deepcopy(metric), pickle.loads(pickle.dumps(metric))):
        assert_equals(other, [0.25, 0.75, 0.25])
    assert not metric.state_dict()  # nothing of an evaluation goes into a checkpoint


def test_works_in_inference_mode_and_outside_alternately():
    metric = EpisodeMean()
    with torch.inference_mode():
        metric.update(torch.tensor([0.5]))
    metric.update(torch.tensor([1.0]))
    with torch.inference_mode():
        assert_equals(metric, [0.5, 1.0])
    metric.reset()
