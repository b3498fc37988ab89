"""Losses and scores against numpy in float64."""

import numpy as np
import pytest
import torch

from metatransfer.functional import episode_loss, episode_losses, episode_scores, is_regression, mask_absent_classes


@pytest.fixture
def classification():
    generator = torch.Generator().manual_seed(0)
    return (
        torch.randn(3, 6, 4, generator=generator, dtype=torch.float64) * 3,
        torch.randint(0, 4, (3, 6), generator=generator),
    )


@pytest.fixture
def regression():
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(3, 6, 2, generator=generator, dtype=torch.float64) for _ in range(2)]


def cross_entropy(logits, label):
    return np.log(np.exp(logits).sum()) - logits[label]


def test_the_type_of_the_targets_tells_the_task():
    assert not is_regression(torch.zeros(2, dtype=torch.int64))
    assert is_regression(torch.zeros(2))
    assert is_regression(torch.zeros(2, dtype=torch.float16))


def test_classification_loss(classification):
    logits, labels = classification
    table = [[cross_entropy(logits[t, i].numpy(), labels[t, i]) for i in range(6)] for t in range(3)]
    assert episode_loss(logits, labels).item() == pytest.approx(np.mean(table), rel=1e-12)
    np.testing.assert_allclose(episode_losses(logits, labels).numpy(), np.mean(table, axis=1), rtol=1e-12)
    assert episode_loss(logits[0], labels[0]).item() == pytest.approx(np.mean(table[0]), rel=1e-12)
    assert episode_loss(logits[0, :1], labels[0, :1]).item() == pytest.approx(table[0][0], rel=1e-12)


def test_regression_loss(regression):
    outputs, targets = regression
    squares = (outputs.numpy() - targets.numpy()) ** 2
    assert episode_loss(outputs, targets).item() == pytest.approx(squares.mean(), rel=1e-12)
    np.testing.assert_allclose(episode_losses(outputs, targets).numpy(), squares.mean((1, 2)), rtol=1e-12)
    np.testing.assert_allclose(episode_scores(outputs, targets).numpy(), squares.mean((1, 2)), rtol=1e-6)
    assert episode_loss(outputs[0], targets[0]).item() == pytest.approx(squares[0].mean(), rel=1e-12)


def test_tasks_are_averaged_not_summed(classification):
    logits, labels = classification
    twice = episode_loss(torch.cat([logits, logits]), torch.cat([labels, labels]))
    torch.testing.assert_close(twice, episode_loss(logits, labels))


def test_accuracy():
    outputs = torch.tensor([[[2.0, 1.0], [0.0, 1.0], [3.0, 0.0], [0.0, 0.1]], [[1.0, 0.0]] * 4])
    labels = torch.tensor([[0, 1, 1, 1], [1, 1, 1, 1]])
    assert episode_scores(outputs, labels).tolist() == [0.75, 0.0]


@pytest.mark.parametrize("kind", ["classification", "regression"])
def test_gradients(request, kind):
    outputs, targets = request.getfixturevalue(kind)
    outputs = outputs.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda o: episode_loss(o, targets), (outputs,))
    assert torch.autograd.gradgradcheck(lambda o: episode_loss(o, targets), (outputs,))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", ["classification", "regression"])
def test_half_precision_outputs_are_judged_in_float32(request, kind, dtype):
    outputs, targets = request.getfixturevalue(kind)
    low = outputs.to(dtype)
    assert episode_loss(low, targets).dtype == torch.float32
    torch.testing.assert_close(episode_loss(low, targets), episode_loss(low.float(), targets))
    scores = episode_scores(low, targets)
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores, episode_scores(low.float(), targets))


def test_extreme_logits_stay_finite():
    outputs = torch.tensor([[[1e4, -1e4]]])
    assert episode_loss(outputs, torch.tensor([[1]])).item() == pytest.approx(2e4)
    assert episode_losses(outputs, torch.tensor([[0]])).item() == 0.0


@pytest.mark.parametrize("function", [episode_loss, episode_losses, episode_scores])
def test_targets_without_their_last_axis_are_not_broadcast(function):
    """(T, Q, 1) outputs against (T, Q) targets would silently compare every query with every other."""
    with pytest.raises((ValueError, RuntimeError)):
        function(torch.zeros(4, 4, 1), torch.arange(16.0).view(4, 4))


def test_classes_without_support_are_masked():
    outputs, labels = torch.zeros(1, 2, 3), torch.tensor([[0, 2]])
    assert mask_absent_classes(outputs, labels).softmax(-1)[0, 0].tolist() == [0.5, 0, 0.5]
