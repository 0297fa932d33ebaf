from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluation.features import Samples
from evaluation.protocol import Uncertain, build_cohort
from infra.errors import UserError


def samples_of(
    patients: Sequence[str], labels: Sequence[dict[str, int | None]], splits: Sequence[str | None] | None = None
) -> Samples:
    ids = np.arange(len(patients), dtype=np.uint64)
    return Samples(ids, ids, list(patients), list(splits or [None] * len(patients)), list(labels))


def cell(patients: Sequence[str], sick: Sequence[bool], splits: Sequence[str | None] | None = None) -> Samples:
    return samples_of(patients, [{"PNEUMONIA": int(one), "NORMAL": int(not one)} for one in sick], splits)


@settings(deadline=None, max_examples=50)
@given(
    sizes=st.lists(st.integers(1, 12), min_size=60, max_size=90),
    sick=st.lists(st.floats(0, 1), min_size=90, max_size=90),
    seed=st.integers(0, 2**31),
)
def test_parts_and_folds_share_no_patient_when_patients_have_many_images_of_both_classes(
    sizes: list[int], sick: list[float], seed: int
) -> None:
    patients = [f"p{number}" for number, size in enumerate(sizes) for _ in range(size)]
    draws = np.random.default_rng(seed).random(len(patients))
    share = np.repeat(np.array(sick[: len(sizes)]) > 0.5, sizes) * 0.8 + 0.1
    try:
        cohort = build_cohort("cell", cell(patients, list(draws < share)), folds=5, seed=seed)
    except UserError:
        return  # too few patients of a class, which is said and tested below
    for number in range(-1, 5):
        inside = cohort.fold == number
        assert not set(cohort.patients[inside]) & set(cohort.patients[~inside])
        assert set(cohort.classes[inside]) == {0, 1}
    assert cohort.shared_patients == 0


def test_test_part_is_a_fifth_with_the_same_share_of_disease_when_there_is_no_official_split() -> None:
    patients = [f"p{number // 2}" for number in range(1000)]
    cohort = build_cohort("cell", cell(patients, [number // 2 % 4 == 0 for number in range(1000)]), folds=5, seed=3)
    assert cohort.split == "80/20 by patient"
    assert cohort.in_test.mean() == pytest.approx(0.2, abs=0.01)
    for number in range(-1, 5):
        assert cohort.classes[cohort.fold == number].mean() == pytest.approx(0.25, abs=0.02)


def test_split_is_the_same_for_a_seed_and_another_for_another() -> None:
    data = cell([f"p{number}" for number in range(200)], [number % 2 == 0 for number in range(200)])
    first, again, other = (build_cohort("cell", data, folds=5, seed=seed).fold for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_patient_with_half_of_the_images_stays_in_one_part() -> None:
    patients = ["big"] * 100 + [f"p{number}" for number in range(100)]
    cohort = build_cohort("cell", cell(patients, [number % 2 == 0 for number in range(200)]), folds=5, seed=0)
    assert len(set(cohort.fold[:100])) == 1


def test_official_split_is_kept_and_its_shared_patients_counted() -> None:
    patients = [f"p{number}" for number in range(60)] + [f"p{number}" for number in range(10)]
    splits = ["train"] * 50 + ["val"] * 10 + ["test"] * 10
    cohort = build_cohort("cell", cell(patients, [number % 2 == 0 for number in range(70)], splits), folds=5, seed=0)
    assert cohort.split == "official"
    assert np.array_equal(cohort.in_test, np.arange(70) >= 60)
    assert cohort.shared_patients == 10


def test_images_of_neither_both_or_uncertain_labels_are_left_out_and_counted() -> None:
    labels: list[dict[str, int | None]] = [{"Pneumonia": 1, "No Finding": None}, {"Pneumonia": None, "No Finding": 1}]
    labels = labels * 30 + [
        {"Pneumonia": -1, "No Finding": None},
        {"Pneumonia": -1, "No Finding": 1},
        {"Pneumonia": 0, "No Finding": 0},
        {"Pneumonia": None, "No Finding": None},
        {"Edema": 1},
        {"Pneumonia": 1, "No Finding": 1},
    ]
    cohort = build_cohort("chexpert", samples_of([f"p{n}" for n in range(66)], labels), folds=5, seed=0)
    assert cohort.excluded == {"label uncertain": 2, "neither label": 3, "both labels": 1}
    assert np.array_equal(cohort.rows, np.arange(60))
    assert np.array_equal(cohort.classes, np.arange(60) % 2 == 0)


@pytest.mark.parametrize(
    ("uncertain", "positives", "negatives"), [("ignore", 30, 30), ("zeros", 30, 40), ("ones", 40, 30)]
)
def test_uncertain_labels_count_as_the_policy_says(uncertain: Uncertain, positives: int, negatives: int) -> None:
    labels: list[dict[str, int | None]] = [{"Pneumonia": 1}, {"Pneumonia": None, "No Finding": 1}] * 30
    labels += [{"Pneumonia": -1}] * 10
    data = samples_of([f"p{n}" for n in range(70)], labels)
    cohort = build_cohort("chexpert", data, folds=5, seed=0, uncertain=uncertain)
    assert (cohort.classes.sum(), (cohort.classes == 0).sum()) == (positives, negatives)
    assert sum(cohort.excluded.values()) == 70 - positives - negatives


def test_a_balanced_cohort_has_equally_many_patients_of_each_class_and_none_of_both() -> None:
    patients = [f"p{n // 2}" for n in range(200)]  # two images each; every tenth patient has one of either class
    positive = [n // 2 < 30 or (n // 2 % 10 == 0 and n % 2 == 0) for n in range(200)]
    data = cell(patients, positive)
    first, again, other = (build_cohort("cell", data, folds=5, seed=seed, balanced=True) for seed in (1, 1, 2))
    of_class = [set(first.patients[first.classes == code]) for code in (1, 0)]
    assert len(of_class[0]) == len(of_class[1]) == 37
    assert not of_class[0] & of_class[1]
    assert first.excluded["left out to balance the patients"] == 200 - len(first.rows)
    assert np.array_equal(first.rows, again.rows)
    assert not np.array_equal(first.rows, other.rows)


def test_a_task_without_a_negative_label_takes_the_images_without_the_positive_one() -> None:
    labels: list[dict[str, int | None]] = [{"COVID-19": 1}, {"COVID-19": 0}] * 20 + [{"COVID-19": None}]
    cohort = build_cohort("covidgr", samples_of([f"p{n}" for n in range(41)], labels), folds=5, seed=0)
    assert cohort.classes.tolist() == [1, 0] * 20
    assert cohort.task.negative_name == "no COVID-19"


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (cell([f"p{n}" for n in range(40)], [True] * 40), "0 patients with NORMAL"),
        (cell(["p"] * 40, [n % 2 == 0 for n in range(40)]), "all 40 images of the task are of patient 'p'"),
        (cell([f"p{n}" for n in range(8)], [n % 2 == 0 for n in range(8)]), "fewer than the 5 parts"),
        (
            cell(
                [f"p{n}" for n in range(40)],
                [n % 2 == 0 for n in range(36)] + [True] * 4,
                ["train"] * 36 + ["test"] * 4,
            ),
            "0 patients with NORMAL in its test part",
        ),
        (
            cell(
                [f"p{n}" for n in range(8)] * 2, [n % 2 == 0 for n in range(16)], ["train"] * 8 + ["test"] * 8
            ),
            "4 patients with NORMAL in its development part, fewer than the 5 parts",
        ),
        (
            cell([f"p{n}" for n in range(40)], [n % 2 == 0 for n in range(40)], ["test"] * 9 + [None] * 31),
            "31 images have no official split",
        ),
    ],
)  # fmt: skip
def test_cohort_is_refused_in_one_line_when_it_cannot_be_probed(data: Samples, words: str) -> None:
    with pytest.raises(UserError) as caught:
        build_cohort("cell", data, folds=5, seed=0)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_dataset_without_a_task_is_refused_by_name() -> None:
    with pytest.raises(UserError, match=r"'folder' has no task.*cell, chestxray14, chexpert"):
        build_cohort("folder", cell(["p"], [True]), folds=5, seed=0)
