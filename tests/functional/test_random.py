"""Random streams: golden values, independence of company, uniformity by chi-square."""

import math
from itertools import permutations

import numpy as np
import pytest
from scipy import stats

from metatransfer.functional.random import random_permutations, random_subsets, random_words, stream_keys

N = 60_000
ALPHA = 1e-4  # the seeds are fixed: a test that passes once passes always


def uniform_p(counts):
    return stats.chisquare(np.asarray(counts).reshape(-1)).pvalue


def test_golden_values():
    """Pinned: a change of the stream changes every published episode, and must be made on purpose."""
    assert stream_keys(0, 0, 0).item() == GOLDEN_KEYS[0]
    assert stream_keys(1, 2, np.arange(2)).tolist() == GOLDEN_KEYS[1:3]
    assert stream_keys(-1).item() == GOLDEN_KEYS[3]
    keys = stream_keys(3, np.arange(2))
    assert random_words(keys, 2).tolist() == GOLDEN_WORDS
    assert random_subsets(keys, 100, 4).tolist() == GOLDEN_SUBSETS
    assert random_permutations(keys, 5).tolist() == GOLDEN_PERMUTATIONS


def test_words_are_splitmix64():
    """Against plain Python integers (Steele, Lea, Flood 2014)."""
    mask = (1 << 64) - 1

    def mix(z):
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & mask
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB & mask
        return z ^ (z >> 31)

    seeds = [0, 1, 1234567, mask, 1 << 63]
    expected = [[mix((seed + (i + 1) * 0x9E3779B97F4A7C15) & mask) for i in range(5)] for seed in seeds]
    assert random_words(np.array(seeds, dtype=np.uint64), 5).tolist() == expected
    assert random_words(np.array([1234567], dtype=np.uint64), 1).item() == 6457827717110365317  # published


def test_start_continues_a_stream():
    keys = stream_keys(5, np.arange(4))
    whole = random_words(keys, 10)
    assert (random_words(keys, 4, start=6) == whole[:, 6:]).all()
    assert (random_permutations(keys, 4, start=3) == whole[:, 3:7].argsort(1)).all()
    assert (random_subsets(keys, 50, 3, start=2) != random_subsets(keys, 50, 3)).any()


def test_keys_broadcast_and_depend_on_every_part_and_their_order():
    table = stream_keys(7, np.arange(3)[:, None], np.arange(4))
    assert table.shape == (3, 4)
    assert table.dtype == np.uint64
    assert table[2, 1] == stream_keys(7, 2, 1)
    many = [stream_keys(*parts).item() for parts in permutations((0, 1, 2))]
    many += [stream_keys(*parts).item() for parts in [(0,), (0, 0), (0, 0, 0), (1,), (-1,), (2**63 - 1,), (-(2**63),)]]
    assert len(set(many)) == len(many)
    large = stream_keys(np.arange(300)[:, None], np.arange(300))
    assert len(np.unique(large)) == 90_000


def test_no_numpy_warning_is_let_out(recwarn):
    with np.errstate(all="raise"):
        random_subsets(stream_keys(2**62, np.arange(3)), 10, 5)
    assert not recwarn.list


def test_inputs_are_not_changed():
    indices, keys = np.arange(5), stream_keys(0, np.arange(5))
    copies = indices.copy(), keys.copy()
    stream_keys(0, indices)
    random_subsets(keys, 9, 3)
    assert (indices == copies[0]).all()
    assert (keys == copies[1]).all()


def test_a_stream_does_not_depend_on_its_company():
    indices = np.array([3, 99, 0, 7, 7, 2**40])
    sizes = np.array([5, 8, 5, 9, 9, 1000])
    keys = stream_keys(1, 2, indices)
    subsets, orders = random_subsets(keys, sizes, 5), random_permutations(keys, 6, start=10)
    for i in range(len(indices)):
        alone = stream_keys(1, 2, indices[i : i + 1])
        assert (random_subsets(alone, int(sizes[i]), 5) == subsets[i]).all()
        assert (random_permutations(alone, 6, start=10) == orders[i]).all()


@pytest.mark.parametrize(("population", "size"), [(1, 1), (5, 5), (7, 3), (20_000, 20), (2**31, 4)])
def test_subsets_are_distinct_and_in_range(population, size):
    drawn = random_subsets(stream_keys(0, np.arange(2000)), population, size)
    assert drawn.shape == (2000, size)
    assert drawn.min() >= 0
    assert drawn.max() < population
    assert (np.diff(np.sort(drawn, axis=1), axis=1) > 0).all()


def test_empty_requests():
    keys = stream_keys(0, np.arange(3))
    assert random_subsets(keys, 5, 0).shape == (3, 0)
    assert random_subsets(keys[:0], 5, 2).shape == (0, 2)
    assert random_permutations(keys, 0).shape == (3, 0)


@pytest.mark.parametrize(("population", "size"), [(5, 3), (4, 4), (6, 2), (7, 1)])
def test_every_ordered_subset_is_equally_likely(population, size):
    drawn = random_subsets(stream_keys(11, np.arange(N)), population, size)
    codes = (drawn * population ** np.arange(size)).sum(1)
    _, counts = np.unique(codes, return_counts=True)
    assert len(counts) == math.perm(population, size)
    assert uniform_p(counts) > ALPHA


def test_each_position_is_uniform_over_a_large_population():
    drawn = random_subsets(stream_keys(12, np.arange(N)), 1000, 8)
    for position in range(8):
        assert uniform_p(np.bincount(drawn[:, position], minlength=1000)) > ALPHA


def test_populations_that_differ_per_stream():
    sizes = np.tile([3, 4, 10], N // 3)
    drawn = random_subsets(stream_keys(13, np.arange(N)), sizes, 3)
    for size in (3, 4, 10):
        for position in range(3):
            assert uniform_p(np.bincount(drawn[sizes == size, position], minlength=size)) > ALPHA


def test_permutations_are_uniform():
    orders = random_permutations(stream_keys(14, np.arange(N)), 4)
    _, counts = np.unique((orders * 4 ** np.arange(4)).sum(1), return_counts=True)
    assert len(counts) == 24
    assert uniform_p(counts) > ALPHA


def test_every_bit_is_fair_and_neighbouring_streams_are_independent():
    words = random_words(stream_keys(0, 0, np.arange(N)), 2)
    bits = (words[:, 0, None] >> np.arange(64, dtype=np.uint64)) & np.uint64(1)
    assert (np.abs(bits.mean(0) - 0.5) < 5 * 0.5 / math.sqrt(N)).all()
    high = (words >> np.uint64(60)).astype(np.int64)
    for left, right in ((high[:-1, 0], high[1:, 0]), (high[:, 0], high[:, 1])):
        assert uniform_p(np.bincount(left * 16 + right, minlength=256)) > ALPHA


def test_neighbouring_seeds_splits_and_indices_differ_everywhere():
    base = random_words(stream_keys(0, 0, np.arange(1000)), 3)
    for other in (stream_keys(1, 0, np.arange(1000)), stream_keys(0, 1, np.arange(1000)),
                  stream_keys(0, 0, np.arange(1000, 2000))):  # fmt: skip
        assert not (random_words(other, 3) == base).any()


GOLDEN_KEYS = [7980832319887205088, 6599445857645767271, 11526686802003757459, 4815193057359064352]
GOLDEN_WORDS = [[6352591062004787696, 15961747102070146606], [3149175628225073209, 9375347365369761439]]
GOLDEN_SUBSETS = [[84, 10, 33, 14], [63, 16, 26, 49]]
GOLDEN_PERMUTATIONS = [[2, 3, 0, 4, 1], [0, 4, 3, 1, 2]]
