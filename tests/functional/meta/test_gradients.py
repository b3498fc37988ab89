"""Gradients as inputs: against autograd and the published formula, in float64."""

from __future__ import annotations

import math

import torch

from metatransfer.functional.meta.gradients import gradient_features, gradient_of


def test_features_are_log_magnitude_and_sign_or_the_scaled_number():
    values = torch.tensor([2.0, -1e-3, 1e-6, -1e-6, 0.0], dtype=torch.float64)
    expected = [
        (math.log(2.0) / 10, 1),
        (math.log(1e-3) / 10, -1),
        (-1, math.exp(10) * 1e-6),
        (-1, -math.exp(10) * 1e-6),
        (-1, 0),
    ]
    torch.testing.assert_close(gradient_features(values), torch.tensor(expected, dtype=torch.float64))


def test_the_gradient_and_its_own_gradient_are_those_of_autograd():
    point, target = (torch.randn(3, dtype=torch.float64, requires_grad=True) for _ in range(2))

    def loss(z, target):
        return ((z - target) ** 4).sum()

    found = gradient_of(loss, point, target)
    [expected] = torch.autograd.grad(loss(point, target), point, create_graph=True)
    torch.testing.assert_close(found, expected)
    leaves = [point, target]
    for own, other in zip(
        torch.autograd.grad(found.sum(), leaves), torch.autograd.grad(expected.sum(), leaves), strict=True
    ):
        torch.testing.assert_close(own, other)


def test_gradients_can_be_taken_in_inference_mode():
    with torch.inference_mode():
        point, target = torch.ones(2), torch.tensor([0.0, 3.0])
        found = gradient_of(lambda z, target: (z * (z - target)).sum(), point, target)
        torch.testing.assert_close(found, torch.tensor([2.0, -1.0]))
