"""Numbers to choose by without target labels, against loops, scikit-learn and a shift whose ratio is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from metatransfer import UserError
from metatransfer.functional.domain import validation as domain_validation
from metatransfer.functional.domain.validation import (
    choose_regularization,
    deep_embedded_validation,
    density_ratio,
    fit_domain_classifier,
    importance_weighted_risk,
    information_maximization,
    mean_entropy,
    soft_neighborhood_density,
)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def entropy(p):
    return -sum(value * math.log(value) for value in p if value > 0)


def softmax(row):
    top = max(row)
    powers = [math.exp(value - top) for value in row]
    return [value / sum(powers) for value in powers]


def test_entropies_are_those_of_a_loop():
    logits = 3 * normal(17, 5)
    rows = [softmax(row) for row in logits.tolist()]
    each = sum(map(entropy, rows)) / 17
    mean = [sum(column) / 17 for column in zip(*rows, strict=True)]
    assert mean_entropy(logits).item() == pytest.approx(each, rel=1e-12)
    assert information_maximization(logits).item() == pytest.approx(entropy(mean) - each, rel=1e-12)


def test_entropies_at_their_ends():
    certain = 2000 * torch.eye(4).repeat(3, 1)
    assert mean_entropy(certain).item() == 0
    assert information_maximization(certain).item() == pytest.approx(math.log(4), rel=1e-12)
    one_class = 2000 * torch.eye(4)[[1, 1, 1]]
    assert information_maximization(one_class).item() == 0
    assert mean_entropy(torch.zeros(3, 4)).item() == pytest.approx(math.log(4), rel=1e-12)
    assert mean_entropy(torch.zeros(3, 1)).item() == 0


@pytest.mark.parametrize("rows", [1024, 4, 1])
def test_neighborhood_density_is_that_of_a_loop(rows, monkeypatch):
    monkeypatch.setattr(domain_validation, "_ROWS", rows)
    x = normal(9, 4).softmax(-1)
    unit = [[value / math.sqrt(sum(v * v for v in row)) for value in row] for row in x.tolist()]
    total = 0.0
    for i, mine in enumerate(unit):
        others = [sum(a * b for a, b in zip(mine, row, strict=True)) / 0.1 for j, row in enumerate(unit) if j != i]
        total += entropy(softmax(others))
    assert soft_neighborhood_density(x, 0.1).item() == pytest.approx(total / 9, rel=1e-12)


def test_neighborhood_density_of_clusters():
    """Ten samples in each of three classes: nine neighbours each; scattered features have fewer."""
    clusters = torch.eye(3).repeat(10, 1)
    assert soft_neighborhood_density(clusters).item() == pytest.approx(math.log(9), abs=1e-6)
    assert soft_neighborhood_density(torch.ones(30, 3)).item() == pytest.approx(math.log(29), rel=1e-12)
    assert soft_neighborhood_density(torch.eye(30) + 0.1 * normal(30, 30), 0.05) < math.log(29)
    assert soft_neighborhood_density(torch.zeros(2, 3)).item() == 0


def two_domains(n=150, m=70, d=5):
    source, target = normal(n, d), normal(m, d, seed=1) * 1.5
    target[:, 0] += 1
    return source, target


@pytest.mark.parametrize("strength", [1e-3, 0.1])
def test_the_domain_classifier_is_scikit_learns(strength):
    source, target = two_domains()
    x = torch.cat([source, target]).numpy()
    y = np.repeat([0, 1], [150, 70])
    share = np.where(y == 1, 0.5 / 70, 0.5 / 150)
    standard = (x - x.mean(0)) / x.std(0)
    reference = LogisticRegression(C=1 / strength, tol=1e-12, max_iter=5000).fit(standard, y, sample_weight=share)
    found = fit_domain_classifier(source, target, strength)
    np.testing.assert_allclose(found.log_odds(torch.from_numpy(x)), reference.decision_function(standard), atol=1e-5)


def test_a_constant_feature_and_a_scale_change_nothing():
    source, target = two_domains()
    plain = density_ratio(source, target, source, 0.01)
    wide = [torch.cat([1e4 * x - 3e5, torch.full((len(x), 1), 7.0)], 1) for x in (source, target)]
    torch.testing.assert_close(density_ratio(wide[0], wide[1], wide[0], 0.01), plain, atol=1e-6, rtol=1e-5)


def test_ratio_of_two_normals():
    """N(1, I) over N(0, I) has the ratio exp(x_0 - 1/2)."""
    source, target = normal(20000, 2), normal(12000, 2, seed=1)
    target[:, 0] += 1
    x = normal(500, 2, seed=2)
    found = density_ratio(source, target, x, 1e-5)
    expected = (x[:, 0] - 0.5).exp()
    assert (found / expected).log().abs().max() < 0.15
    assert found.mean().item() == pytest.approx(1, abs=0.15)


def test_separable_domains_have_finite_ratios():
    source, target = normal(40, 3), normal(50, 3, seed=1) + 100
    for strength in (None, 1e-3):
        weights = density_ratio(source, target, torch.cat([source, target, 1e9 * target]), strength)
        assert weights.isfinite().all()
        assert (weights > 0).all()
        assert weights[:40].max() < 0.1 < 10 < weights[40:].min()


def test_more_features_than_samples_can_tell_are_held_back():
    """The same distribution twice, in 200 dimensions: weights must stay about 1."""
    source, target, val = (normal(150, 200, seed=seed) for seed in range(3))
    assert choose_regularization(source, target) == 1
    weights = density_ratio(source, target, val)
    assert weights.std() < 1 < density_ratio(source, target, val, 1e-3).std()
    plain = normal(3000, 1)
    assert choose_regularization(plain, normal(3000, 1, seed=1) + 2) < 0.1


def test_ratios_are_the_same_every_time_and_in_inference_mode():
    source, target = two_domains()
    first = density_ratio(source, target, source)
    state = torch.get_rng_state()
    with torch.inference_mode():
        second = density_ratio(source.clone(), target.clone(), source.clone())
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first, second.clone())


def test_risks_are_those_of_a_loop():
    losses, weights = normal(30).abs(), normal(30, seed=1).exp()
    weighted = [w * loss for w, loss in zip(weights.tolist(), losses.tolist(), strict=True)]
    risk, w = sum(weighted) / 30, sum(weights.tolist()) / 30
    covariance = np.cov(weighted, weights.numpy(), ddof=0)
    eta = -covariance[0, 1] / covariance[1, 1]
    assert importance_weighted_risk(losses, weights).item() == pytest.approx(risk, rel=1e-12)
    assert deep_embedded_validation(losses, weights).item() == pytest.approx(risk + eta * w - eta, rel=1e-12)


@pytest.mark.parametrize("count", [1, 7])
def test_equal_weights_leave_the_risk(count):
    losses, weights = normal(count).abs(), torch.full((count,), 0.3)
    expected = 0.3 * losses.mean().item()
    assert deep_embedded_validation(losses, weights).item() == pytest.approx(expected, rel=1e-6)


def test_dev_varies_less_than_iwv_and_both_find_the_targets_risk():
    """Source N(0, 1), target N(0.7, 1), an error wherever x > 0: on the target Phi(0.7) = 0.758036 of it."""
    truth = 0.5 * (1 + math.erf(0.7 / math.sqrt(2)))
    x = normal(600, 400)
    weights = (0.7 * x - 0.245).exp()
    errors = (x > 0).double()
    plain = torch.stack([importance_weighted_risk(*pair) for pair in zip(errors, weights, strict=True)])
    controlled = torch.stack([deep_embedded_validation(*pair) for pair in zip(errors, weights, strict=True)])
    assert controlled.std() < 0.7 * plain.std()
    for found in (plain, controlled):
        assert abs(found.mean().item() - truth) < 4 * found.std().item() / math.sqrt(600) + 0.002
    assert errors.mean().item() == pytest.approx(0.5, abs=0.01)  # what the source alone would have said


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: mean_entropy(torch.zeros(0, 3)), r"at least 1 rows.*\(0, 3\)"),
        (lambda: information_maximization(torch.zeros(3)), r"\(3,\)"),
        (lambda: soft_neighborhood_density(torch.zeros(1, 3)), "at least 2 rows"),
        (lambda: soft_neighborhood_density(torch.zeros(4, 3), 0), "temperature must be positive"),
        (lambda: density_ratio(torch.zeros(4, 3), torch.zeros(4, 2), torch.zeros(4, 3), 1), r"\(4, 3\) and \(4, 2\)"),
        (lambda: density_ratio(torch.zeros(4, 3), torch.zeros(1, 3), torch.zeros(4, 3)), "at least 2 samples"),
        (lambda: fit_domain_classifier(torch.zeros(4, 3), torch.zeros(0, 3)), r"\(0, 3\)"),
        (lambda: fit_domain_classifier(torch.zeros(4, 3), torch.ones(4, 3), 0), "regularization must be positive"),
        (lambda: fit_domain_classifier(torch.full((4, 3), math.nan), torch.ones(4, 3)), "source must be finite"),
        (lambda: importance_weighted_risk(torch.zeros(3), torch.zeros(4)), r"\(3,\) and \(4,\)"),
        (lambda: deep_embedded_validation(torch.zeros(0), torch.zeros(0)), r"\(0,\) and \(0,\)"),
    ],
)
def test_one_sentence_for_what_cannot_be(call, words):
    with pytest.raises(UserError, match=words):
        call()
