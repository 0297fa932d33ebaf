import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.rng import draw_uint64, draw_words, permutation, philox4x32, stable_hash, uniform


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [  # the known answers that Random123 publishes for philox4x32-10
        ([0, 0, 0, 0], (0, 0), [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        ([0xFFFFFFFF] * 4, (0xFFFFFFFF, 0xFFFFFFFF), [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            (0xA4093822, 0x299F31D0),
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ),
    ],
)
def test_philox_gives_the_published_answers(counter: list[int], key: tuple[int, int], expected: list[int]) -> None:
    assert philox4x32(np.array([counter], np.uint32), key)[0].tolist() == expected


def test_draws_do_not_depend_on_what_else_is_drawn() -> None:
    items = np.array([3, 2**40 + 1, 3, 9], np.uint64)
    epochs = np.array([0, 0, 1, 7])
    together = draw_words(5, "view", items, epochs, 6)
    for row, (item, epoch) in enumerate(zip(items, epochs, strict=True)):
        assert draw_words(5, "view", np.array([item]), epoch, 9)[0, :6].tolist() == together[row].tolist()
    assert len({tuple(row) for row in together.tolist()}) == 4


def test_draws_of_64_bits_are_pairs_of_words_the_first_above() -> None:
    items = np.array([3, 2**40 + 1], np.uint64)
    words = draw_words(5, "shards", items, 7, 6).astype(object)
    assert draw_uint64(5, "shards", items, 7, 3).tolist() == (words[:, ::2] * 2**32 + words[:, 1::2]).tolist()


def test_streams_and_seeds_are_not_correlated() -> None:
    items = np.arange(100, dtype=np.uint64)
    draws = [uniform(seed, stream, items, 0, 1)[:, 0] for seed in (0, 1) for stream in ("a", "b")]
    correlations = np.asarray(np.corrcoef(draws))[np.triu_indices(4, 1)]
    assert np.abs(correlations).max() < 0.35


def test_uniform_fills_the_unit_interval_evenly() -> None:
    draws = uniform(0, "test", np.arange(50_000, dtype=np.uint64), 3, 2)
    assert draws.min() > 0
    assert draws.max() < 1
    counts = np.histogram2d(draws[:, 0], draws[:, 1], bins=10, range=[[0, 1], [0, 1]])[0]
    chi2 = ((counts - 500) ** 2 / 500).sum()
    assert 50 < chi2 < 160  # 99 degrees of freedom


@given(st.integers(0, 300), st.integers(0, 2**63), st.integers(0, 2**40), st.integers(0, 1000))
def test_permutation_holds_every_number_once(size: int, seed: int, item: int, epoch: int) -> None:
    order = permutation(size, seed, "p", item, epoch)
    assert sorted(order.tolist()) == list(range(size))
    assert order.tolist() == permutation(size, seed, "p", item, epoch).tolist()


def test_permutation_of_small_sets_is_even() -> None:
    seen = [tuple(permutation(3, 0, "p", item)) for item in range(6000)]
    counts = [seen.count(order) for order in sorted(set(seen))]
    assert len(counts) == 6
    assert min(counts) > 850


def test_stable_hash_is_the_same_in_every_process() -> None:
    assert stable_hash("cell/person1_bacteria_2") == 3568353761493884282
