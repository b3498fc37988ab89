"""All numbers of an evaluation against hand computation."""

import numpy as np
import pytest
import torch

from metatransfer.metrics import EpisodeMetrics


def calibration_error(probabilities, labels, bins=15):
    """Guo et al. 2017, Eq. 3, written out."""
    confidence, right = probabilities.max(1), probabilities.argmax(1) == labels
    error = 0.0
    for b in range(bins):
        inside = (confidence > b / bins) & (confidence <= (b + 1) / bins)
        if inside.any():
            error += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    return error


def softmax(logits):
    shifted = np.exp(logits - logits.max(-1, keepdims=True))
    return shifted / shifted.sum(-1, keepdims=True)


def draw(tasks, queries, ways, seed):
    generator = torch.Generator().manual_seed(seed)
    return (
        2 * torch.randn(tasks, queries, ways, generator=generator),
        torch.randint(0, ways, (tasks, queries), generator=generator),
    )


@pytest.mark.parametrize("ways", [2, 5, 20])
def test_classification(ways):
    metrics = EpisodeMetrics()
    batches = [draw(4, 15, ways, 0), draw(3, 15, ways, 1)]
    for outputs, targets in batches:
        metrics.update(outputs, targets)
    numbers = {name: float(value) for name, value in metrics.compute().items()}
    assert set(numbers) == {
        "episodes", "accuracy", "accuracy_ci95", "accuracy_low", "accuracy_high", "loss", "loss_ci95",
        "calibration_error",
        "calibration_error_ci95",
        "calibration_error_low",
        "calibration_error_high",
    }  # fmt: skip
    logits = torch.cat([outputs for outputs, _ in batches]).double().numpy()
    labels = torch.cat([targets for _, targets in batches]).numpy()
    accuracy = (logits.argmax(-1) == labels).mean(1)
    probabilities = softmax(logits)
    losses = -np.log(np.take_along_axis(probabilities, labels[..., None], -1))[..., 0].mean(1)
    for name, values in (("accuracy", accuracy), ("loss", losses)):
        assert numbers[name] == pytest.approx(values.mean(), rel=1e-5)
    assert numbers["loss_ci95"] == pytest.approx(2.446912 * losses.std(ddof=1) / np.sqrt(7), rel=1e-5)
    low, high = numbers["accuracy_low"], numbers["accuracy_high"]
    assert 0 <= low < accuracy.mean() < high <= 1
    assert numbers["accuracy_ci95"] == pytest.approx((high - low) / 2, rel=1e-5)
    pooled = calibration_error(probabilities.reshape(-1, ways), labels.reshape(-1))
    assert numbers["calibration_error"] == pytest.approx(pooled, abs=1e-5)


def test_regression():
    metrics = EpisodeMetrics()
    outputs, targets = torch.randn(4, 6, 2), torch.randn(4, 6, 2)
    metrics.update(outputs, targets)
    numbers = metrics.compute()
    assert set(numbers) == {"episodes", "mse", "mse_ci95", "loss", "loss_ci95"}
    squares = (outputs - targets).square().double().numpy().mean((1, 2))
    assert float(numbers["mse"]) == pytest.approx(squares.mean(), rel=1e-5)
    assert float(numbers["loss_ci95"]) == pytest.approx(3.182446 * squares.std(ddof=1) / 2, rel=1e-5)


def test_the_number_of_ways_and_queries_may_change():
    metrics = EpisodeMetrics()
    batches = [draw(2, 15, 5, 0), draw(2, 4, 3, 1)]
    for outputs, targets in batches:
        metrics.update(outputs, targets)
    accuracy = torch.cat([(outputs.argmax(-1) == targets).float().mean(1) for outputs, targets in batches])
    assert float(metrics.compute()["accuracy"]) == pytest.approx(float(accuracy.mean()))


def test_perfectly_calibrated_and_perfectly_wrong():
    sure = torch.tensor([[[50.0, 0.0, 0.0]] * 4])
    metrics = EpisodeMetrics()
    metrics.update(sure, torch.zeros(1, 4, dtype=torch.int64))
    assert float(metrics.compute()["calibration_error"]) == pytest.approx(0, abs=1e-6)
    metrics.reset()
    metrics.update(sure, torch.ones(1, 4, dtype=torch.int64))
    assert float(metrics.compute()["calibration_error"]) == pytest.approx(1, abs=1e-6)


def test_half_precision_outputs_and_graphs():
    metrics = EpisodeMetrics()
    outputs, targets = draw(3, 15, 5, 0)
    metrics.update(outputs.bfloat16().requires_grad_(), targets)
    low = metrics.compute()
    metrics.reset()
    metrics.update(outputs.bfloat16().float(), targets)
    for name, value in metrics.compute().items():
        assert float(low[name]) == pytest.approx(float(value), rel=1e-6)
        assert not low[name].requires_grad


def test_reset_forgets_everything():
    metrics = EpisodeMetrics()
    metrics.update(*draw(3, 15, 5, 0))
    metrics.reset()
    metrics.update(*draw(2, 15, 5, 1))
    fresh = EpisodeMetrics()
    fresh.update(*draw(2, 15, 5, 1))
    assert {k: float(v) for k, v in metrics.compute().items()} == {k: float(v) for k, v in fresh.compute().items()}


def test_reset_forgets_that_it_was_a_regression():
    metrics = EpisodeMetrics()
    metrics.update(torch.zeros(2, 3, 1), torch.ones(2, 3, 1))
    metrics.reset()
    metrics.update(*draw(2, 15, 5, 1))
    assert "accuracy" in metrics.compute()


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_compute_before_any_update_gives_nan_not_a_crash():
    """A process may get no episode (fewer validation episodes than processes)."""
    numbers = EpisodeMetrics().compute()
    assert torch.isnan(numbers["accuracy"])


def test_no_state_in_checkpoints():
    metrics = EpisodeMetrics()
    metrics.update(*draw(2, 15, 5, 1))
    assert not metrics.state_dict()


def test_memory_does_not_keep_the_outputs():
    """A few numbers for each episode may stay (calibration), no logits."""
    metrics = EpisodeMetrics()
    metrics.update(*draw(40, 75, 20, 0))
    kept = sum(value.untyped_storage().nbytes() for value in metrics.calibration.sums)
    assert kept <= 40 * 16 * 8


@pytest.mark.parametrize("broken", [torch.nan, torch.inf])
def test_a_diverged_network_has_no_accuracy(broken):
    """The largest of NaNs would be class 0, which may even be correct; one such task is enough."""
    outputs, targets = draw(3, 4, 5, 0)
    outputs[1, 2, 3] = broken
    metrics = EpisodeMetrics()
    metrics.update(outputs, targets * 0)
    numbers = metrics.compute()
    assert torch.isnan(numbers["accuracy"])
    assert torch.isnan(numbers["accuracy_ci95"])


def test_a_class_that_is_ruled_out_is_no_divergence():
    outputs, targets = draw(3, 4, 5, 0)
    outputs[..., 3] = -torch.inf
    metrics = EpisodeMetrics()
    metrics.update(outputs, targets * 0)
    assert torch.isfinite(metrics.compute()["accuracy"])
