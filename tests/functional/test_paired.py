"""Paired intervals over seeds and units, and Holm's correction."""

from __future__ import annotations

import pytest
import torch

from metatransfer.functional.paired import holm, moderated, paired_difference

DIFFERENCE = 0.03


def simulated(comparisons, seeds, units, *, of_seed=0.01, of_unit=0.1, rest=0.15, crossed=True):
    """Differences ``(comparisons, seeds, units)`` of two methods, with a known mean."""
    generator = torch.Generator().manual_seed(0)
    drawn = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    own = drawn(comparisons, 1 if crossed else seeds, units)
    return DIFFERENCE + of_seed * drawn(comparisons, seeds, 1) + of_unit * own + rest * drawn(comparisons, seeds, units)


def coverage(values, *, crossed=True):
    found = paired_difference(values, crossed=crossed)
    return float(((found.mean - DIFFERENCE).abs() <= found.half).double().mean())


@pytest.mark.parametrize("seeds", [3, 5, 10])
@pytest.mark.parametrize("crossed", [True, False])
def test_intervals_cover_a_known_difference(seeds, crossed):
    values = simulated(3000, seeds, 100, crossed=crossed)
    assert 0.935 <= coverage(values, crossed=crossed) <= 0.965
    each = sorted(coverage(values[start : start + 200], crossed=crossed) for start in range(0, 3000, 200))
    assert 0.93 <= each[len(each) // 2] <= 0.97


def experiments(count, seeds, *, spreads=(0.02,) * 6, crossed=True):
    """Differences of all pairs of six equal methods ``(count, 15, seeds, units)``: all of them are ties."""
    generator = torch.Generator().manual_seed(3)
    drawn = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    methods = len(spreads)
    of_seed = torch.tensor(spreads, dtype=torch.float64).view(-1, 1, 1) * drawn(count, methods, seeds, 1)
    of_unit = 0.1 * drawn(count, methods, 1 if crossed else seeds, 40)
    scores = of_seed + of_unit + 0.15 * drawn(count, methods, seeds, 40)
    pairs = torch.combinations(torch.arange(methods))
    return scores[:, pairs[:, 0]] - scores[:, pairs[:, 1]]


@pytest.mark.parametrize("crossed", [True, False])
@pytest.mark.parametrize("spreads", [(0.02,) * 6, (0.005, 0.005, 0.01, 0.02, 0.03, 0.04)], ids=["equal", "unequal"])
def test_comparisons_of_one_experiment_inform_each_other(spreads, crossed):
    """Intervals that borrow the spread over three seeds still cover the difference, and are much shorter."""
    values = experiments(400, 3, spreads=spreads, crossed=crossed)
    found, alone = (paired_difference(values, crossed=crossed, most=most) for most in (8.0, 0.0))
    assert 0.93 <= (found.mean.abs() <= found.half).double().mean() <= 0.97
    assert found.half.mean() < 0.85 * alone.half.mean()
    assert (holm(found.p).amin(-1) < 0.05).double().mean() <= 0.065  # 400 experiments: 0.05 +- 0.011
    assert (found.p.amin(-1) < 0.05).double().mean() > 0.2  # without the correction


def test_variances_shrink_towards_their_common_value():
    equal = torch.full((10,), 2.0, dtype=torch.float64)
    values, freedom = moderated(equal, 2.0, 18.0)
    assert freedom.tolist() == pytest.approx([20.0] * 10)  # as much as is allowed
    different = torch.logspace(-6, 6, 10, dtype=torch.float64)
    kept, own = moderated(different, 2.0, 18.0)
    assert float(own[0]) < 3.0
    assert torch.equal(kept.argsort(), different.argsort())
    values, freedom = moderated(torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64), 2.0, 4.0)
    assert (float(values[0]), float(freedom[0])) == (0.0, 2.0)


def test_a_bootstrap_over_both_is_too_short_with_three_seeds_and_equal_with_many():
    """The independent reference: seeds and units drawn with repetition."""

    def half_of_bootstrap(values, draws=600):
        generator = torch.Generator().manual_seed(1)
        seeds, units = values.shape[-2:]
        weights = [torch.zeros(draws, count, dtype=torch.float64) for count in (seeds, units)]
        for weight, count in zip(weights, (seeds, units), strict=True):
            drawn = torch.randint(count, (draws, count), generator=generator)
            weight.scatter_add_(1, drawn, torch.full(drawn.shape, 1 / count, dtype=torch.float64))
        means = torch.einsum("bs,csu,bu->cb", weights[0], values, weights[1])
        return means.std(1) * 1.96

    few = simulated(300, 3, 100, of_seed=0.05)
    covered = ((few.mean((1, 2)) - DIFFERENCE).abs() <= half_of_bootstrap(few)).double().mean()
    assert covered < 0.88 < coverage(few)
    many = simulated(20, 60, 200, of_seed=0.05, rest=0.05)
    ratio = half_of_bootstrap(many) / paired_difference(many, crossed=True).half
    assert float(ratio.mean()) == pytest.approx(1.0, abs=0.06)


def test_single_values_and_equal_answers():
    one_seed = paired_difference(torch.tensor([[0.0, 1.0, 0.0, 1.0]], dtype=torch.float64), crossed=True)
    assert float(one_seed.half) == pytest.approx(3.182446 * 0.5773503 / 2, rel=1e-6)  # Student's t
    same = paired_difference(torch.zeros(3, 10, dtype=torch.float64), crossed=True)
    assert (float(same.mean), float(same.half), float(same.p)) == (0.0, 0.0, 1.0)
    alone = paired_difference(torch.ones(1, 1, dtype=torch.float64), crossed=True)
    assert float(alone.half) == torch.inf
    constant = paired_difference(torch.ones(2, 4, dtype=torch.float64), crossed=True)
    assert (float(constant.half), float(constant.p)) == (0.0, 0.0)


def test_holm_by_hand():
    """Holm 1979: the smallest of four is multiplied by 4, the next by 3, ..., and the order is kept."""
    p = torch.tensor([0.01, 0.04, 0.03, 0.005], dtype=torch.float64)
    assert holm(p).tolist() == pytest.approx([0.03, 0.06, 0.06, 0.02])
