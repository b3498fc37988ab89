"""Task shapes: the published rules, the limits, and one sentence for what cannot be."""

import numpy as np
import pytest
from scipy import stats

from metatransfer import ImbalancedShots, MetaDatasetShape, SemiSupervised, UserError
from metatransfer.data import EpisodeSize, FixedShape
from metatransfer.functional.random import stream_keys

PAPER = EpisodeSize(num_ways=50, num_shots=100, num_queries=10)
ALPHA = 1e-4


def keys(count, seed=0):
    return [stream_keys(seed, np.array([index])) for index in range(count)]


def published(samples, rng, size=PAPER, max_support=500):
    """The rule as the paper words it, step by step with another generator."""
    query = min(size.num_queries, min(n // 2 for n in samples))
    beta = 1 - rng.random()
    total = 0
    for n in samples:
        total += int(np.ceil(beta * min(size.num_shots, n - query)))
    total = min(total, max_support)
    raw = [np.exp(rng.uniform(np.log(0.5), np.log(2))) * n for n in samples]
    return query, [
        min(int(np.floor(weight / sum(raw) * (total - len(samples)))) + 1, n - query)
        for weight, n in zip(raw, samples, strict=True)
    ]


@pytest.mark.parametrize("samples", [[20] * 12, [5, 600, 40, 1300, 90], [2, 3, 4, 5, 6, 7]])
def test_meta_dataset_counts_are_distributed_as_published(samples):
    shape, rng, n = MetaDatasetShape(), np.random.default_rng(0), 3000
    ours = [shape.counts(key, len(samples), np.array(samples), PAPER) for key in keys(n)]
    theirs = [published(samples, rng) for _ in range(n)]
    assert {int(one.query[0]) for one in ours} == {query for query, _ in theirs}
    for index in range(len(samples)):
        found = stats.ks_2samp([one.support[index] for one in ours], [counts[index] for _, counts in theirs])
        assert found.pvalue > ALPHA, index
    totals = stats.ks_2samp([one.support.sum() for one in ours], [sum(counts) for _, counts in theirs])
    assert totals.pvalue > ALPHA


def test_meta_dataset_limits():
    samples = np.array([30, 4, 700, 1300, 55, 21] * 8)
    for key in keys(500):
        counts = MetaDatasetShape().counts(key, len(samples), samples, PAPER)
        assert (counts.support >= 1).all()
        assert (counts.support + counts.query <= samples).all()
        assert (counts.query == 2).all()  # half of the smallest class
        assert counts.support.sum() <= 500
        assert not counts.unlabelled.any()
    # fewer places than classes leave one sample each
    counts = MetaDatasetShape(max_support=3).counts(keys(1)[0], 48, samples, PAPER)
    assert counts.support.tolist() == [1] * 48


def test_meta_dataset_ways_are_uniform():
    drawn = [MetaDatasetShape(min_ways=5).classes(key, 12, PAPER) for key in keys(8000)]
    ways = np.array([ways for ways, _ in drawn])
    assert {distractors for _, distractors in drawn} == {0}
    assert stats.chisquare(np.bincount(ways, minlength=13)[5:13]).pvalue > ALPHA
    assert (ways >= 5).all()
    many = [MetaDatasetShape().classes(key, 1000, PAPER)[0] for key in keys(3000)]
    assert max(many) == 50


def test_linear_imbalance():
    size = EpisodeSize(num_ways=5, num_shots=1, num_queries=3)
    shape = ImbalancedShots(1, 9, "linear")
    drawn = np.array([shape.counts(key, 5, np.full(5, 20), size).support for key in keys(4000)])
    assert (np.sort(drawn, axis=1) == [1, 3, 5, 7, 9]).all()
    # which class is the small one is up to chance
    assert stats.chisquare(np.bincount(drawn.argmin(1), minlength=5)).pvalue > ALPHA


def test_step_imbalance():
    size = EpisodeSize(num_ways=5, num_shots=1, num_queries=3)
    shape = ImbalancedShots(1, 9, "step", minority=0.4)
    for key in keys(100):
        counts = shape.counts(key, 5, np.full(5, 20), size)
        assert sorted(counts.support.tolist()) == [1, 1, 9, 9, 9]
        assert counts.query.tolist() == [3] * 5
    # there is always one small and one large class
    assert sorted(ImbalancedShots(1, 9, "step", 0.01).counts(keys(1)[0], 3, np.full(3, 20), size).support) == [1, 9, 9]
    assert sorted(ImbalancedShots(1, 9, "step", 0.99).counts(keys(1)[0], 3, np.full(3, 20), size).support) == [1, 1, 9]


def test_random_imbalance_is_uniform():
    size = EpisodeSize(num_ways=4, num_shots=1, num_queries=3)
    drawn = np.array([ImbalancedShots(2, 6, "random").counts(key, 4, np.full(4, 20), size)[0] for key in keys(4000)])
    assert stats.chisquare(np.bincount(drawn.reshape(-1), minlength=7)[2:]).pvalue > ALPHA
    assert set(drawn.reshape(-1).tolist()) == {2, 3, 4, 5, 6}


def test_semi_supervised_counts():
    size = EpisodeSize(num_ways=3, num_shots=2, num_queries=4)
    shape = SemiSupervised(num_unlabelled=5, num_distractors=2)
    assert shape.classes(keys(1)[0], 10, size) == (3, 2)
    counts = shape.counts(keys(1)[0], 3, np.full(5, 20), size)
    assert [part.tolist() for part in counts] == [[2, 2, 2, 0, 0], [4, 4, 4, 0, 0], [5] * 5]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: MetaDatasetShape(min_ways=1), "min_ways must be a whole number from 2"),
        (lambda: MetaDatasetShape(max_support=0), "max_support must be a whole number from 1"),
        (lambda: ImbalancedShots(9, 1), "min_shots must not be above max_shots, but they are 9 and 1"),
        (lambda: ImbalancedShots(profile="linaer"), "Did you mean linear?"),
        (lambda: ImbalancedShots(profile="step", minority=1.0), "minority"),
        (lambda: SemiSupervised(0), "num_unlabelled must be a whole number from 1"),
        (lambda: SemiSupervised(5, -1), "num_distractors must be a whole number from 0 to 1000000, but is -1"),
    ],
)
def test_bad_arguments(make, words):
    with pytest.raises(UserError, match=r"^[^\n]*$") as caught:
        make()
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("shape", "samples", "size", "words"),
    [
        (
            MetaDatasetShape(),
            [9] * 4,
            PAPER,
            "has 4 classes, but episodes of eval_task.shape MetaDatasetShape(max_supp",
        ),
        (MetaDatasetShape(), [9, 9, 9, 9, 1], PAPER, "class 'c4' has 1 samples"),
        (MetaDatasetShape(), [9] * 9, EpisodeSize(4, 9, 9), "eval_task.num_ways=4 is the maximum number of classes"),
        (ImbalancedShots(1, 9), [12] * 5, EpisodeSize(5, 1, 4), "need at least 13"),
        (SemiSupervised(5, 2), [30] * 6, EpisodeSize(5, 1, 4), "need at least 7"),
        (SemiSupervised(5, 0), [9] * 6, EpisodeSize(5, 1, 4), "need at least 10"),
        (FixedShape(), [9] * 4, EpisodeSize(5, 1, 4), "need at least 5: lower eval_task.num_ways to 4, or add"),
        (FixedShape(), [], EpisodeSize(5, 1, 4), "has 0 classes, but 5-way 1-shot episodes with 4 queries per class"),
        (FixedShape(), [9, 4, 9], EpisodeSize(3, 2, 3), "class 'c1' has 4 samples, but 3-way 2-shot episodes with 3"),
        (FixedShape(), [9] * 4, EpisodeSize(1, 1, 4), "raise eval_task.num_ways to 2 or more"),
        (SemiSupervised(5, 2), [30] * 6, EpisodeSize(1, 1, 4), "raise eval_task.num_ways to 2 or more"),
    ],
)
def test_impossible_episodes(shape, samples, size, words):
    with pytest.raises(UserError, match=r"^[^\n]*$") as caught:
        shape.check(np.array(samples), [f"c{i}" for i in range(len(samples))], size, "Toys", "eval_task.")
    assert words in str(caught.value)
    assert str(caught.value).startswith("Toys")


def test_repr_names_the_settings():
    assert repr(MetaDatasetShape(5, 400)) == "MetaDatasetShape(max_support=400, min_ways=5)"
