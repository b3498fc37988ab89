"""Distances of domains where they are known, against scikit-learn, and the signs of failure."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from metatransfer import UserError
from metatransfer.functional.domain.distance import (
    class_conditional_a_distance,
    collapse_signs,
    effective_rank,
    proxy_a_distance,
)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def moved(n, by, d=3, seed=1):
    x = normal(n, d, seed=seed)
    x[:, 0] += by
    return x


@pytest.mark.parametrize("sizes", [(1500, 1500), (1500, 150)], ids=["equal", "unequal"])
def test_distance_of_two_normals(sizes):
    """The best plane between N(0, I) and N(1.5, I) errs on Phi(-0.75) = 0.2266 of either."""
    expected = 2 * (1 - 2 * 0.5 * math.erfc(0.75 / math.sqrt(2)))
    found = proxy_a_distance(normal(sizes[0], 3), moved(sizes[1], 1.5))
    assert found == pytest.approx(expected, abs=0.2)


def test_distance_is_that_of_a_loop_over_folds():
    source, target = normal(60, 3), moved(45, 1.0)
    orders = [torch.randperm(n, generator=torch.Generator().manual_seed(0)) for n in (60, 45)]
    parts = [x[order].numpy() for x, order in zip((source, target), orders, strict=True)]
    wrong = np.zeros(2)
    for fold in range(5):
        train = [np.delete(x, np.s_[fold::5], axis=0) for x in parts]
        x, y = np.concatenate(train), np.repeat([0, 1], [len(part) for part in train])
        mean, scale = x.mean(0), x.std(0)
        share = np.where(y == 1, 0.5 / len(train[1]), 0.5 / len(train[0]))
        model = LogisticRegression(C=100, tol=1e-12, max_iter=5000).fit((x - mean) / scale, y, sample_weight=share)
        for side in (0, 1):
            wrong[side] += (model.predict((parts[side][fold::5] - mean) / scale) != side).sum()
    error = 0.5 * (wrong[0] / 60 + wrong[1] / 45)
    assert 0.1 < error < 0.5
    assert proxy_a_distance(source, target) == pytest.approx(2 * (1 - 2 * error), abs=1e-12)


def test_distance_at_its_ends():
    source = normal(300, 4)
    assert proxy_a_distance(source, source) == pytest.approx(0, abs=1e-12)
    assert proxy_a_distance(source, torch.ones(50, 4)[:, :4] * 50) == 2
    assert 0 <= proxy_a_distance(source, normal(300, 4, seed=1)) < 0.3
    assert proxy_a_distance(torch.ones(9, 2), torch.ones(9, 2)) == 0


def test_a_limit_looks_at_the_same_samples_every_time():
    source, target = normal(500, 3), moved(400, 1.0)
    first = proxy_a_distance(source, target, limit=100)
    assert first == proxy_a_distance(source, target, limit=100)
    assert first != proxy_a_distance(source, target)
    state = torch.get_rng_state()
    with torch.inference_mode():
        assert first == proxy_a_distance(source.clone(), target.clone(), limit=100)
    assert torch.equal(torch.get_rng_state(), state)


def test_samples_in_the_order_of_their_classes_are_spread_over_the_folds():
    """Classes in turn, as many as folds: a fold of one class alone would be told apart by nothing."""
    y = torch.arange(300) % 5
    source = 10 * torch.eye(5, dtype=torch.float64)[y] + 0.1 * normal(300, 5)
    target = source + 0.6
    assert proxy_a_distance(source, target) > 1.9


def test_classes_that_changed_places_are_apart_only_class_by_class():
    means = torch.tensor([[-3.0, 0], [3.0, 0]], dtype=torch.float64)
    y = torch.arange(400) % 2
    source, target = means[y] + normal(400, 2), means[1 - y] + normal(400, 2, seed=1)
    assert proxy_a_distance(source, target) < 0.3
    found = class_conditional_a_distance(source, y, target, y, num_classes=4)
    assert found.per_class[2:] == [None, None]
    assert min(found.per_class[:2]) > 1.8
    assert found.mean == pytest.approx(sum(found.per_class[:2]) / 2)
    for one in (0, 1):
        assert found.per_class[one] == proxy_a_distance(source[y == one], target[y == one])


def test_too_few_samples_of_a_class_measure_nothing():
    y = torch.tensor([0] * 9 + [1] * 20)
    found = class_conditional_a_distance(normal(29, 2), y, moved(29, 1, 2), y, num_classes=2, least=10)
    assert found.per_class[0] is None
    assert found.mean == found.per_class[1]
    nothing = class_conditional_a_distance(normal(29, 2), y, moved(29, 1, 2), 1 - y, num_classes=2, least=10)
    assert nothing == (None, [None, None])


def test_effective_rank():
    assert effective_rank(torch.ones(8, 3)) == 0
    line = torch.arange(8.0)[:, None] * torch.tensor([1.0, 2, -1])
    assert effective_rank(line) == pytest.approx(1, abs=1e-6)
    square = torch.tensor([[1.0, 0], [-1, 0], [0, 1], [0, -1]])
    assert effective_rank(square + 5) == pytest.approx(2, rel=1e-9)
    values = np.linalg.svd((x := normal(20, 4)).numpy() - x.numpy().mean(0), compute_uv=False)
    p = values / values.sum()
    assert effective_rank(x) == pytest.approx(math.exp(-(p * np.log(p)).sum()), rel=1e-10)


def healthy(classes=10, each=20):
    return 6 * torch.eye(classes).repeat(each, 1)


def test_a_healthy_run_has_no_signs():
    features = normal(100, 8).relu() + 2
    curve = [0.5, 0.9, 0.8, 0.6, 0.55, 0.5]
    assert collapse_signs(healthy(), features, curve, source_accuracy=0.9, source_floor=0.8) == {}
    assert collapse_signs(healthy()) == {}
    assert collapse_signs(torch.zeros(0, 3)) == {}


def test_concentrated_predictions():
    logits = healthy()
    logits[:196] = torch.tensor([9.0] + [0.0] * 9)
    signs = collapse_signs(logits)
    assert list(signs) == ["concentrated"]
    assert signs["concentrated"].startswith("the target's predictions collapsed to 1 of 10 classes: lower max_lambda")
    two = torch.zeros(200, 40)
    two[:100, 3] = two[100:, 7] = 20
    assert "collapsed to 2 of 40 classes" in collapse_signs(two)["concentrated"]


def test_classes_that_are_never_predicted():
    logits = healthy()
    logits[:, [3, 7]] -= 50
    assert list(signs := collapse_signs(logits)) == ["missing_classes"]
    assert "2 of 10 classes (3, 7) are never predicted" in signs["missing_classes"]
    assert collapse_signs(logits[:50]) == {}  # of so few samples it may be chance
    many = healthy(30, 20)
    many[:, :7] -= 50
    assert "7 of 30 classes (0, 1, 2, 3, 4 and others)" in collapse_signs(many)["missing_classes"]


@pytest.mark.parametrize("features", [torch.zeros(9, 4), 5 + 0.01 * normal(50, 4)], ids=["zero", "one point"])
def test_collapsed_features(features):
    assert list(collapse_signs(healthy(), features)) == ["features_collapsed"]


def test_discriminators():
    chance = [0.505, 0.49, 0.51, 0.5, 0.5]
    assert list(collapse_signs(healthy(), discriminator_accuracy=chance)) == ["discriminator_at_chance"]
    assert collapse_signs(healthy(), discriminator_accuracy=chance[:4]) == {}
    assert collapse_signs(healthy(), discriminator_accuracy=chance, chance=0.7) == {}
    assert list(collapse_signs(healthy(), discriminator_accuracy=[0.6, 0.9, 1, 1, 1])) == ["discriminator_certain"]
    assert collapse_signs(healthy(), discriminator_accuracy=[1, 1, 1, 0.9, 0.7]) == {}


def test_a_lost_source_and_outputs_that_are_no_numbers():
    signs = collapse_signs(healthy(), source_accuracy=0.5, source_floor=0.81)
    assert list(signs) == ["source_lost"]
    assert "fell to 50.0 %, below the floor of 81.0 %" in signs["source_lost"]
    logits = healthy()
    logits[3, 3] = math.nan
    assert list(collapse_signs(logits)) == ["not_finite"]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: proxy_a_distance(normal(9, 2), normal(3, 2)), "5 folds, 9 source and 3 target samples"),
        (lambda: proxy_a_distance(normal(9, 2), normal(9, 2), folds=1), "got 1 folds"),
        (lambda: proxy_a_distance(normal(9, 2), normal(9, 2), limit=3), "limit=3: use more samples"),
        (lambda: proxy_a_distance(normal(9, 2), normal(9, 3)), r"\(7, 2\) and \(7, 3\)"),
        (
            lambda: class_conditional_a_distance(normal(9, 2), torch.zeros(8), normal(9, 2), torch.zeros(9), 2),
            "8 labels for 9 source samples",
        ),
    ],
)
def test_one_sentence_for_what_cannot_be(call, words):
    with pytest.raises(UserError, match=words):
        call()
