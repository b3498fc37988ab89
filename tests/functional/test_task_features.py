"""Task features: against formulas written out, against scikit-learn, and where they are not defined."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from sklearn.datasets import load_iris

from messages import keep
from metatransfer import UserError
from metatransfer.functional.task_features import TaskFeatures, task_features


def blobs(classes=3, each=20, dimensions=5, spread=3.0, seed=0):
    rng = np.random.default_rng(seed)
    y = np.repeat(np.arange(classes), each)
    return rng.normal(size=(classes, dimensions))[y] * spread + rng.normal(size=(len(y), dimensions)), y


def test_sizes_and_classes():
    x, y = blobs(each=20)
    found = task_features(x[:-15], y[:-15])  # 20, 20 and 5 samples
    shares = np.array([20, 20, 5]) / 45
    assert (found.samples, found.dimensions, found.classes, found.ways, found.shots) == (45, 5, 3, 3, 20)
    assert found.imbalance == 4
    assert found.samples_per_dimension == 9
    assert found.majority == pytest.approx(20 / 45)
    assert found.class_entropy == pytest.approx(-(shares * np.log(shares)).sum() / np.log(3))
    assert task_features(x, y, ways=2, shots=1)[3:5] == (2, 1)
    part = task_features(x[::2], y[::2], all_labels=y)
    assert (part.samples, part.shots, part.samples_per_dimension) == (60, 20, 12)
    assert part.nearest_mean == task_features(x[::2], y[::2]).nearest_mean


def test_statistics_are_those_of_the_formulas():
    x, y = blobs()
    found = task_features(np.column_stack([x, np.ones(len(x))]), y)
    z = (x - x.mean(0)) / x.std(0)
    corr = z.T @ z / len(z)
    values = np.linalg.eigvalsh(corr)
    assert found.constant == pytest.approx(1 / 6)
    assert found.skewness == pytest.approx(np.abs((z**3).mean(0)).mean(), abs=1e-12)
    assert found.kurtosis == pytest.approx((z**4).mean(0).mean() - 3, abs=1e-12)
    assert found.correlation == pytest.approx(np.abs(corr[np.triu_indices(5, 1)]).mean(), abs=1e-12)
    assert found.effective_dimensions == pytest.approx(values.sum() ** 2 / (values**2).sum() / 5, abs=1e-12)


def test_landmarks_and_information_follow_the_separation():
    near, far, random = (task_features(*blobs(spread=spread)) for spread in (0.5, 5.0, 0.0))
    for name in ("mutual_information", "most_informative", "nearest_neighbour", "nearest_mean", "linear_probe"):
        assert getattr(random, name) < getattr(near, name) < getattr(far, name), name
    assert far.nearest_mean == far.linear_probe == 1
    assert far.stump == pytest.approx(2 / 3, abs=0.05)  # one split tells two of three classes apart
    assert abs(random.nearest_neighbour - 1 / 3) < 3 * stats.sem(np.tile([0, 0, 1], 20))


def test_mutual_information_of_a_known_case():
    """Two classes far apart in one feature share log 2 nats with it, and nothing with noise."""
    rng = np.random.default_rng(0)
    y = np.repeat([0, 1], 500)
    found = task_features(np.column_stack([y * 10 + rng.normal(size=1000), rng.normal(size=1000)]), y)
    assert found.most_informative == pytest.approx(np.log(2), abs=0.02)
    assert found.mutual_information == pytest.approx(np.log(2) / 2, abs=0.03)


def test_text_labels_and_seed():
    x, y = load_iris(return_X_y=True)
    x = x + np.random.default_rng(0).normal(size=x.shape) * 1e-3  # ties of the estimate of mutual information
    assert task_features(x, y) == task_features(x, np.array(["a", "b", "c"])[y]) == task_features(x, y)
    assert task_features(x, y, max_samples=60) != task_features(x, y, max_samples=60, seed=1)
    assert task_features(x, y).linear_probe > 0.7


def test_one_sample_per_class_leaves_landmarks_undefined():
    found = task_features(np.random.default_rng(0).normal(size=(5, 3)), np.arange(5))
    missing = {name for name, value in found._asdict().items() if np.isnan(value)}
    assert missing == set(TaskFeatures._fields[-4:]) | {"mutual_information", "most_informative"}
    x, y = blobs()
    assert task_features(np.vstack([x, x[:1] + 9]), [*y, 7]).nearest_mean == task_features(x, y).nearest_mean


def test_constant_features_leave_statistics_undefined():
    found = task_features(np.ones((6, 2)), [0, 0, 0, 1, 1, 1])
    assert found.constant == found.class_entropy == 1
    assert np.isnan([found.skewness, found.correlation, found.stump]).all()
    assert task_features(np.eye(4)[:, :1], [0, 0, 0, 0]).class_entropy == 0


@pytest.mark.parametrize(
    ("x", "y", "words"),
    [
        (np.zeros(3), [0, 1, 2], "got shape (3,)"),
        (np.zeros((3, 2)), [0, 1], "labels (2,) for 3 samples"),
        (np.array([[0.0], [np.nan]]), [0, 1], "sample 1 contains NaN"),
    ],
)
def test_mistakes(x, y, words):
    with pytest.raises(UserError) as error:
        task_features(x, y)
    assert words in keep(str(error.value))
