"""All pairs of 256-bit hashes within a Hamming distance, without comparing every pair.

faiss offers this search too (IndexBinaryMultiHash), but needs far more to install than these lines.
"""

from collections.abc import Iterator
from itertools import combinations
from typing import Final, cast

import numpy as np

from infra.arrays import Int64, UInt64
from sharding.images.fingerprint import HASH_BITS, HASH_WORDS

BITS: Final = HASH_BITS
WORDS: Final = HASH_WORDS

_BAND_DISTANCE: Final = 2
_FEWEST_BANDS: Final = 13  # so that a band's keys have at most 20 bits, which a table can hold
_CANDIDATES_AT_ONCE: Final = 1 << 18  # about 30 MB of working memory


def distances(first: UInt64, second: UInt64) -> Int64:
    """Return the Hamming distances (n,) between the rows of two arrays (n, WORDS)."""
    return cast(Int64, np.bitwise_count(first ^ second).sum(axis=1, dtype=np.int64))


def pairs_within(hashes: UInt64, distance: int) -> tuple[Int64, Int64]:
    """Return all pairs of hashes that are at most `distance` apart.

    No pair is missed, by the pigeonhole principle (multi-index hashing; Norouzi, Punjani, Fleet 2012): if the bits are
    dealt to distance // 3 + 1 bands, a near pair differs in at most two bits of at least one band. So it suffices to
    compare hashes whose keys in some band differ in at most two bits: a few in a thousand unrelated pairs. Memory
    grows with n and with the number of pairs.

    Args:
        hashes: (n, WORDS)
        distance: in bits, below 64

    Returns:
        The pairs (m, 2) of positions i < j in ascending order, and their distances (m,).
    """
    assert hashes.ndim == 2 and hashes.shape[1] == WORDS, f"hashes of shape {hashes.shape}"
    assert 0 <= distance < BITS // 4, f"a distance of {distance} makes the bands too narrow to tell hashes apart"
    bands = max(distance // (_BAND_DISTANCE + 1) + 1, _FEWEST_BANDS)
    numbers = np.empty(0, np.int64)  # i * n + j of each pair
    for band in range(bands):
        keys = _band_keys(hashes, band, bands)
        order = np.argsort(keys, kind="stable")
        words = np.ascontiguousarray(hashes[order].T)  # hashes with nearly equal keys become neighbors in memory
        parts = [numbers]
        for i, j in _candidates(keys[order], -(-BITS // bands)):
            near = _near(words, i, j, distance)
            first, second = order[i[near]], order[j[near]]
            parts.append(np.minimum(first, second) * len(hashes) + np.maximum(first, second))
        numbers = np.unique(np.concatenate(parts))
    pairs = np.stack(np.divmod(numbers, max(1, len(hashes))), axis=1)
    return pairs, distances(hashes[pairs[:, 0]], hashes[pairs[:, 1]])


def _band_keys(hashes: UInt64, band: int, bands: int) -> Int64:
    """Return every `bands`-th bit from bit `band` on as a number (n,); neighboring bits, which correlate, part."""
    keys = np.zeros(len(hashes), np.int64)
    for bit in range(band, BITS, bands):
        word, shift = divmod(bit, 64)
        keys = keys << 1 | (hashes[:, word] >> np.uint64(shift) & np.uint64(1)).astype(np.int64)
    return keys


def _candidates(ordered: Int64, bits: int) -> Iterator[tuple[Int64, Int64]]:
    """Yield the positions i, j of all ascending keys that differ in at most two bits: each pair once, in blocks."""
    positions = np.arange(len(ordered))
    starts = np.searchsorted(ordered, np.arange((1 << bits) + 1))
    yield from _expanded(positions, positions + 1, starts[ordered + 1])
    flips = [1 << bit for bit in range(bits)]
    masks = flips + [first | second for first, second in combinations(flips, _BAND_DISTANCE)]
    for mask in masks:
        lower = positions[(ordered ^ mask) > ordered]  # the upper key of each pair would find it again
        others = ordered[lower] ^ mask
        yield from _expanded(lower, starts[others], starts[others + 1])


def _expanded(items: Int64, starts: Int64, ends: Int64) -> Iterator[tuple[Int64, Int64]]:
    """Yield the pairs (item, position) for every position in [start, end) of each item, in blocks of bounded size."""
    nonempty = ends > starts
    items, starts, counts = items[nonempty], starts[nonempty], (ends - starts)[nonempty]
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
    """Return the positions of the pairs of columns of (WORDS, n) within `distance`; half of the words exclude most."""
    half = WORDS // 2
    half_distance = sum((np.bitwise_count(word[first] ^ word[second]) for word in words[:half]), np.uint8(0))
    candidates = np.flatnonzero(half_distance <= distance)
    first, second = first[candidates], second[candidates]
    is_near = np.bitwise_count(words[:, first] ^ words[:, second]).sum(axis=0, dtype=np.int64) <= distance
    return candidates[is_near]
