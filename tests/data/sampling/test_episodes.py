"""Episodes: bit-exact, independent of company, uniform, and correct with respect to the source's labels."""

from itertools import permutations

import numpy as np
import pytest
import torch
from scipy import stats

from metatransfer.data import Augmentation, EpisodeSize, FixedShape, SemiSupervised, TensorSource
from metatransfer.data.sampling.augment import Changes
from metatransfer.data.sampling.episodes import EpisodeSampler, ShapedSampler
from metatransfer.functional.random import random_words, stream_keys

SIZES = [8, 3, 5, 12, 4, 30]
ALPHA = 1e-4
N = 20_000
FIELDS = ("support", "support_y", "query", "query_y", "classes", "keys")


def source(sizes=SIZES, seed=0):
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(sizes)), sizes))
    return TensorSource(
        torch.arange(len(labels)).float().unsqueeze(1), labels, [f"c{i}" for i in range(len(sizes))], "S"
    )


def sampler(split="train", seed=0, ways=3, shots=1, queries=2, **kwargs):
    return EpisodeSampler(source(**kwargs), split, seed, EpisodeSize(ways, shots, queries))


def one(sampler, indices):
    [drawn] = sampler.draw(indices)
    return drawn


def uniform_p(counts, expected=None):
    return stats.chisquare(np.asarray(counts).reshape(-1), expected).pvalue


def same(left, right):
    return all((a == b).all() for a, b in zip(left, right, strict=True))


def values(drawn, order=slice(None)):
    return [getattr(drawn, name)[order] for name in FIELDS]


def test_golden_episode():
    """Pinned: published numbers are of these episodes."""
    drawn = one(sampler(ways=3, shots=1, queries=2), np.array([0, 17]))
    found = [value.tolist() for value in values(drawn)]
    assert found == GOLDEN


def test_shapes_and_types():
    drawn = one(sampler(ways=4, shots=2, queries=1), np.arange(5))
    assert drawn.support.shape == drawn.support_y.shape == (5, 8)
    assert drawn.query.shape == drawn.query_y.shape == (5, 4)
    assert drawn.classes.shape == (5, 4)
    assert drawn.keys.shape == (5,)
    assert all(value.dtype == np.int64 for value in values(drawn)[:-1])


def test_no_episode():
    assert one(sampler(), np.arange(0)).support.shape == (0, 3)


@pytest.mark.parametrize(("ways", "shots", "queries"), [(3, 1, 2), (6, 1, 1), (2, 2, 1), (1, 1, 1)])
def test_labels_are_right_and_nothing_comes_twice(ways, shots, queries):
    draw = sampler(ways=ways, shots=shots, queries=queries)
    labels = draw.source.labels
    drawn = one(draw, np.arange(500))
    for t in range(500):
        assert len(set(drawn.classes[t])) == ways
        samples = np.concatenate([drawn.support[t], drawn.query[t]])
        assert len(set(samples.tolist())) == len(samples)  # distinct, so support and query are disjoint too
        assert (labels[drawn.support[t]] == drawn.classes[t][drawn.support_y[t]]).all()
        assert (labels[drawn.query[t]] == drawn.classes[t][drawn.query_y[t]]).all()
        assert (np.bincount(drawn.support_y[t], minlength=ways) == shots).all()
        assert (np.bincount(drawn.query_y[t], minlength=ways) == queries).all()


def test_an_episode_does_not_depend_on_its_company():
    draw = sampler()
    indices = np.array([5, 0, 999, 5, 10**12])
    together = one(draw, indices)
    for i, index in enumerate(indices):
        assert same(values(one(draw, np.array([index]))), values(together, slice(i, i + 1)))
    assert same(values(one(draw, indices[::-1].copy())), values(together, slice(None, None, -1)))
    assert same(values(one(sampler(), indices)), values(together))


@pytest.mark.parametrize("other", [{"seed": 1}, {"split": "val"}, {"split": "test"}, {"seed": -1}])
def test_seed_and_split_change_every_episode(other):
    base, changed = (
        one(sampler(sizes=[50] * 50), np.arange(200)),
        one(sampler(sizes=[50] * 50, **other), np.arange(200)),
    )
    assert (base.keys != changed.keys).all()
    assert (base.support != changed.support).any(1).all()


def test_indices_change_every_episode():
    drawn = one(sampler(sizes=[50] * 50), np.arange(2000))
    assert len({tuple(row) for row in drawn.support}) == 2000


def test_classes_are_uniform_at_every_label():
    """Whatever their size: an episode's classes are drawn by class, not by sample."""
    drawn = one(sampler(), np.arange(N))
    for label in range(3):
        assert uniform_p(np.bincount(drawn.classes[:, label], minlength=6)) > ALPHA


def test_every_ordered_choice_of_classes_is_equally_likely():
    drawn = one(sampler(ways=3), np.arange(N))
    _, counts = np.unique((drawn.classes * 6 ** np.arange(3)).sum(1), return_counts=True)
    assert len(counts) == 120
    assert uniform_p(counts) > ALPHA


def test_label_permutations_are_uniform():
    drawn = one(sampler(sizes=[3, 9, 4], ways=3), np.arange(N))
    counts = [(drawn.classes == order).all(1).sum() for order in permutations(range(3))]
    assert sum(counts) == N
    assert uniform_p(counts) > ALPHA


@pytest.mark.parametrize("part", ["support", "query"])
def test_samples_within_classes_of_different_sizes_are_uniform(part):
    draw = sampler()
    samples = getattr(one(draw, np.arange(N)), part).reshape(-1)
    for k, size in enumerate(SIZES):
        counts = np.bincount(samples, minlength=sum(SIZES))[draw.source.labels == k]
        assert len(counts) == size
        assert uniform_p(counts) > ALPHA


def test_pairs_of_support_and_query_samples_are_uniform():
    draw = sampler(sizes=[4, 4], ways=1, shots=1, queries=1)
    drawn = one(draw, np.arange(N))
    pairs = np.bincount(drawn.support[:, 0] * 8 + drawn.query[:, 0], minlength=64)
    assert (pairs > 0).sum() == 2 * 4 * 3
    assert uniform_p(pairs[pairs > 0]) > ALPHA


@pytest.mark.parametrize("part", ["support_y", "query_y"])
def test_positions_give_no_label_away(part):
    labels = getattr(one(sampler(ways=3, shots=1, queries=2), np.arange(N)), part)
    for position in range(labels.shape[1]):
        assert uniform_p(np.bincount(labels[:, position], minlength=3)) > ALPHA
    first_two = np.bincount(labels[:, 0] * 3 + labels[:, 1], minlength=9).reshape(3, 3)
    per_class = labels.shape[1] // 3
    expected = np.full((3, 3), per_class, float)
    np.fill_diagonal(expected, per_class - 1)
    seen = expected.reshape(-1) > 0
    weights = expected.reshape(-1)[seen] / expected.sum() * N
    assert uniform_p(first_two.reshape(-1)[seen], weights) > ALPHA
    assert first_two.reshape(-1)[~seen].sum() == 0


def test_support_order_query_order_and_classes_are_independent():
    drawn = one(sampler(ways=3, shots=1, queries=1), np.arange(N))
    for left, right, levels in (
        (drawn.support_y[:, 0], drawn.query_y[:, 0], (3, 3)),
        (drawn.support_y[:, 0], drawn.classes[:, 0], (3, 6)),
        (drawn.query_y[:, 0], drawn.classes[:, 2], (3, 6)),
    ):
        table = np.bincount(left * levels[1] + right, minlength=levels[0] * levels[1]).reshape(levels)
        assert stats.chi2_contingency(table).pvalue > ALPHA


def test_augmentation_numbers_are_independent_of_the_samples_that_were_drawn():
    """Both hang on the episode's key: they must not be the same words of the same stream."""
    draw = sampler(sizes=[16] * 3, ways=3, shots=1, queries=1)
    drawn = one(draw, np.arange(4000))
    seen = []

    class Spy(Augmentation):
        num_random = 2

        def __call__(self, x, u):
            seen.append(u.clone())
            return x

    draw.changes = Changes(Spy())
    draw.batch(np.arange(4000), torch.device("cpu"))
    for u, part in zip(seen, ("support", "query"), strict=True):
        level = (u[:, 0].view(4000, -1)[:, 0] * 4).long().numpy()  # of the first sample of every episode
        for label in range(3):
            position = (getattr(drawn, f"{part}_y") == label).argmax(1)
            sample = np.take_along_axis(getattr(drawn, part), position[:, None], 1)[:, 0]
            rank = draw.source.order.argsort()[sample] % 16
            table = np.bincount(level * 16 + rank, minlength=64).reshape(4, 16)
            assert stats.chi2_contingency(table).pvalue > ALPHA, (part, label)


class Numbers(Augmentation):
    """Shows the random numbers that it gets."""

    num_random = 1

    def __call__(self, x, u):
        return u


@pytest.mark.parametrize("shape", [FixedShape(), SemiSupervised(4)])
def test_support_queries_and_unlabelled_samples_are_augmented_by_streams_of_their_own(shape):
    zeros = TensorSource(torch.zeros(60, 1), np.arange(60) % 3, "abc", "toy")
    kind = EpisodeSampler if type(shape) is FixedShape else ShapedSampler
    sampler = kind(zeros, "train", 0, EpisodeSize(3, 4, 4), shape=shape, changes=Changes(Numbers()))
    episode = sampler.batch(np.arange(5), torch.device("cpu"))
    parts = [part for part in (episode.support_x, episode.query_x, episode.unlabelled_x) if part is not None]
    assert len(parts) == (2 if type(shape) is FixedShape else 3)
    numbers = torch.cat([part.flatten() for part in parts])
    assert len(numbers.unique()) == numbers.numel() == 5 * 12 * len(parts)


def test_no_two_purposes_share_a_stream():
    keys = one(sampler(), np.arange(50)).keys.view(np.int64)
    of_classes = {int(w) for w in random_words(stream_keys(keys[:, None], np.arange(20)), 4).reshape(-1)}
    own = {int(w) for w in random_words(keys.view(np.uint64), 200).reshape(-1)}
    assert not of_classes & own


GOLDEN = [
    [[11, 39, 10], [29, 46, 13]],
    [[0, 2, 1], [2, 1, 0]],
    [[21, 3, 54, 27, 9, 40], [47, 60, 14, 53, 19, 27]],
    [[0, 1, 2, 0, 2, 1], [2, 1, 0, 1, 0, 2]],
    [[0, 1, 5], [3, 2, 0]],
    [7980832319887205088, 4442966287495541257],
]
