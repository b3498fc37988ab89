"""Random numbers as a pure function of their keys, without state.

Each episode owns a SplitMix64 stream (Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators"),
keyed by seed, split and index, so that an episode is the same for every number of workers and ranks and after a resume.
All functions are vectorised over streams with 64-bit integers in numpy.
"""

import numpy as np
from numpy.typing import NDArray

__all__ = ["random_permutations", "random_subsets", "random_uniforms", "random_words", "stream_keys"]

_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)

Bits = NDArray[np.uint64]
Integers = NDArray[np.int64]


def _mix(words: Bits) -> Bits:
    words = (words ^ (words >> np.uint64(30))) * _MIX_1
    words = (words ^ (words >> np.uint64(27))) * _MIX_2
    return words ^ (words >> np.uint64(31))


def stream_keys(*parts: int | Integers) -> Bits:
    """Keys of independent streams.

    Args:
        parts: integers or integer arrays that broadcast together, e.g. ``(seed, split, indices)``. Order matters.

    Returns:
        ``uint64`` array of the broadcast shape.
    """
    with np.errstate(over="ignore"):
        key: Bits = np.zeros((), dtype=np.uint64)
        for part in parts:
            # int64 first, so that negative seeds are allowed
            word = np.asarray(part, dtype=np.int64).astype(np.uint64)
            key = _mix((key + _GAMMA) ^ _mix(word + _GAMMA))
        return key


def random_words(keys: Bits, count: int, *, start: int = 0) -> Bits:
    """Draws ``start`` to ``start + count - 1`` of each stream.

    Args:
        keys: ``(...)`` from :func:`stream_keys`.
        count: draws per stream.
        start: position of the first draw; disjoint ranges are independent draws.

    Returns:
        ``(..., count)`` uniform ``uint64``.
    """
    with np.errstate(over="ignore"):
        steps = np.arange(start + 1, start + count + 1, dtype=np.uint64) * _GAMMA
        return _mix(keys[..., None] + steps)


def random_uniforms(keys: Bits, count: int, *, start: int = 0) -> NDArray[np.float32]:
    """Uniform numbers ``(..., count)`` in [0, 1), multiples of ``2**-24``; arguments as in :func:`random_words`."""
    words = random_words(keys, count, start=start) >> np.uint64(40)
    return words.astype(np.float32) * np.float32(2.0**-24)


def random_subsets(keys: Bits, population: int | Integers, size: int, *, start: int = 0) -> Integers:
    """Uniform ordered subsets without replacement: Floyd's algorithm, then a shuffle, for all streams at once.

    The cost is ``O(size**2)`` per stream and does not depend on the population.

    Args:
        keys: ``(N,)`` from :func:`stream_keys`.
        population: ``n``, or ``(N,)`` one per stream; at least ``size``.
        size: elements to draw; ``2 * size`` draws of the stream are used.
        start: position of the first draw.

    Returns:
        ``(N, size)`` distinct integers in ``0 .. population - 1``; all ordered subsets are equally likely.
    """
    words = random_words(keys, size, start=start).T >> np.uint64(32)
    first = np.broadcast_to(np.asarray(population, dtype=np.int64), keys.shape) - size
    top = first + np.arange(size, dtype=np.int64)[:, None]
    # the high half times the bound, shifted, maps to 0 .. top with a bias below 2**-32 * population
    chosen = (words * (top + 1).astype(np.uint64) >> np.uint64(32)).astype(np.int64)
    for step in range(1, size):  # all streams at once
        taken = (chosen[:step] == chosen[step]).any(0)
        np.copyto(chosen[step], top[step], where=taken)
    order = random_permutations(keys, size, start=start + size)
    return np.take_along_axis(chosen.T, order, axis=1)


def random_permutations(keys: Bits, size: int, *, start: int = 0) -> Integers:
    """Uniform permutations ``(N, size)`` of ``0`` to ``size - 1``, one per stream, by ``size`` draws from ``start``."""
    return random_words(keys, size, start=start).argsort(axis=1, kind="stable").astype(np.int64)
