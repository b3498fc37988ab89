"""Domain adaptation without gradients: scikit-learn's conventions, and what it is for."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from scipy import linalg
from sklearn.neighbors import KNeighborsClassifier
from sklearn.utils.estimator_checks import parametrize_with_checks

from metatransfer import UserError
from metatransfer.adapters.domain import (
    CorrelationAlignment,
    GeodesicFlowKernel,
    JointDistributionAdaptation,
    SubspaceAlignment,
    TransferComponentAnalysis,
)

ALL = [
    SubspaceAlignment(2),
    GeodesicFlowKernel(2),
    TransferComponentAnalysis(2),
    JointDistributionAdaptation(2),
    CorrelationAlignment(),
]
every = pytest.mark.parametrize("adapter", ALL, ids=lambda adapter: type(adapter).__name__)


@parametrize_with_checks(ALL[:1])
def test_scikit_learns_checks(estimator, check):
    check(estimator)


@pytest.mark.slow
@parametrize_with_checks(ALL[1:])
def test_scikit_learns_checks_of_the_others(estimator, check):
    check(estimator)


def domains(seed=0, d=8, n=90):
    """Three classes along two directions; the target is turned, scaled and moved, its noise lies elsewhere."""
    generator = np.random.default_rng(seed)
    y = np.arange(n) % 3
    means = np.array([[0, 0], [4, 0], [0, 4.0]])
    found = []
    for angle, scale in ((0.0, 1.0), (0.5, 1.3)):
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        x = generator.normal(size=(n, d)) * 0.5
        x[:, :2] += means[y] @ turn.T * scale
        x[:, 2 + int(angle > 0)] *= 4
        found.append(x - x.mean(0))
    return found[0], y, found[1]


@every
def test_the_target_is_used_and_its_labels_are_not_asked_for(adapter):
    source, y, target = domains()
    fitted = adapter.fit(source, y, target=target)
    mine, other = fitted.transform_source(source), fitted.transform(target)
    assert mine.shape[1] == other.shape[1]
    np.testing.assert_array_equal(adapter.fit_transform(source, y, target=target), mine)
    moved = adapter.fit(source, y, target=target[:, ::-1]).transform_source(source)
    assert not np.allclose(moved, mine)


@every
def test_without_a_target_both_maps_are_the_same(adapter):
    source, y, _ = domains()
    fitted = adapter.fit(source, y)
    np.testing.assert_allclose(fitted.transform(source), fitted.transform_source(source), atol=1e-9)


def turned(seed):
    """The target lies in a plane that is turned out of the source's."""
    generator = np.random.default_rng(seed)
    y = np.arange(90) % 3
    means = np.zeros((3, 8))
    means[1, 0], means[2, 1] = 9.0, 5.0
    skew = generator.normal(size=(8, 8))
    turn = linalg.expm(0.25 * (skew - skew.T))
    source, target = (means[y] + generator.normal(size=(90, 8)) for _ in range(2))
    return source - source.mean(0), y, (target - target.mean(0)) @ turn


def shifted(seed):
    """The classes show in two places, and in one of them the target is somewhere else."""
    generator = np.random.default_rng(seed)
    y = np.arange(90) % 3
    means = np.zeros((3, 8))
    means[1, [0, 4]], means[2, [1, 5]] = 4.0, 4.0
    source, target = (means[y] + generator.normal(size=(90, 8)) for _ in range(2))
    target[:, :2] += 6.0
    return source, y, target


def rescaled(seed):
    """The target's features come in other units."""
    generator = np.random.default_rng(seed)
    y = np.arange(120) % 3
    x = 0.3 * generator.normal(size=(120, 4))
    x[:, 0] += 4.0 * (y - 1)
    return x[:60], y[:60], x[60:] * np.array([0.3, 0.5, 2.0, 1.0]), y[60:]


def score(adapter, data):
    source, y, target, *truth = data
    if adapter is not None:
        adapter.fit(source, y, target=target)
        source, target = adapter.transform_source(source), adapter.transform(target)
    return (KNeighborsClassifier(1).fit(source, y).predict(target) == (truth[0] if truth else y)).mean()


@pytest.mark.parametrize(
    ("adapter", "data"),
    [
        (SubspaceAlignment(2), turned),
        (GeodesicFlowKernel(2), turned),
        (TransferComponentAnalysis(2, unit_length=False), shifted),
        (JointDistributionAdaptation(2, unit_length=False), shifted),
        (CorrelationAlignment(0.01), rescaled),
    ],
    ids=lambda one: getattr(one, "__name__", type(one).__name__),
)
def test_it_helps_against_what_it_is_for(adapter, data):
    plain = np.mean([score(None, data(seed)) for seed in range(5)])
    adapted = np.mean([score(adapter, data(seed)) for seed in range(5)])
    assert adapted > plain + 0.03


@pytest.mark.parametrize(
    ("fit", "sentence"),
    [
        (lambda x, y, t: SubspaceAlignment(2).fit(x, y, target=t[:, :3]), "source has 8 features, but the target 3"),
        (lambda x, y, t: SubspaceAlignment(0).fit(x, y, target=t), "n_components must be 1 or more"),
        (lambda x, y, t: TransferComponentAnalysis(2, 0.0).fit(x, y, target=t), "regularization must be above 0"),
        (lambda x, y, t: JointDistributionAdaptation(2, iterations=0).fit(x, y, target=t), "iterations must be 1 or"),
        (lambda x, y, t: CorrelationAlignment(-1.0).fit(x, y, target=t), "regularization must be 0 or more"),
        (lambda x, y, t: CorrelationAlignment(0.0).fit(x * 0, y, target=t * 0), "covariance is singular"),
    ],
)
def test_wrong_input(fit, sentence):
    with pytest.raises(UserError, match=sentence):
        fit(*domains())


def spoilt(x, value):
    x = x.copy()
    x[[3, 5], 1] = value
    return x


@every
@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda x, t: (spoilt(x, np.nan), t), "the source contains NaN or infinity in 2 of 90 samples.* number 3:"),
        (lambda x, t: (x, spoilt(t, np.inf)), "the target contains NaN or infinity in 2 of 90 samples.* number 3:"),
        (lambda x, t: (x[:0], t), "the source has 0 samples, but at least 2"),
        (lambda x, t: (x, t[:0]), "the target has 0 samples, but at least 2"),
        (lambda x, t: (x[:1], t), "the source has 1 sample, but at least 2"),
        (lambda x, t: (x, t[:1]), "the target has 1 sample, but at least 2"),
    ],
)
def test_the_sentence_says_which_domain(adapter, change, sentence):
    source, y, target = domains()
    source, target = change(source, target)
    with pytest.raises(UserError, match=sentence):
        adapter.fit(source, y[: len(source)], target=target)


def test_a_feature_that_is_constant_in_one_domain_is_told():
    source, y, target = domains()
    target[:, [2, 7]] = 1.0
    with pytest.warns(UserWarning, match=r"the target does not vary in 2 of 8 features \(2, 7\), but") as told:
        SubspaceAlignment(2).fit(source, y, target=target)
    assert told[0].filename == __file__
    with pytest.warns(UserWarning, match="the source does not vary in 2 of 8 features"):
        CorrelationAlignment().fit(target, y, target=source)


@pytest.mark.filterwarnings("error")
def test_without_such_features_nothing_is_told():
    source, y, target = domains()
    SubspaceAlignment(2).fit(source, y, target=target)
    SubspaceAlignment(2).fit(source, y)
    source[:, 7] = target[:, 7] = 3.0
    SubspaceAlignment(2).fit(source, y, target=target)


def test_subspace_alignment_is_its_formula():
    source, y, target = domains()
    mine, other = (np.linalg.svd(x - x.mean(0))[2][:3].T for x in (source, target))
    found = SubspaceAlignment(3).fit(source, y, target=target)
    # products of both maps do not depend on the signs of the directions
    np.testing.assert_allclose(found.source_map_ @ found.target_map_.T, mine @ mine.T @ other @ other.T, atol=1e-9)
    np.testing.assert_allclose(found.target_map_ @ found.target_map_.T, other @ other.T, atol=1e-9)
    assert np.abs(mine @ mine.T @ other @ other.T - other @ other.T).max() > 0.05
    few = SubspaceAlignment(20).fit(source[:5], y[:5], target=target[:6])
    assert few.source_map_.shape == few.target_map_.shape == (8, 5)


@pytest.mark.parametrize("kind", [TransferComponentAnalysis, JointDistributionAdaptation])
def test_transfer_components_scale_samples_before_and_after(kind):
    source, y, target = domains()
    sizes = np.linspace(0.5, 3, len(target))[:, None]
    found = kind(2).fit(source, y, target=target)
    np.testing.assert_allclose(np.linalg.norm(found.transform(target), axis=1), 1.0)
    np.testing.assert_allclose(found.transform(sizes * target), found.transform(target), atol=1e-9)
    scaled = kind(2).fit(source, y, target=sizes * target)
    np.testing.assert_allclose(scaled.transform_source(source), found.transform_source(source), atol=1e-6)
    plain = kind(2, unit_length=False).fit(source, y, target=target)
    np.testing.assert_allclose(plain.transform(target), target @ plain.target_map_)


def test_the_flow_kernel_takes_half_of_the_features_at_most():
    source, y, target = domains(d=8)
    assert GeodesicFlowKernel(7).fit(source, y, target=target).target_map_.shape == (8, 2 * 4)
    assert GeodesicFlowKernel(3).fit(source, y, target=target).target_map_.shape == (8, 2 * 3)


@pytest.mark.parametrize(("scale", "told"), [(1.0, 0), (0.1, 0), (5.0, 1)])
def test_one_constant_feature_of_many_is_told_only_if_it_varies_much_elsewhere(scale, told):
    source, target = np.random.default_rng(0).normal(size=(2, 50, 400))
    source[:, 7] *= scale
    target[:, 7] = 0.0
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        CorrelationAlignment(1.0).fit(source, target=target)
    assert len(found) == told


def test_a_constant_feature_is_no_obstacle():
    source, y, target = domains()
    source[:, 7] = target[:, 7] = 0.0
    for adapter in ALL:
        found = adapter.fit(source, y, target=target).transform(target)
        assert np.isfinite(found).all()


def test_user_errors_are_sentences():
    with pytest.raises(UserError):
        SubspaceAlignment(-1).fit(*domains()[:2])
