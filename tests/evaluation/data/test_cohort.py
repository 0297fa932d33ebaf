from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluation.data.cohort import Cohort, build_cohorts
from evaluation.data.division import UNUSED
from evaluation.data.samples import Samples
from evaluation.results.presets import PRESETS, Balance, PresetName, Uncertain
from evaluation.results.tasks import BUILT_IN
from infra.errors import UserError
from sharding.format.copies import COPY
from tests.support.sample_records import Label, cell_samples, make_samples


def divided(
    data: Samples,
    dataset: str = "cell",
    preset: PresetName = "gazda2021",
    balance: Balance | None = None,
    uncertain: Uncertain | None = None,
    **options: Any,
) -> Cohort:
    task = BUILT_IN[dataset][0].with_uncertain(uncertain)
    task = replace(task, balance=balance or task.balance)
    cohorts = build_cohorts(dataset, task, data, PRESETS[preset], **{"seed": 0, "folds": 5} | options)
    assert not cohorts.left_out
    [cohort] = cohorts.questions
    return cohort


@settings(max_examples=50)
@given(
    sizes=st.lists(st.integers(1, 12), min_size=60, max_size=90),
    sick=st.lists(st.floats(0, 1), min_size=90, max_size=90),
    giant=st.booleans(),
    official=st.booleans(),
    preset=st.sampled_from(list(PRESETS)),
    seed=st.integers(0, 2**31),
)
def test_no_patient_is_in_two_parts_when_patients_have_many_images_of_both_classes_and_splits(
    sizes: list[int], sick: list[float], giant: bool, official: bool, preset: PresetName, seed: int
) -> None:
    if giant:
        sizes[0] = sum(sizes)  # one patient with half of the images
    patients = [f"p{number}" for number, size in enumerate(sizes) for _ in range(size)]
    draws = np.random.default_rng(seed).random((2, len(patients)))
    share = np.repeat(np.array(sick[: len(sizes)]) > 0.5, sizes) * 0.8 + 0.1
    splits = (
        ["test" if draw < 0.2 else "train" for draw in draws[1]] if official else None
    )  # which ignores the patients
    try:
        cohort = divided(cell_samples(patients, list(draws[0] < share), splits), preset=preset, seed=seed)
    except UserError:
        return  # too few patients of a class: an error, tested below
    for fold in cohort.folds:
        for number in range(-1, 5):
            inside = fold == number
            assert not set(cohort.patients[inside]) & set(cohort.patients[~inside])
            assert set(cohort.classes[inside]) == {0, 1}


def test_split_is_80_20_in_eight_folds_with_the_same_share_of_disease_when_there_is_no_official_one() -> None:
    patients = [f"p{number // 2}" for number in range(1000)]
    data = cell_samples(patients, [number // 2 % 4 == 0 for number in range(1000)])
    cohort = divided(data, folds=None)  # the preset's eight
    [fold] = cohort.folds
    assert cohort.split == "80/20 by patient"
    assert np.mean(fold == -1) == pytest.approx(0.2, abs=0.01)
    for number in range(8):
        assert np.mean(fold == number) == pytest.approx(0.1, abs=0.01)
        assert cohort.classes[fold == number].mean() == pytest.approx(0.25, abs=0.03)


def test_every_image_is_tested_once_in_each_repeat_by_the_rigorous_preset() -> None:
    patients = [f"p{number // 2}" for number in range(400)]
    data = cell_samples(patients, [number // 2 % 4 == 0 for number in range(400)])
    cohort = divided(data, preset="rigorous", repeats=3)
    assert cohort.folds.shape == (15, 400)
    for repeat in range(3):
        assert np.array_equal(cohort.in_test[5 * repeat : 5 * repeat + 5].sum(axis=0), np.ones(400))
    assert not np.array_equal(cohort.folds[0], cohort.folds[5])


def test_split_is_the_same_for_a_seed_and_another_for_another() -> None:
    data = cell_samples([f"p{number}" for number in range(200)], [number % 2 == 0 for number in range(200)])
    first, again, other = (divided(data, seed=seed).folds for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_patient_with_half_of_the_images_stays_in_one_part() -> None:
    patients = ["big"] * 100 + [f"p{number}" for number in range(100)]
    cohort = divided(cell_samples(patients, [number % 2 == 0 for number in range(200)]))
    assert len(set(cohort.folds[0, :100])) == 1


def test_groups_replace_patients_when_given() -> None:
    data = cell_samples([f"p{number}" for number in range(200)], [number % 2 == 0 for number in range(200)])
    groups = np.arange(200) // 4
    cohort = divided(data, groups=groups)
    for group in range(50):
        assert len(set(cohort.folds[0, groups == group])) == 1


def test_official_split_is_kept_and_development_images_of_tested_patients_are_left_out() -> None:
    patients = [f"p{number}" for number in range(60)] + [f"p{number}" for number in range(10)]
    splits = ["train"] * 50 + ["val"] * 10 + ["test"] * 10
    cohort = divided(cell_samples(patients, [number % 2 == 0 for number in range(70)], splits))
    assert cohort.split == "official"
    assert np.array_equal(cohort.rows, np.arange(10, 70))
    assert np.array_equal(cohort.in_test[0], np.arange(10, 70) >= 60)
    assert cohort.excluded["development image of a tested patient"] == 10


def test_images_of_neither_both_or_uncertain_labels_are_left_out_and_counted() -> None:
    labels: list[Label] = [{"Pneumonia": 1, "No Finding": None}, {"Pneumonia": None, "No Finding": 1}]
    labels = labels * 30 + [
        {"Pneumonia": -1, "No Finding": None},
        {"Pneumonia": -1, "No Finding": 1},
        {"Pneumonia": 0, "No Finding": 0},
        {"Pneumonia": None, "No Finding": None},
        {"Edema": 1},
        {"Pneumonia": 1, "No Finding": 1},
    ]
    cohort = divided(make_samples([f"p{n}" for n in range(66)], labels), "chexpert")
    assert cohort.excluded == {"label uncertain": 2, "neither label": 3, "both labels": 1}
    assert np.array_equal(cohort.rows, np.arange(60))
    assert np.array_equal(cohort.classes, np.arange(60) % 2 == 0)


@pytest.mark.parametrize(
    ("uncertain", "positives", "negatives"), [("ignore", 30, 30), ("zeros", 30, 40), ("ones", 40, 30)]
)
def test_uncertain_labels_count_as_the_policy_says(uncertain: Uncertain, positives: int, negatives: int) -> None:
    labels: list[Label] = [{"Pneumonia": 1}, {"Pneumonia": None, "No Finding": 1}] * 30
    labels += [{"Pneumonia": -1}] * 10
    data = make_samples([f"p{n}" for n in range(70)], labels)
    cohort = divided(data, "chexpert", uncertain=uncertain)
    assert (cohort.classes.sum(), (cohort.classes == 0).sum()) == (positives, negatives)
    assert sum(cohort.excluded.values()) == 70 - positives - negatives


def _viewed(seed: int = 0) -> Samples:
    """300 sick and 200 healthy images of one patient each; most of the sick ones are seen from the front."""
    frontal = np.random.default_rng(seed).random(500) < np.repeat([0.8, 0.3], [300, 200])
    data = cell_samples([f"p{number}" for number in range(500)], [number < 300 for number in range(500)])
    return replace(data, views=["frontal-pa" if is_frontal else "frontal-ap" for is_frontal in frontal])


@pytest.mark.parametrize("preset", PRESETS)
def test_balanced_by_class_there_are_as_many_images_of_each(preset: PresetName) -> None:
    first, again, other = (divided(_viewed(), preset=preset, balance="class", seed=seed) for seed in (1, 1, 2))
    assert (first.classes == 1).sum() == (first.classes == 0).sum() == 200
    assert first.excluded["left out to balance by class"] == 100
    assert np.array_equal(first.rows, again.rows)
    assert not np.array_equal(first.rows, other.rows)


def test_balanced_by_view_a_view_reveals_nothing_about_the_class() -> None:
    data = _viewed()
    cohort = divided(data, balance="view")
    for view in ("frontal-pa", "frontal-ap"):
        inside = np.array([data.views[row] == view for row in cohort.rows])
        assert cohort.classes[inside].mean() == 0.5


def test_balance_is_kept_in_the_test_part_of_an_official_split() -> None:
    data = replace(_viewed(), splits=["test" if number % 5 == 0 else "train" for number in range(500)])
    cohort = divided(data, balance="class")
    assert cohort.classes[cohort.in_test[0]].mean() == cohort.classes[~cohort.in_test[0]].mean() == 0.5


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("official", [True, False])
def test_balanced_in_development_the_test_part_stays_as_it_is(preset: PresetName, official: bool) -> None:
    splits: list[str | None] = ["test" if number % 5 == 0 else "train" for number in range(500)]
    data = replace(_viewed(), splits=splits if official else [None] * 500)
    plain, balanced = divided(data, preset=preset), divided(data, preset=preset, balance="development")
    assert np.array_equal(plain.rows, balanced.rows)
    assert np.array_equal(plain.in_test, balanced.in_test)
    for fold, before in zip(balanced.folds, plain.folds, strict=True):
        sick, healthy = (np.sum((fold >= 0) & (balanced.classes == code)) for code in (1, 0))
        assert sick == healthy == np.sum((before >= 0) & (balanced.classes == 0))
        assert np.sum(fold == UNUSED) + np.sum(fold >= 0) == np.sum(before >= 0)
    [left_out] = [count for reason, count in balanced.excluded.items() if "to balance the classes" in reason]
    assert left_out == np.sum((balanced.folds == UNUSED).all(axis=0))


def test_official_split_that_is_ignored_counts_as_none() -> None:
    data = cell_samples([f"p{n}" for n in range(200)], [n % 2 == 0 for n in range(200)])
    split = replace(data, splits=["test" if number < 60 else "train" for number in range(200)])
    without, ignored = divided(data, preset="rigorous"), divided(split, preset="rigorous", split="ignore")
    assert np.array_equal(without.folds, ignored.folds)
    assert (ignored.split, ignored.is_official) == ("5-fold by patient", False)
    assert divided(split, preset="rigorous").is_official


def test_a_task_without_a_negative_label_takes_the_images_without_the_positive_one() -> None:
    labels: list[Label] = [{"COVID-19": 1}, {"COVID-19": 0}] * 20
    labels.append({"COVID-19": None})
    cohort = divided(make_samples([f"p{n}" for n in range(41)], labels), "covidgr")
    assert cohort.classes.tolist() == [1, 0] * 20
    assert cohort.question.negative_name == "no COVID-19"


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (cell_samples([f"p{n}" for n in range(40)], [True] * 40), "0 patients with NORMAL"),
        (cell_samples(["p"] * 40, [n % 2 == 0 for n in range(40)]), "all 40 images of the task show one patient"),
        (cell_samples([f"p{n}" for n in range(8)], [n % 2 == 0 for n in range(8)]), "fewer than the 5 test parts"),
        (
            cell_samples(
                [f"p{n}" for n in range(40)],
                [n % 2 == 0 for n in range(36)] + [True] * 4,
                ["train"] * 36 + ["test"] * 4,
            ),
            "0 patients with NORMAL in its test part",
        ),
        (
            cell_samples(
                [f"p{n}" for n in range(16)], [n % 2 == 0 for n in range(16)], ["train"] * 8 + ["test"] * 8
            ),
            "4 patients with NORMAL in its development part, fewer than the 5 folds",
        ),
        (
            cell_samples([f"p{n}" for n in range(40)], [n % 2 == 0 for n in range(40)], ["test"] * 9 + [None] * 31),
            "31 images have no official split",
        ),
    ],
)  # fmt: skip
def test_cohort_is_refused_in_one_line_when_it_cannot_be_probed(data: Samples, words: str) -> None:
    with pytest.raises(UserError) as caught:
        divided(data)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_part_that_lost_a_class_to_left_out_copies_is_refused_with_their_number() -> None:
    splits = ["test" if number < 20 else "train" for number in range(120)]
    data = cell_samples([f"p{number}" for number in range(120)], [number % 2 == 0 for number in range(120)], splits)
    with pytest.raises(UserError, match=f"NORMAL in its test part after 20 x {COPY}; a probe needs both classes"):
        divided(data, left_out=np.arange(120) < 20)
