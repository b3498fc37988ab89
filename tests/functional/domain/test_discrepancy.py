"""Discrepancies against double loops, numpy and what theory says of their means."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from scipy.spatial.distance import pdist

from metatransfer import UserError
from metatransfer.functional.domain.discrepancy import (
    MULTIPLIERS,
    classifier_discrepancy,
    coral,
    joint_mmd,
    linear_mmd,
    mmd,
)


def samples(n=7, m=5, d=4, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(n, d, generator=generator, dtype=torch.float64).to(dtype),
        (1.5 * torch.randn(m, d, generator=generator, dtype=torch.float64) + 0.7).to(dtype),
    )


def looped(layers, multipliers, scales, unbiased):
    """Every pair of samples on its own."""
    n, m = len(layers[0][0]), len(layers[0][1])

    def kernel(domains, i, j):
        found = 1.0
        for pair, scale in zip(layers, scales, strict=True):
            away = np.sum((pair[domains[0]][i].numpy() - pair[domains[1]][j].numpy()) ** 2)
            found *= np.mean([np.exp(-away / (u * scale)) for u in multipliers])
        return found

    def mean(domains, sizes):
        same = domains[0] == domains[1] and unbiased
        return np.mean(
            [kernel(domains, i, j) for i in range(sizes[0]) for j in range(sizes[1]) if not (same and i == j)]
        )

    return mean((0, 0), (n, n)) + mean((1, 1), (m, m)) - 2 * mean((0, 1), (n, m))


def median(source, target):
    return np.sort(pdist(torch.cat([source, target]).numpy(), "sqeuclidean"))[
        (len(source) + len(target)) * (len(source) + len(target) - 1) // 4 - 1
    ]


# doublings, a step of four, steps that are no powers of two, one kernel
LADDERS = [MULTIPLIERS, (0.25, 1.0, 0.5), (1.0, 3.0, 0.7), (2.0,), (4.0, 1.0)]


@pytest.mark.parametrize("unbiased", [True, False])
@pytest.mark.parametrize("multipliers", LADDERS)
def test_mmd_is_the_double_loop(multipliers, unbiased):
    source, target = samples()
    found = mmd(source, target, multipliers, scale=3.0, unbiased=unbiased)
    assert float(found) == pytest.approx(looped([(source, target)], multipliers, [3.0], unbiased), rel=1e-12)


def test_the_scale_is_the_median_squared_distance():
    source, target = samples(8, 8)
    scale = median(source, target)
    assert float(mmd(source, target)) == pytest.approx(float(mmd(source, target, scale=scale)), rel=1e-12)
    assert float(mmd(source, target)) != pytest.approx(float(mmd(source, target, scale=1.01 * scale)), rel=1e-4)


@pytest.mark.parametrize("unbiased", [True, False])
def test_joint_mmd_is_the_double_loop(unbiased):
    layers = [samples(seed=0), samples(seed=1, d=2), samples(seed=2, d=3)]
    found = joint_mmd(*zip(*layers, strict=True), scales=[3.0, 2.0, 1.5], unbiased=unbiased)
    assert float(found) == pytest.approx(looped(layers, MULTIPLIERS, [3.0, 2.0, 1.5], unbiased), rel=1e-12)


def test_the_unbiased_estimate_is_0_on_average_and_the_other_is_not():
    generator = torch.Generator().manual_seed(0)
    draws = torch.randn(2000, 2, 12, 3, generator=generator, dtype=torch.float64)
    for unbiased in (True, False):
        values = torch.stack([mmd(a, b, scale=6.0, unbiased=unbiased) for a, b in draws])
        error = float(values.std()) / len(values) ** 0.5
        assert (abs(float(values.mean())) < 4 * error) is unbiased
    moved = torch.stack([mmd(a, b + 1, scale=6.0) for a, b in draws[:200]])
    assert float(moved.mean()) > 4 * float(moved.std()) / 200**0.5


def test_mmd_does_not_change_with_order_origin_rotation_or_unit():
    source, target = samples()
    value = mmd(source, target)
    turn = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(3)))[0]
    for same in (
        mmd(target, source),
        mmd(source.flip(0), target),
        mmd(source + 1e3, target + 1e3),
        mmd(source @ turn, target @ turn),
        mmd(17 * source, 17 * target),
    ):
        torch.testing.assert_close(same, value, rtol=1e-9, atol=0)


def test_equal_samples_have_no_biased_discrepancy_and_far_ones_the_largest():
    source, _ = samples()
    assert abs(float(mmd(source, source, unbiased=False))) < 1e-15
    same = source[:1].repeat(5, 1)
    assert float(mmd(same, same + 1e3, scale=1.0, unbiased=False)) == pytest.approx(2.0)


@pytest.mark.parametrize("unbiased", [True, False])
@pytest.mark.parametrize("multipliers", LADDERS[:3])
def test_gradients_of_mmd(multipliers, unbiased):
    pair = tuple(x.requires_grad_() for x in samples(4, 3, 2))

    def function(source, target):
        return mmd(source, target, multipliers, scale=2.0, unbiased=unbiased)

    assert torch.autograd.gradcheck(function, pair)
    assert torch.autograd.gradgradcheck(function, pair)


def test_gradients_of_the_others():
    source, target = (x.requires_grad_() for x in samples(4, 3, 2))
    deep = tuple(x.requires_grad_() for x in samples(3, 4, 9, seed=4))
    two = [x.requires_grad_() for x in samples(4, 3, 3, seed=5)]

    def joint(a, b, c, d):
        return joint_mmd([a, c], [b, d], scales=[2.0, 3.0])

    for function, values in (
        (linear_mmd, (source, target)),
        (coral, (source, target)),
        (coral, deep),  # fewer samples than features
        (joint, (source, target, *two)),
    ):
        assert torch.autograd.gradcheck(function, values)
        assert torch.autograd.gradgradcheck(function, values)
    p, q = (x.detach().softmax(1).requires_grad_() for x in samples(3, 3, 4))
    assert torch.autograd.gradcheck(classifier_discrepancy, (p, q))


def test_the_median_is_a_constant_to_the_gradient():
    source, target = (x.requires_grad_() for x in samples(8, 8))
    scale = median(source.detach(), target.detach())
    [own] = torch.autograd.grad(mmd(source, target), source)
    [fixed] = torch.autograd.grad(mmd(source, target, scale=scale), source)
    torch.testing.assert_close(own, fixed, rtol=1e-10, atol=1e-14)
    learned = torch.tensor(2.0, requires_grad=True, dtype=torch.float64)
    assert torch.autograd.grad(mmd(source, target, scale=learned), [source, learned], allow_unused=True)[1] is None


@pytest.mark.parametrize("value", [0.0, 1.0, 1e-12, 1e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_samples_that_all_coincide_are_no_obstacle(value, dtype):
    source, target = (torch.full((n, 2048), value, dtype=dtype).requires_grad_() for n in (6, 9))
    for unbiased in (True, False):
        found = mmd(source, target, unbiased=unbiased)
        assert abs(float(found.detach())) < 1e-5
        for gradient in torch.autograd.grad(found, (source, target)):
            assert gradient.isfinite().all()
            assert gradient.abs().max() < 1e-3


def test_where_most_samples_coincide_the_others_still_count():
    source = torch.randn(4, 64, generator=torch.Generator().manual_seed(0)) + 3
    target = torch.full((20, 64), 3.0)
    wide = mmd(source.double(), target.double())
    torch.testing.assert_close(mmd(source, target).double(), wide, rtol=1e-3, atol=0)
    assert 0.01 < float(wide) < 2


def test_nearly_equal_samples_pull_with_the_right_strength():
    """Squared distances that rounding takes below 0 keep their derivative."""
    base = torch.randn(1, 512, generator=torch.Generator().manual_seed(0)) * 10
    noise = 1e-3 * torch.randn(6, 512, generator=torch.Generator().manual_seed(1))
    far = -base.repeat(6, 1)
    near, other = (base + noise).requires_grad_(), far.requires_grad_()
    [found] = torch.autograd.grad(mmd(near, other, scale=1e5), near)
    wide = near.detach().double().requires_grad_()
    [expected] = torch.autograd.grad(mmd(wide, other.detach().double(), scale=1e5), wide)
    assert (found.double() - expected).norm() < 1e-4 * expected.norm()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_half_precision_and_autocast_are_computed_in_float32(dtype):
    source, target = samples(16, 12, 64, dtype=dtype)
    wide = [x.float() for x in (source, target)]
    for function in (mmd, linear_mmd, coral):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = function(source, target)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, function(*wide), rtol=0, atol=0)
    large = [100 * x.requires_grad_() for x in (source, target)]  # squares overflow float16
    value = mmd(*large)
    torch.testing.assert_close(value.double(), mmd(*(x.detach().double() for x in large)), rtol=1e-3, atol=1e-6)
    assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(value, (source, target)))


def test_autocast_does_not_reach_the_backward_pass():
    source, target = (x.requires_grad_() for x in samples(16, 12, 64, dtype=torch.float32))
    expected = torch.autograd.grad(mmd(source, target), (source, target))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = mmd(source, target)
    for one, other in zip(torch.autograd.grad(found, (source, target)), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


@pytest.mark.parametrize(("n", "m", "d"), [(30, 20, 4), (5, 4, 4), (5, 4, 9), (5, 4, 10), (6, 3, 40)])
def test_coral_is_the_distance_of_numpys_covariances(n, m, d):
    source, target = samples(n, m, d)
    away = np.cov(source.numpy().T) - np.cov(target.numpy().T)
    assert float(coral(source, target)) == pytest.approx(np.sum(away**2) / (4 * d**2), rel=1e-10)
    torch.testing.assert_close(coral(source + 5, target - 5), coral(source, target), rtol=1e-8, atol=0)
    assert abs(float(coral(source, source + 1))) < 1e-14


def test_linear_mmd_is_the_distance_of_the_means():
    source, target = samples()
    away = source.numpy().mean(0) - target.numpy().mean(0)
    assert float(linear_mmd(source, target)) == pytest.approx(np.sum(away**2), rel=1e-12)


def test_classifier_discrepancy_is_the_mean_difference():
    p, q = (x.softmax(1) for x in samples(6, 6, 3))
    pairs = itertools.product(range(6), range(3))
    expected = np.mean([abs(float(p[i, c]) - float(q[i, c])) for i, c in pairs])
    assert float(classifier_discrepancy(p, q)) == pytest.approx(expected, rel=1e-12)
    assert classifier_discrepancy(p.bfloat16(), q.bfloat16()).dtype == torch.float32


def test_wrong_input():
    source, target = samples()
    for function in (mmd, linear_mmd, coral):
        for pair, sentence in (
            ((source, target[:, :3]), "the same features, but have 4 and 3"),
            ((source[:1], target), "two samples each, but have 1 and 5"),
            ((source, target[:0]), "two samples each, but have 7 and 0"),
            ((source[0], target), r"features \(n, d\) and \(m, d\), but are \(4,\) and \(5, 4\)"),
            ((source.sum(), target), r"but are \(\) and \(5, 4\)"),
            ((source.long(), target), "must be floating point, but are torch.int64"),
        ):
            with pytest.raises(UserError, match=sentence):
                function(*pair)
    for multipliers in ((), (1.0, 0.0), (-1.0,), (float("inf"),)):
        with pytest.raises(UserError, match="multipliers must be one or more positive numbers"):
            mmd(source, target, multipliers)
    with pytest.raises(UserError, match="1 source layers, 2 target layers and 1 scales"):
        joint_mmd([source], [target, target])
    with pytest.raises(UserError, match=r"the same samples, but their numbers are \[\(6, 5\), \(7, 5\)\]"):
        joint_mmd([source, source[1:]], [target, target])
    with pytest.raises(UserError, match=r"got \(7, 4\) and \(5, 4\)"):
        classifier_discrepancy(source, target)
