"""Importance weights: scikit-learn's conventions, known ratios, what they are for, and what they refuse."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import PolynomialFeatures, StandardScaler
from sklearn.svm import LinearSVC
from sklearn.utils.estimator_checks import parametrize_with_checks

from metatransfer import UserError
from metatransfer.adapters.importance import (
    KLIEP,
    MULTIPLES,
    DiscriminatorWeights,
    ImportanceWeightedClassifier,
    KernelMeanMatching,
)
from metatransfer.functional.domain import importance

WEIGHTS = [KernelMeanMatching(), KLIEP(), DiscriminatorWeights()]
every = pytest.mark.parametrize("weights", WEIGHTS, ids=lambda weights: type(weights).__name__)


CLASSIFIERS = [ImportanceWeightedClassifier(LogisticRegression(), weights) for weights in WEIGHTS]


@parametrize_with_checks([WEIGHTS[0], CLASSIFIERS[0]])
def test_scikit_learns_checks(estimator, check):
    check(estimator)


@pytest.mark.slow
@parametrize_with_checks([*WEIGHTS[1:], *CLASSIFIERS[1:]])
def test_scikit_learns_checks_of_the_others(estimator, check):
    check(estimator)


def shifted(seed, n=300):
    """Labels by a line with a bend, of which the target sees the part on the right."""
    generator = np.random.default_rng(seed)
    source = 1.2 * generator.normal(size=(n, 2))
    target = 0.6 * generator.normal(size=(n, 2)) + np.array([0.9, 0.45])

    def label(x):
        return (x[:, 1] > 1.5 * np.abs(x[:, 0]) - 1).astype(int)

    return source, label(source), target, label(target)


@pytest.mark.grid(3)
@every
def test_they_help_under_covariate_shift(weights):
    plain, weighted = [], []
    for seed in range(10):
        source, y, target, truth = shifted(seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            classifier = ImportanceWeightedClassifier(LogisticRegression(), weights).fit(source, y, target=target)
        weighted.append(classifier.score(target, truth))
        plain.append(LogisticRegression().fit(source, y).score(target, truth))
    assert np.mean(weighted) > np.mean(plain) + 0.03


@every
def test_weights_follow_the_ratio_of_the_densities(weights):
    """Normal distributions of means 0 and 1: the ratio is exp(x - 1/2)."""
    generator = np.random.default_rng(0)
    source, target = generator.normal(size=(800, 1)), generator.normal(size=(800, 1)) + 1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fitted = weights.fit(source, target=target)
    assert fitted.weights_.shape == (800,)
    assert fitted.weights_.mean() == pytest.approx(1)
    assert (fitted.weights_ >= 0).all()
    assert fitted.effective_sample_size_ == pytest.approx(importance.effective_sample_size(fitted.weights_))
    # of smooth functions the weighted mean is the target's
    for function, expected in ((lambda x: x, 1.0), (np.cos, np.exp(-0.5) * np.cos(1))):
        assert np.average(function(source[:, 0]), weights=fitted.weights_) == pytest.approx(expected, abs=0.15)
        assert abs(function(source[:, 0]).mean() - expected) > 0.25
    if not isinstance(weights, KernelMeanMatching):  # whose weights match means, and are not smooth
        ratio = np.exp(source[:, 0] - 0.5)
        assert np.corrcoef(fitted.weights_, ratio)[0, 1] > 0.9


@every
def test_without_a_target_all_samples_count_nearly_alike(weights):
    source, *_ = shifted(0)
    assert weights.fit(source).effective_sample_size_ > 0.9 * len(source)


@every
def test_few_effective_samples_are_told(weights):
    generator = np.random.default_rng(0)
    source = np.concatenate([generator.normal(size=(99, 2)), np.full((1, 2), 8.0)])
    target = generator.normal(size=(50, 2)) * 0.3 + 8
    with pytest.warns(UserWarning, match=r"effective sample size of \d.* of 100: the domains hardly overlap"):
        weights.fit(source, target=target)
    assert weights.weights_[-1] == weights.weights_.max()


def test_kliep_draws_the_same_centers_again():
    source, _, target, _ = shifted(0)
    one, two, other = (KLIEP(centers=20, random_state=seed).fit(source, target=target) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one.weights_, two.weights_)
    assert not np.array_equal(one.centers_, other.centers_)
    assert len(one.centers_) == len(one.alpha_) == 20
    assert one.bandwidth_ in [
        multiple * importance.median_bandwidth(np.concatenate([source, target])) for multiple in MULTIPLES
    ]
    assert KLIEP(bandwidth=0.7).fit(source, target=target).bandwidth_ == 0.7


def test_the_discriminator_may_be_another():
    """Where the domains differ in variance, squares of the features tell them apart."""
    generator = np.random.default_rng(0)
    source, target = generator.normal(size=(2000, 1)), 0.5 * generator.normal(size=(2000, 1))
    ratio = 2 * np.exp(-1.5 * source[:, 0] ** 2)
    squares = make_pipeline(PolynomialFeatures(2), LogisticRegression())
    found = DiscriminatorWeights(squares).fit(source, target=target)
    assert np.corrcoef(found.weights_, ratio)[0, 1] > 0.98
    assert not hasattr(squares, "classes_")  # the one given stays as it is
    lines = DiscriminatorWeights().fit(source, target=target)
    assert abs(np.corrcoef(lines.weights_, ratio)[0, 1]) < 0.5


def test_a_pipeline_weights_its_last_step():
    source, y, target, _ = shifted(0)
    pipeline = make_pipeline(StandardScaler(), LogisticRegression())
    found = ImportanceWeightedClassifier(pipeline, DiscriminatorWeights()).fit(source, y, target=target)
    by_hand = make_pipeline(StandardScaler(), LogisticRegression())
    by_hand.fit(source, y, logisticregression__sample_weight=found.weights_)
    np.testing.assert_array_equal(found.predict_proba(target), by_hand.predict_proba(target))
    np.testing.assert_array_equal(found.decision_function(target), by_hand.decision_function(target))


def test_it_offers_what_its_classifier_offers():
    classifier = ImportanceWeightedClassifier(LinearSVC(), DiscriminatorWeights())
    assert hasattr(classifier, "decision_function")
    assert not hasattr(classifier, "predict_proba")


@every
@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda x, t: (x, t[:, :1]), "source has 2 features, but the target 1"),
        (lambda x, t: (x, np.where(t > 0, np.nan, t)), "the target contains NaN or infinity"),
        (lambda x, t: (np.where(x > 0, np.inf, x), t), "the source contains NaN or infinity"),
        (lambda x, t: (x, t[:0]), "the target has 0 samples"),
        (lambda x, t: (x[:1], t), "the source has 1 sample,"),
    ],
)
def test_the_sentence_says_which_domain(weights, change, sentence):
    source, y, target, _ = shifted(0)
    source, target = change(source, target)
    for fit in (
        lambda: weights.fit(source, target=target),
        lambda: ImportanceWeightedClassifier(LogisticRegression(), weights).fit(
            source, y[: len(source)], target=target
        ),
    ):
        with pytest.raises(UserError, match=sentence):
            fit()


@pytest.mark.parametrize(
    ("weights", "sentence"),
    [
        (KernelMeanMatching(bandwidth=0.0), "KernelMeanMatching: bandwidth must be a number above 0 or None"),
        (KernelMeanMatching(limit=1.0), "needs limit > 1"),
        (KLIEP(bandwidth=-1.0), "KLIEP: bandwidth must be"),
        (KLIEP(centers=1), "2 centers and 2 folds or more, but got centers=1"),
        (KLIEP(folds=1), "but got centers=100 and folds=1"),
        (DiscriminatorWeights(limit=0.0), "regularization and limit must be above 0"),
        (DiscriminatorWeights(regularization=-1.0), "regularization and limit must be above 0"),
        (DiscriminatorWeights(LinearSVC()), "needs a classifier with predict_proba, but LinearSVC has none"),
    ],
)
def test_wrong_arguments(weights, sentence):
    source, _, target, _ = shifted(0)
    with pytest.raises(UserError, match=sentence):
        weights.fit(source, target=target)


@pytest.mark.parametrize(
    "estimator", [KNeighborsClassifier(), make_pipeline(StandardScaler(), KNeighborsClassifier())], ids=["bare", "last"]
)
def test_a_classifier_that_takes_no_weights_is_refused(estimator):
    source, y, target, _ = shifted(0)
    with pytest.raises(UserError, match="KNeighborsClassifier's fit takes no sample_weight"):
        ImportanceWeightedClassifier(estimator, KLIEP()).fit(source, y, target=target)
