"""Classifiers of features against loops, scikit-learn and torch's own optimiser."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import sparse
from sklearn.neighbors import NearestCentroid
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC

from metatransfer import FeatureClassifier, LinearProbe, LinearSVM, NearestClassMean, NearestNeighbors, UserError
from metatransfer.adapters import Labelled

CLASSES, SIZE = 4, 6


def samples(count, seed=0, classes=CLASSES, spread=1.0):
    """Overlapping clouds, far from the origin, of features of very different sizes."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(count) % classes
    means = torch.randn(classes, SIZE, generator=torch.Generator().manual_seed(99), dtype=torch.float64)
    noise = torch.randn(count, SIZE, generator=generator, dtype=torch.float64)
    size = torch.logspace(-2, 2, SIZE, dtype=torch.float64)
    return Labelled((means[y] + spread * noise) * size + 3, y)


TRAIN, VAL, QUERY = samples(60), samples(40, 1), samples(50, 2).x
KINDS = [NearestClassMean, lambda: NearestClassMean("euclidean"), NearestNeighbors, LinearSVM]
PROBE = {"learning_rates": 5, "epochs": 4, "batch_size": 16}
EVERY = [*KINDS, lambda: LinearProbe(**PROBE)]
NAMES = ["cosine", "euclidean", "neighbors", "svm", "probe"]
every = pytest.mark.parametrize("make", EVERY, ids=NAMES)


def fitted(make, classes=CLASSES):
    return make().fit(TRAIN, classes, VAL)


# ---- one by one


@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
def test_nearest_class_mean_against_a_loop(distance):
    found = NearestClassMean(distance, scale=7.0).fit(TRAIN, CLASSES)(QUERY)
    for row, query in zip(found, QUERY, strict=True):
        for label in range(CLASSES):
            mean = TRAIN.x[TRAIN.y == label].mean(0)
            expected = 7 * query @ mean / (query.norm() * mean.norm())
            if distance == "euclidean":
                expected = -((query - mean) ** 2).sum()
            assert row[label].item() == pytest.approx(expected.item(), rel=1e-9)


def test_nearest_class_mean_answers_as_scikit_learn():
    reference = NearestCentroid().fit(TRAIN.x.numpy(), TRAIN.y.numpy())
    found = NearestClassMean("euclidean").fit(TRAIN, CLASSES).predict(QUERY)
    assert found.tolist() == reference.predict(QUERY.numpy()).tolist()


@pytest.mark.parametrize("k", [1, 5, 1000])
def test_nearest_neighbours_against_a_loop(k):
    found = NearestNeighbors(k, temperature=0.2).fit(TRAIN, CLASSES)(QUERY)
    for row, query in zip(found, QUERY, strict=True):
        cosines = [float(query @ known / (query.norm() * known.norm())) for known in TRAIN.x]
        nearest = sorted(range(len(cosines)), key=lambda i: -cosines[i])[:k]
        votes = np.zeros(CLASSES)
        for place in nearest:
            votes[TRAIN.y[place]] += math.exp(cosines[place] / 0.2)
        np.testing.assert_allclose(row.exp().numpy(), votes / votes.sum(), rtol=1e-9, atol=1e-12)
    if k == 1:
        known = NearestNeighbors(1).fit(TRAIN, CLASSES)
        assert torch.equal(known.predict(TRAIN.x), TRAIN.y)


@pytest.mark.parametrize("classes", [2, CLASSES])
@pytest.mark.parametrize("strength", [0.01, 1.0])
def test_linear_svm_is_scikit_learns_pipeline(classes, strength):
    train, query = samples(60, classes=classes), samples(50, 2, classes).x
    constant = Labelled(torch.cat([train.x, torch.full((60, 1), 5.0, dtype=torch.float64)], 1), train.y)
    asked = torch.cat([query, torch.full((50, 1), 5.0, dtype=torch.float64)], 1)
    pipeline = make_pipeline(StandardScaler(), LinearSVC(C=strength, dual="auto", random_state=0))
    pipeline.fit(constant.x.numpy(), constant.y.numpy())
    found = LinearSVM(strength).fit(constant, classes)
    expected = pipeline.decision_function(asked.numpy())
    margins = found(asked).numpy()
    np.testing.assert_allclose(margins[:, 1] if classes == 2 else margins, expected, rtol=1e-7, atol=1e-9)
    assert found.predict(asked).tolist() == pipeline.predict(asked.numpy()).tolist()
    if classes == 2:
        np.testing.assert_allclose(margins[:, 0], -expected, rtol=1e-7, atol=1e-9)


def counts(samples=120, words=300):
    """Rows of rare words, of which a few belong to a class."""
    generator, y = np.random.default_rng(0), np.arange(samples) % 3
    rate = 0.03 + 0.4 * ((np.arange(words) % 3 == y[:, None]) & (np.arange(words) < 30))
    return generator.poisson(rate), y


@pytest.mark.parametrize("kind", [sparse.csr_matrix, sparse.csr_array, sparse.coo_matrix, sparse.csc_array])
@pytest.mark.parametrize("dtype", [np.int64, np.float32, np.float64])
def test_linear_svm_keeps_sparse_matrices_sparse(kind, dtype):
    x, y = counts()
    given, labels = kind(x.astype(dtype)), torch.from_numpy(y)
    expected = LinearSVC(C=1.0, dual="auto", random_state=0).fit(sparse.csr_matrix(x.astype(float)), y)
    found = LinearSVM().fit(Labelled(given, labels), 3)
    within = {"rtol": 1e-4, "atol": 1e-5} if dtype == np.float32 else {"rtol": 1e-9, "atol": 1e-12}
    np.testing.assert_allclose(found(given).numpy(), expected.decision_function(x), **within)
    np.testing.assert_allclose(found(torch.from_numpy(x).double()).numpy(), expected.decision_function(x), **within)
    assert found.predict(given).tolist() == expected.predict(x).tolist()


@pytest.mark.parametrize("form", ["to_sparse_coo", "to_sparse_csr", "to_sparse_csc"])
def test_sparse_tensors_are_those_of_scipy(form, monkeypatch):
    x, y = counts()
    dense, labels = torch.from_numpy(x).double(), torch.from_numpy(y)
    expected = LinearSVM().fit(Labelled(sparse.csr_matrix(x), labels), 3)
    given = getattr(dense, form)()
    monkeypatch.setattr(torch.Tensor, "to_dense", None)
    found = LinearSVM().fit(Labelled(given, labels), 3)
    assert torch.equal(found(given), expected(sparse.csr_matrix(x)))
    with pytest.raises(UserError, match="takes dense features, but got a sparse matrix: use LinearSVM"):
        NearestClassMean().fit(Labelled(given, labels), 3)


def test_a_sparse_matrix_is_answered_by_what_was_standardised_too():
    x, y = counts()
    dense = LinearSVM(standardize=True).fit(Labelled(torch.from_numpy(x).double(), torch.from_numpy(y)), 3)
    torch.testing.assert_close(dense(sparse.csr_array(x)), dense(torch.from_numpy(x).double()), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("make", "standardized"),
    [
        (lambda x: x + 0.5, True),  # positive and continuous, as after a ReLU
        (lambda x: x - x.mean(0), True),
        (lambda x: F.normalize(x - x.mean(0)), True),  # embeddings
        (lambda x: x, False),  # counts of words
        (lambda x: (x * 1000).round() + 1, True),  # whole numbers, but none of them 0
        (lambda x: x / x.sum(1, keepdim=True).clamp(min=1), False),  # frequencies
        (lambda x: F.normalize(x), False),
    ],
    ids=["positive", "centred", "embeddings", "counts", "numbers", "frequencies", "unit length"],
)
def test_the_kind_of_feature_decides_whether_to_standardise(make, standardized):
    x, y = counts()
    x[5] = 0  # an empty row changes no kind
    given = Labelled(make(torch.from_numpy(x).double()), torch.from_numpy(y))
    chosen = LinearSVM().fit(given, 3)
    same = LinearSVM(0.01 if standardized else 1.0, standardize=standardized).fit(given, 3)
    assert torch.equal(chosen(given.x), same(given.x))
    assert bool((chosen.learned["deviation"] != 1).any()) is standardized
    other = LinearSVM(0.01 if standardized else 1.0, standardize=not standardized).fit(given, 3)
    assert not torch.allclose(chosen(given.x), other(given.x))


def test_standardising_rare_words_costs_accuracy():
    x, y = counts(600)
    train, test = (Labelled(torch.from_numpy(x[part]).double(), torch.from_numpy(y[part])) for part in (
        slice(0, 60), slice(60, None)))  # fmt: skip
    plain, scaled = (LinearSVM(standardize=given).fit(train, 3) for given in (None, True))
    accuracies = [float((one.predict(test.x) == test.y).double().mean()) for one in (plain, scaled)]
    assert accuracies[0] > accuracies[1] + 0.03


def test_who_takes_no_sparse_matrix_says_so():
    x, y = counts()
    given = Labelled(sparse.csr_matrix(x), torch.from_numpy(y))
    for make in (NearestClassMean, NearestNeighbors, lambda: LinearProbe(**PROBE)):
        with pytest.raises(UserError, match="takes dense features, but got a sparse matrix: use LinearSVM"):
            make().fit(given, 3, given)
    with pytest.raises(UserError, match="would make sparse features dense: set standardize to False"):
        LinearSVM(standardize=True).fit(given, 3)
    with pytest.raises(UserError, match="takes dense features"):
        NearestClassMean().fit(TRAIN, CLASSES)(given.x)
    wrong = sparse.csr_matrix(np.where(x == 0, 0.0, np.nan))
    with pytest.raises(UserError, match="got training features that are NaN or infinite"):
        LinearSVM().fit(Labelled(wrong, given.y), 3)


# ---- the linear probe


def by_torch(rate, epochs, size, decay, seed=0):
    """One head, trained by torch.optim.SGD on the loss itself."""
    mean, deviation = TRAIN.x.mean(0), TRAIN.x.std(0, correction=0)
    x = (TRAIN.x - mean) / deviation
    head = torch.nn.Linear(SIZE, CLASSES).double()
    torch.nn.init.zeros_(head.weight)
    torch.nn.init.zeros_(head.bias)
    optimizer = torch.optim.SGD(
        [{"params": [head.weight], "weight_decay": decay}, {"params": [head.bias]}], lr=rate, momentum=0.9
    )
    steps = epochs * (len(x) // size)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        order = torch.randperm(len(x), generator=generator)
        for start in range(0, len(x) - size + 1, size):
            rows = order[start : start + size]
            optimizer.zero_grad()
            F.cross_entropy(head(x[rows]), TRAIN.y[rows]).backward()
            optimizer.step()
            scheduler.step()
    return lambda query: head((query - mean) / deviation).detach()


@pytest.mark.parametrize(("size", "decay"), [(16, 0.0), (16, 0.05), (60, 0.05), (256, 0.05)])
def test_every_head_is_trained_as_torch_would(size, decay):
    probe = LinearProbe(4, 1e-3, 2.0, epochs=5, batch_size=size, weight_decay=decay, seed=3)
    mean, deviation = TRAIN.x.mean(0), TRAIN.x.std(0, correction=0)
    weight, bias = probe._trained((TRAIN.x - mean) / deviation, TRAIN.y, CLASSES)
    assert probe.rates == pytest.approx(np.logspace(-3, math.log10(2), 4))
    for rate, w, b in zip(probe.rates, weight, bias, strict=True):
        expected = by_torch(rate, 5, min(size, 60), decay, seed=3)(QUERY)
        torch.testing.assert_close(F.linear((QUERY - mean) / deviation, w, b), expected, rtol=1e-8, atol=1e-10)


def test_twenty_rates_at_once_are_twenty_runs_and_the_best_is_kept():
    probe = LinearProbe(20, 1e-4, 10.0, epochs=3, batch_size=16).fit(TRAIN, CLASSES, VAL)
    scores = []
    for rate in probe.rates:
        single = LinearProbe(1, rate, rate, epochs=3, batch_size=16).fit(TRAIN, CLASSES)
        outputs = single(VAL.x)
        right = (outputs.argmax(1) == VAL.y).double().mean().item()
        assert probe.found[rate] == right
        scores.append((right, -F.cross_entropy(outputs, VAL.y).item(), single(QUERY)))
    best = max(range(20), key=lambda place: scores[place][:2])
    assert len({round(score[0], 6) for score in scores}) > 3, "a test that tells rates apart"
    torch.testing.assert_close(probe(QUERY), scores[best][2], rtol=1e-9, atol=1e-9)
    assert probe.learned["learning_rate"].item() == probe.rates[best]


def test_the_probe_is_reproducible_and_depends_on_its_seed():
    probes = [LinearProbe(**PROBE, seed=seed) for seed in (0, 0, 1)]
    torch.rand(3)
    answers = [probe.fit(TRAIN, CLASSES, VAL)(QUERY) for probe in probes]
    assert torch.equal(answers[0], answers[1])
    assert not torch.equal(answers[0], answers[2])
    state = torch.get_rng_state()
    probes[0].fit(TRAIN, CLASSES, VAL)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_rate_that_diverges_is_never_chosen():
    """Where outputs are NaN the largest is class 0: with this validation it would look perfect."""
    zeros = Labelled(VAL.x[:8], torch.zeros(8, dtype=torch.int64))
    probe = LinearProbe(3, 1e-3, 1e308, epochs=20, batch_size=16).fit(TRAIN, CLASSES, zeros)
    assert probe.learned["learning_rate"].item() == pytest.approx(1e-3)
    assert list(probe.found) == [probe.rates[0]] or all(rate < 1e300 for rate in probe.found)
    assert probe(QUERY).isfinite().all()
    for val in (None, zeros):
        with pytest.raises(UserError, match="diverges at all learning rates from 1e"):
            LinearProbe(1, 1e308, 1e308, epochs=20, batch_size=16).fit(TRAIN, CLASSES, val)


# ---- what all share


@every
def test_state_is_tensors_and_answers_follow_from_them(make):
    one, two = fitted(make), make()
    two.learned = {name: value.clone() for name, value in one.learned.items()}
    assert torch.equal(one(QUERY), two(QUERY))
    assert torch.equal(one.predict(QUERY), one(QUERY).argmax(1))
    assert one(QUERY).shape == (50, CLASSES)
    assert not list(one.parameters())
    assert one.learned and not any(value.requires_grad for value in one.learned.values())  # noqa: PT018


@every
def test_a_second_fit_forgets_the_first(make):
    one = make()
    one.fit(samples(40, 7), CLASSES, VAL)
    torch.testing.assert_close(one.fit(TRAIN, CLASSES, VAL)(QUERY), fitted(make)(QUERY), rtol=0, atol=0)


@every
def test_it_learns(make):
    easy = [samples(80, seed, spread=0.2) for seed in range(3)]
    classifier = make().fit(easy[0], CLASSES, easy[1])
    assert (classifier.predict(easy[2].x) == easy[2].y).double().mean() > 0.8


@every
def test_single_precision_is_near_double_and_half_is_widened(make):
    """Features of half precision come out of an autocast network; the answers are not rounded to it."""
    double = fitted(make)
    single = make().fit(*(p if isinstance(p, int) else Labelled(p.x.float(), p.y) for p in (TRAIN, CLASSES, VAL)))
    found, expected = single(QUERY.float()).double().softmax(1), double(QUERY).softmax(1)
    torch.testing.assert_close(found, expected, rtol=0, atol=5e-3)
    half = QUERY.bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(single(half), single(half.float()))
    assert single(half).dtype == torch.float32


@every
def test_a_large_mean_costs_no_digits(make):
    """Features of 1000 +- 0.1 in float32."""
    train, val, query = (Labelled(part.x / 100 + 1000, part.y) for part in (TRAIN, VAL, samples(50, 2)))
    double = make().fit(train, CLASSES, val).predict(query.x)
    single = make().fit(Labelled(train.x.float(), train.y), CLASSES, Labelled(val.x.float(), val.y))
    if not isinstance(single, NearestNeighbors) and getattr(single, "distance", "") != "cosine":  # angles do vanish
        assert (single.predict(query.x.float()) == double).double().mean() > 0.95


@every
def test_one_sample_for_each_class(make):
    one = Labelled(TRAIN.x[:CLASSES], TRAIN.y[:CLASSES])
    assert make().fit(one, CLASSES, one)(QUERY).isfinite().all()


@every
def test_wrong_input_is_one_sentence(make):
    classifier = make()
    x, y = TRAIN
    with pytest.raises(UserError, match="is not fitted yet: fit it first"):
        classifier(QUERY)
    for train, sentence in [
        (Labelled(x[:0], y[:0]), r"needs training features, but got none: shape \(0, 6\)"),
        (Labelled(x, y[:-1]), "needs training features .* and torch.int64 of shape"),
        (Labelled(x[0], y), r"needs training features \(N, E\) of floats"),
        (Labelled(x.long(), y), "got torch.int64 of shape"),
        (Labelled(x, y.double()), "got torch.float64 of shape .* and torch.float64"),
        (Labelled(x, y - 1), "got training labels from -1 to 2, but num_classes=4 takes 0 to 3"),
        (Labelled(x, y + 1), "got training labels from 1 to 4"),
        (Labelled(x, y.clamp(max=2)), "got no training sample of class 3: every class needs one"),
        (Labelled(x.where(x < x.max(), torch.nan), y), "got training features that are NaN or infinite"),
    ]:
        with pytest.raises(UserError, match=sentence):
            classifier.fit(train, CLASSES, VAL)
    classifier.fit(TRAIN, CLASSES, VAL)
    with pytest.raises(UserError, match="was fitted to features of size 6, but got size 5"):
        classifier(QUERY[:, :5])
    with pytest.raises(UserError, match=r"features must be floats of shape \(N, E\), but are torch.float64 of shape"):
        classifier(QUERY[0])
    assert isinstance(classifier, FeatureClassifier)


def test_what_to_choose_by_is_looked_at():
    probe = LinearProbe(**PROBE)
    with pytest.raises(UserError, match="selects its learning rate on validation features: give some, or one rate"):
        probe.fit(TRAIN, CLASSES)
    with pytest.raises(UserError, match="got 6 features for training samples, but 5 for validation samples"):
        probe.fit(TRAIN, CLASSES, Labelled(VAL.x[:, :5], VAL.y))
    with pytest.raises(UserError, match="got validation features that are NaN or infinite"):
        probe.fit(TRAIN, CLASSES, Labelled(VAL.x * torch.nan, VAL.y))
    with pytest.raises(UserError, match="needs validation features, but got none"):
        probe.fit(TRAIN, CLASSES, Labelled(VAL.x[:0], VAL.y[:0]))


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: NearestClassMean("cosin"), "distance must be one of cosine, euclidean"),
        (lambda: NearestClassMean(scale=0), "scale must be a number above 0"),
        (lambda: NearestNeighbors(0), "k must be a number above 0"),
        (lambda: NearestNeighbors(temperature=-1), "temperature must be a number above 0"),
        (lambda: LinearSVM(0), "C must be a number above 0"),
        (lambda: LinearProbe(0), "learning_rates must be a number above 0"),
        (lambda: LinearProbe(lowest=2.0, highest=1.0), "lowest must not be above highest, but they are 2.0 and 1.0"),
        (lambda: LinearProbe(1), "learning_rates=1 needs lowest and highest to be equal"),
        (lambda: LinearProbe(batch_size=0), "batch_size must be a number above 0"),
        (lambda: LinearProbe(weight_decay=-1), "weight_decay must be 0 or more"),
    ],
)
def test_wrong_arguments(make, sentence):
    with pytest.raises(UserError, match=sentence):
        make()


def test_the_protocol_names_the_arguments():
    assert NearestNeighbors(3).protocol() == "NearestNeighbors(k=3)"
    assert LinearSVM().protocol() == "LinearSVM()"
