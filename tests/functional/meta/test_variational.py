"""Gaussian weights: against torch.distributions, in float64."""

from __future__ import annotations

import torch
from torch.distributions import Normal, kl_divergence

from metatransfer.functional.meta.variational import gaussian_divergence, gaussian_weights, standard_noise


def tensors(seed):
    draw = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(shape, generator=draw, dtype=torch.float64) for name, shape in (("a", (3, 2)), ("b", (4,)))
    }


def test_the_divergence_and_its_gradient_are_those_of_torch_distributions():
    parts = [{name: value.requires_grad_() for name, value in tensors(seed).items()} for seed in range(4)]
    leaves = [value for part in parts for value in part.values()]
    mean, spread, prior_mean, prior_spread = parts
    expected = sum(
        kl_divergence(
            Normal(mean[name], (spread[name] / 2).exp()), Normal(prior_mean[name], (prior_spread[name] / 2).exp())
        ).sum()
        for name in mean
    )
    found = gaussian_divergence(*parts)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    for own, other in zip(torch.autograd.grad(found, leaves), torch.autograd.grad(expected, leaves), strict=True):
        torch.testing.assert_close(own, other, rtol=1e-10, atol=1e-12)


def test_the_divergence_of_a_distribution_from_itself_is_exactly_0():
    mean, spread = tensors(0), tensors(1)
    assert gaussian_divergence(mean, spread, mean, spread) == 0


def test_drawn_weights_have_the_mean_and_variance_of_their_distribution():
    mean, spread = tensors(0), tensors(1)
    drawn = gaussian_weights(mean, spread, standard_noise((3, 1), 20_000, mean))
    for name, value in mean.items():
        stack = torch.stack([one[name] for one in drawn])
        deviation = (spread[name] / 2).exp()
        assert ((stack.mean(0) - value).abs() < 5 * deviation / 20_000**0.5).all()
        torch.testing.assert_close(stack.std(0), deviation, rtol=0.03, atol=0)


def test_noise_depends_on_its_key_alone():
    like = tensors(0)
    first, again, other = (standard_noise(key, 2, like) for key in ((0, 1), (0, 1), (0, 2)))
    assert all(torch.equal(first[name], again[name]) for name in like)
    assert not any(torch.equal(first[name], other[name]) for name in like)
    assert first["a"].shape == (2, 3, 2)
    assert first["a"].dtype == torch.float64
