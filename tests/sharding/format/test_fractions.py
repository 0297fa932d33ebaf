from math import ceil

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from infra.arrays import UInt64
from sharding.format.fractions import patient_tiers

patients = st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=300, unique=True)
seeds = st.integers(0, 2**40)


def identities(values: list[int]) -> UInt64:
    return np.array(values, np.uint64)


@given(patients, seeds)
def test_patient_tiers_hold_1_and_10_percent_of_the_patients_rounded_up(values: list[int], seed: int) -> None:
    tiers = patient_tiers(identities(values), seed)
    for percent in (1, 10, 100):
        assert np.sum(tiers <= percent) == ceil(len(values) * percent / 100)


@given(patients, seeds)
def test_patient_tiers_are_the_same_when_patients_come_in_another_order_and_repeat(
    values: list[int], seed: int
) -> None:
    tiers = patient_tiers(identities(values), seed).tolist()
    assert patient_tiers(identities(values[::-1] + values), seed).tolist() == tiers[::-1] + tiers


def test_patient_tiers_differ_when_the_seed_does() -> None:
    values = identities(list(range(500)))
    first, second = (patient_tiers(values, seed) <= 10 for seed in (0, 1))
    assert np.sum(first & second) < 20  # by chance 5 of 50


def test_patient_tiers_keep_nearly_all_when_one_patient_is_added() -> None:
    values = list(range(500))
    before, after = patient_tiers(identities(values), 3), patient_tiers(identities([*values, 2**60]), 3)
    assert np.sum(before != after[:500]) <= 4
