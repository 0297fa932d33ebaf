"""All pairs of 256-bit hashes within a Hamming distance, found without comparing all pairs."""

from collections.abc import Iterator
from itertools import combinations
from typing import Final

import numpy as np
import numpy.typing as npt

from infra.arrays import UInt64

Int64 = npt.NDArray[np.int64]

BITS: Final = 256
WORDS: Final = BITS // 64

_BAND_DISTANCE: Final = 2
_FEWEST_BANDS: Final = 13  # so that the keys of a band have at most 20 bits and address a table
_CANDIDATES_AT_ONCE: Final = 1 << 18  # about 30 MB of working memory


def distances(first: UInt64, second: UInt64) -> Int64:
    """Return the Hamming distances (n,) between the rows of two arrays (n, WORDS)."""
    apart: Int64 = np.bitwise_count(first ^ second).sum(axis=1, dtype=np.int64)
    return apart


def pairs_within(hashes: UInt64, distance: int) -> tuple[Int64, Int64]:
    """Return every pair of rows i < j of `hashes` (n, WORDS) at most `distance` apart.

    The pairs are (m, 2) in ascending order, their distances (m,). None is missed, by the pigeonhole principle
    (multi-index hashing; Norouzi, Punjani, Fleet 2012): when the bits are dealt to distance // 3 + 1 bands, a near pair
    differs in at most two bits of one band at least. So only hashes are compared whose keys in some band are equal but
    for two bits: for unrelated hashes a few in a thousand. Memory grows with n and with the pairs found.
    """
    assert hashes.ndim == 2 and hashes.shape[1] == WORDS, f"hashes of shape {hashes.shape}"
    assert 0 <= distance < BITS // 4, f"a distance of {distance} makes the bands too narrow to tell hashes apart"
    bands = max(distance // (_BAND_DISTANCE + 1) + 1, _FEWEST_BANDS)
    found = [np.empty(0, np.int64)]
    for band in range(bands):
        keys = _band_keys(hashes, band, bands)
        order = np.argsort(keys, kind="stable")
        # Neighbours in memory from here on, since what is compared has nearly equal keys.
        words = np.ascontiguousarray(hashes[order].T)
        for i, j in _candidates(keys[order], -(-BITS // bands)):
            near = _near(words, i, j, distance)
            first, second = order[i[near]], order[j[near]]
            found.append(np.minimum(first, second) * len(hashes) + np.maximum(first, second))
        found = [np.unique(np.concatenate(found))]
    pairs = np.stack(np.divmod(found[0], max(1, len(hashes))), axis=1)
    return pairs, distances(hashes[pairs[:, 0]], hashes[pairs[:, 1]])


def _band_keys(hashes: UInt64, band: int, bands: int) -> Int64:
    """Return every `bands`-th bit from bit `band` on, as a number (n,): neighbouring bits are alike, so they part."""
    keys = np.zeros(len(hashes), np.int64)
    for bit in range(band, BITS, bands):
        word, place = divmod(bit, 64)
        keys = keys << 1 | (hashes[:, word] >> np.uint64(place) & np.uint64(1)).astype(np.int64)
    return keys


def _candidates(ordered: Int64, bits: int) -> Iterator[tuple[Int64, Int64]]:
    """Yield all places i, j of these ascending keys that differ in at most two bits: each pair once, some at a time."""
    places = np.arange(len(ordered))
    starts = np.searchsorted(ordered, np.arange((1 << bits) + 1))
    yield from _expanded(places, places + 1, starts[ordered + 1])
    flips = [1 << bit for bit in range(bits)]
    masks = flips + [first | second for first, second in combinations(flips, _BAND_DISTANCE)]
    for mask in masks:
        lower = places[(ordered ^ mask) > ordered]  # the other one of each pair would find it again
        others = ordered[lower] ^ mask
        yield from _expanded(lower, starts[others], starts[others + 1])


def _expanded(items: Int64, starts: Int64, ends: Int64) -> Iterator[tuple[Int64, Int64]]:
    """Yield the pairs (item, place) for every place in [start, end) of each item, a bounded number at a time."""
    some = ends > starts
    items, starts, counts = items[some], starts[some], (ends - starts)[some]
    last = np.cumsum(counts)
    total = int(last[-1]) if len(last) else 0
    for begin in range(0, total, _CANDIDATES_AT_ONCE):
        number = np.arange(begin, min(begin + _CANDIDATES_AT_ONCE, total))
        low, high = np.searchsorted(last, number[[0, -1]], side="right")
        inside = np.arange(low, high + 1)
        covered = np.minimum(last[inside], number[-1] + 1) - np.maximum(last[inside] - counts[inside], begin)
        owner = np.repeat(inside, covered)
        yield items[owner], starts[owner] + number - (last - counts)[owner]


def _near(words: UInt64, first: Int64, second: Int64, distance: int) -> Int64:
    """Return which of these pairs of columns of (WORDS, n) are within `distance`; half of the words rule out most."""
    half = WORDS // 2
    apart = sum((np.bitwise_count(word[first] ^ word[second]) for word in words[:half]), np.uint8(0))
    maybe = np.flatnonzero(apart <= distance)
    first, second = first[maybe], second[maybe]
    near: Int64 = maybe[np.bitwise_count(words[:, first] ^ words[:, second]).sum(axis=0, dtype=np.int64) <= distance]
    return near
