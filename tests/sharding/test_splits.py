from math import ceil

from hypothesis import given
from hypothesis import strategies as st

from sharding.splits import patient_tiers

patients = st.sets(st.text(max_size=8), min_size=1, max_size=300)
seeds = st.integers(0, 2**40)


@given(patients, seeds)
def test_patient_tiers_hold_1_and_10_percent_of_the_patients_rounded_up(names, seed):
    tiers = patient_tiers(names, seed)
    assert set(tiers) == names
    for percent in (1, 10, 100):
        assert sum(tier <= percent for tier in tiers.values()) == ceil(len(names) * percent / 100)


@given(patients, seeds)
def test_patient_tiers_are_the_same_when_patients_come_in_another_order_and_repeat(names, seed):
    ordered = sorted(names)
    assert patient_tiers(ordered, seed) == patient_tiers(ordered[::-1] + ordered, seed)


def test_patient_tiers_differ_when_the_seed_does():
    names = [f"patient{i}" for i in range(500)]
    first, second = ({name for name, tier in patient_tiers(names, seed).items() if tier <= 10} for seed in (0, 1))
    assert len(first & second) < 20  # by chance 5 of 50


def test_patient_tiers_keep_nearly_all_when_one_patient_is_added():
    names = [f"patient{i}" for i in range(500)]
    before, after = patient_tiers(names, 3), patient_tiers([*names, "another"], 3)
    assert sum(before[name] != after[name] for name in names) <= 4
