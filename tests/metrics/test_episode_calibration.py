"""The calibration error of episodes: torchmetrics, and the coverage of its interval."""

import pytest
import torch
from torchmetrics.classification import MulticlassCalibrationError

from metatransfer.metrics.episode_calibration import EpisodeCalibration


def draw(episodes, seed, ways=4, queries=20):
    """Overconfident predictions: the label is drawn from a flatter distribution than is claimed."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(episodes, queries, ways, generator=generator).double()
    shift = torch.randn(episodes, 1, 1, generator=generator).double()  # queries of an episode are alike
    true = ((0.5 + 0.2 * shift) * logits).softmax(-1)
    labels = torch.multinomial(true.flatten(0, 1), 1, generator=generator).view(episodes, queries)
    return logits.softmax(-1), labels


def calibration(*batches):
    metric = EpisodeCalibration()
    for batch in batches:
        metric.update(*batch)
    return [float(value) for value in metric.compute()]


def test_the_error_is_that_of_torchmetrics():
    one, two = draw(7, 0), draw(5, 1)
    reference = MulticlassCalibrationError(num_classes=4, n_bins=15)
    for probabilities, labels in (one, two):
        reference.update(probabilities.flatten(0, 1), labels.flatten())
    assert calibration(one, two)[0] == pytest.approx(float(reference.compute()), abs=1e-6)


def test_the_half_width_is_the_jackknife_written_out():
    probabilities, labels = draw(6, 2)
    error, half, low, high = calibration((probabilities, labels))
    kept = [[one for one in range(6) if one != left] for left in range(6)]
    without = torch.tensor([calibration((probabilities[one], labels[one]))[0] for one in kept]).double()
    expected = 2.5706 * ((without - without.mean()).square().sum() * 5 / 6).sqrt()  # t with 5 degrees of freedom
    assert half == pytest.approx(float(expected), rel=1e-3)
    assert (low, high) == (pytest.approx(max(0, error - half)), pytest.approx(error + half))


def test_the_interval_covers_the_error_of_many_episodes():
    truth = calibration(draw(20000, 99))[0]
    found = [calibration(draw(200, seed)) for seed in range(100)]
    covered = sum(low <= truth <= high for _, _, low, high in found)
    assert covered >= 85  # 95 expected; the error is slightly biased upwards


def test_one_episode_has_no_interval():
    error, half, low, _ = calibration(draw(1, 3))
    assert error >= 0
    assert half != half
    assert low != low


def test_certain_predictions_are_in_the_last_bin():
    probabilities = torch.eye(2).repeat(1, 3, 1)
    assert calibration((probabilities, torch.tensor([[0, 1] * 3])))[0] == 0
    assert calibration((probabilities, torch.tensor([[1, 0] * 3])))[0] == 1
