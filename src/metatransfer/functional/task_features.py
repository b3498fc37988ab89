"""Meta-features: numbers that describe a classification task, from its samples and labels."""

import math
import warnings
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from metatransfer.checks import check_count, check_seed
from metatransfer.errors import UserError

if TYPE_CHECKING:
    from sklearn.base import ClassifierMixin

__all__ = ["TaskFeatures", "task_features"]

MAX_DIMENSIONS = 200  # for quantities of each feature and of each pair of features
_FOLDS = 5
_Array = NDArray[np.float64]


class TaskFeatures(NamedTuple):
    r"""Meta-features of a classification task, all of them floats (Rivolli et al. 2022, 1808.10406, for the terms).

    A value is NaN where it is not defined: the statistics if every feature is constant, the correlation with fewer than
    two features that vary, and the mutual information and the landmarks unless two classes have two samples each. The
    landmarks are accuracies in [0, 1] of a stratified cross-validation with as many folds as the smallest class has
    samples, but at most five; classes of one sample are left out of them.

    Attributes:
        samples: number of labelled samples.
        dimensions: number of features.
        classes: number of classes.
        ways: classes of an episode; the number of classes if the data are not served as episodes.
        shots: labels per class of an episode; the median class size if the data are not served as episodes.
        imbalance: size of the largest class divided by that of the smallest.
        samples_per_dimension: samples divided by features.
        constant: share of features that do not vary.
        skewness: mean absolute skewness of the features.
        kurtosis: mean excess kurtosis of the features.
        correlation: mean absolute correlation of two features.
        effective_dimensions: participation ratio :math:`(\sum\lambda)^2/\sum\lambda^2` of the eigenvalues of the
            correlation matrix, divided by the number of features that vary.
        class_entropy: entropy of the classes, divided by its maximum :math:`\log C`; 0 for one class.
        mutual_information: mean over features of the mutual information with the class, in nats.
        most_informative: its maximum over features.
        majority: share of the largest class.
        nearest_neighbour: accuracy of 1-NN on standardised features.
        nearest_mean: accuracy of the nearest class mean on standardised features.
        stump: accuracy of a decision tree with one split.
        linear_probe: accuracy of ridge regression on the classes, its strength by leave-one-out.
    """

    samples: float
    dimensions: float
    classes: float
    ways: float
    shots: float
    imbalance: float
    samples_per_dimension: float
    constant: float
    skewness: float
    kurtosis: float
    correlation: float
    effective_dimensions: float
    class_entropy: float
    mutual_information: float
    most_informative: float
    majority: float
    nearest_neighbour: float
    nearest_mean: float
    stump: float
    linear_probe: float


def task_features(
    features: ArrayLike,
    labels: ArrayLike,
    *,
    ways: int | None = None,
    shots: int | None = None,
    all_labels: ArrayLike | None = None,
    max_samples: int = 1000,
    seed: int = 0,
) -> TaskFeatures:
    """Computes the meta-features of a task.

    Everything but sizes and classes is computed on at most ``max_samples`` random samples, and quantities of features
    and pairs of features on at most 200 random features.

    Args:
        features: ``(N, D)`` finite numbers.
        labels: ``(N,)`` integers or texts.
        ways: classes of an episode.
        shots: labels per class of an episode.
        all_labels: ``(M,)`` labels of all samples, if ``features`` and ``labels`` are a random part of them; sizes and
            classes are counted on these.
        max_samples: number of samples from which a random part is used.
        seed: seed of the random parts, the folds and the estimate of the mutual information.

    Returns:
        The values, equal for equal arguments.

    Raises:
        UserError: there are no samples or features, one is NaN or infinite, or the labels do not match the samples.
    """
    from scipy.stats import entropy  # slow to import

    check_seed(seed=seed)
    check_count(1, ways=ways, shots=shots)
    check_count(10, max_samples=max_samples)
    x, y = _checked(np.asarray(features, dtype=np.float64), np.asarray(labels))
    _, counts = np.unique(y if all_labels is None else np.asarray(all_labels), return_counts=True)
    rng = np.random.default_rng(seed)
    rows = np.sort(rng.permutation(len(x))[:max_samples])
    part, classes = x[rows], y[rows]
    varying = np.flatnonzero(np.ptp(part, axis=0) > 0)
    few = part[:, np.sort(rng.permutation(varying)[:MAX_DIMENSIONS])]
    shares = counts / counts.sum()
    return TaskFeatures(
        samples=float(counts.sum()),
        dimensions=float(x.shape[1]),
        classes=float(len(counts)),
        ways=float(ways or len(counts)),
        shots=float(shots or np.median(counts)),
        imbalance=float(counts.max() / counts.min()),
        samples_per_dimension=float(counts.sum() / x.shape[1]),
        constant=1 - len(varying) / x.shape[1],
        class_entropy=float(entropy(shares) / math.log(len(counts))) if len(counts) > 1 else 0.0,
        majority=float(shares.max()),
        **_statistics(few),
        **_of_repeated_classes(part[:, varying], few, classes, seed),
    )


def _checked(x: _Array, y: NDArray[Any]) -> tuple[_Array, NDArray[Any]]:
    if x.ndim != 2 or not x.size:
        raise UserError(f"task features need samples of shape (N, D), but got shape {x.shape}: flatten the samples.")
    if y.shape != (len(x),):
        raise UserError(f"task features need one label per sample, but got labels {y.shape} for {len(x)} samples.")
    finite = np.isfinite(x).all(1)
    if not finite.all():
        raise UserError(f"task features: sample {int(finite.argmin())} contains NaN or infinity: fix or remove it.")
    return x, y


def _statistics(x: _Array) -> dict[str, float]:
    """Moments and correlations of features ``(n, d)`` that vary."""
    from scipy import stats  # slow to import

    found = dict.fromkeys(("skewness", "kurtosis", "correlation", "effective_dimensions"), math.nan)
    if x.shape[1]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # features that are constant but for rounding
            found["skewness"] = float(np.nanmean(np.abs(stats.skew(x, axis=0))))
            found["kurtosis"] = float(np.nanmean(stats.kurtosis(x, axis=0)))
    if x.shape[1] > 1:
        matrix: _Array = np.atleast_2d(np.corrcoef(x.T))
        size = len(matrix)
        found["correlation"] = float(np.abs(matrix[~np.eye(size, dtype=bool)]).mean())
        # the eigenvalues sum to the trace, their squares to the squared Frobenius norm
        found["effective_dimensions"] = float(size / np.square(matrix).sum())
    return found


def _of_repeated_classes(x: _Array, few: _Array, y: NDArray[Any], seed: int) -> dict[str, float]:
    """Values that need classes with two samples: mutual information and landmarks."""
    from sklearn.feature_selection import mutual_info_classif  # slow to import

    found = dict.fromkeys(("mutual_information", "most_informative"), math.nan)
    kept, labels = _repeated(y)
    if few.shape[1] and len(set(labels.tolist())) > 1:
        information = mutual_info_classif(few[kept], labels, random_state=seed)
        found = {"mutual_information": float(information.mean()), "most_informative": float(information.max())}
    return {**found, **landmarks(x, y, seed)}


def _repeated(y: NDArray[Any]) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """Which samples are of a class with two samples, and their labels as integers."""
    _, places, counts = np.unique(y, return_inverse=True, return_counts=True)
    kept = counts[places] > 1
    return kept, places[kept]


def landmarks(x: _Array, y: NDArray[Any], seed: int = 0) -> dict[str, float]:
    """The landmarks of :class:`TaskFeatures` by name, on features ``(N, D)`` that vary, with labels ``(N,)``."""
    from sklearn.model_selection import StratifiedKFold, cross_val_score  # slow to import
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    kept, labels = _repeated(y)
    models = _landmarks(seed)
    if not x.shape[1] or len(set(labels.tolist())) < 2:
        return dict.fromkeys(models, math.nan)
    folds = StratifiedKFold(
        int(min(_FOLDS, np.bincount(labels)[np.unique(labels)].min())), shuffle=True, random_state=seed
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # features that are constant within a class or a fold
        return {
            name: float(cross_val_score(make_pipeline(StandardScaler(), model), x[kept], labels, cv=folds).mean())
            for name, model in models.items()
        }


def _landmarks(seed: int) -> dict[str, "ClassifierMixin"]:
    """Classifiers of different kinds that are cheap to train (Pfahringer et al. 2000, ICML)."""
    from sklearn.linear_model import RidgeClassifierCV  # slow to import
    from sklearn.neighbors import KNeighborsClassifier, NearestCentroid
    from sklearn.tree import DecisionTreeClassifier

    return {
        "nearest_neighbour": KNeighborsClassifier(1),
        "nearest_mean": NearestCentroid(),
        "stump": DecisionTreeClassifier(max_depth=1, random_state=seed),
        "linear_probe": RidgeClassifierCV(alphas=10.0 ** np.arange(-1, 5)),
    }
