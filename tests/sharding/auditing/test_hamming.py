import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sharding.auditing.hamming import BITS, WORDS, distances, pairs_within


def hashes_with_copies(seed: int, size: int) -> np.ndarray:
    """Return random hashes (size, WORDS); every second one is the one before with 0 to 63 bits flipped."""
    random = np.random.default_rng(seed)
    bits = random.integers(0, 2, (size, BITS), dtype=np.uint8)
    for i in range(1, size, 2):
        bits[i] = bits[i - 1]
        bits[i, random.choice(BITS, random.integers(0, 64), replace=False)] ^= 1
    return np.packbits(bits, axis=1).view(np.uint64)


def all_pairs(hashes: np.ndarray, distance: int) -> dict[tuple[int, int], int]:
    first, second = np.triu_indices(len(hashes), 1)
    apart = distances(hashes[first], hashes[second])
    near = zip(first.tolist(), second.tolist(), apart.tolist(), strict=True)
    return {(i, j): d for i, j, d in near if d <= distance}


@settings(max_examples=15)
@given(seed=st.integers(0, 10**6), size=st.integers(0, 120), distance=st.integers(3, 63))
def test_pairs_within_finds_exactly_the_pairs_that_comparing_all_finds(seed: int, size: int, distance: int) -> None:
    hashes = hashes_with_copies(seed, size)
    pairs, apart = pairs_within(hashes, distance)
    listed = list(map(tuple, pairs.tolist()))
    assert dict(zip(listed, apart.tolist(), strict=True)) == all_pairs(hashes, distance)
    assert listed == sorted(listed)


def test_pairs_within_finds_a_pair_wherever_its_bits_differ() -> None:
    """Differences gathered in one band, or spread evenly over all of them."""
    rows = [np.zeros(BITS, np.uint8)]
    for flipped in (range(40), range(0, 240, 6), range(216, 256), [*range(0, 28), *range(100, 112)]):
        rows.append(rows[0].copy())
        rows[-1][list(flipped)] = 1
    pairs, apart = pairs_within(np.packbits(np.stack(rows), axis=1).view(np.uint64), 40)
    assert [pair for pair in pairs.tolist() if pair[0] == 0] == [[0, 1], [0, 2], [0, 3], [0, 4]]
    assert apart[:4].tolist() == [40] * 4


def test_pairs_within_works_in_bounded_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    hashes = np.concatenate([np.zeros((60, WORDS), np.uint64), hashes_with_copies(0, 60)])
    whole = pairs_within(hashes, 40)
    monkeypatch.setattr("sharding.auditing.hamming._CANDIDATES_AT_ONCE", 7)
    pieces = pairs_within(hashes, 40)
    assert all(np.array_equal(expected, actual) for expected, actual in zip(whole, pieces, strict=True))
    assert (whole[0] < 60).all(axis=1).sum() == 60 * 59 // 2


@pytest.mark.slow
def test_pairs_within_compares_few_of_all_pairs_at_the_size_of_chexpert() -> None:
    hashes = np.random.default_rng(0).integers(0, 2**64, (224_316, WORDS), dtype=np.uint64)
    hashes[-1] = hashes[0] ^ np.array([2**20 - 1, 0, 2**20 - 1, 0], np.uint64)
    pairs, apart = pairs_within(hashes, 40)
    assert pairs.tolist() == [[0, 224_315]]
    assert apart.tolist() == [40]
