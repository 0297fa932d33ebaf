"""External validation: which images of two sets take part, and in which part."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from evaluation.data.cohort import Cohort
from evaluation.data.external_cohort import TaskPair, build_external_cohorts
from evaluation.data.joined_sets import JoinedSets
from evaluation.data.labeled_sets import LabeledSet
from evaluation.results.presets import PRESETS, PresetName
from evaluation.results.tasks import BUILT_IN, Question, Task, multilabel
from infra.arrays import Int64
from infra.errors import UserError
from sharding.format.copies import COPY
from sharding.format.manifest import Manifest, Options
from tests.support.sample_records import Label, cell_samples, make_samples

[CELL] = BUILT_IN["cell"]
NIH = BUILT_IN["chestxray14"]


def labeled_set(
    name: str, patients: list[str], sick: list[bool], splits: Sequence[str | None] | None = None, **changes: Any
) -> LabeledSet:
    """A set whose samples and patients have other identities than those of any other name."""
    dataset, options = changes.pop("dataset", "cell"), changes.pop("options", {})
    first = sum(name.encode()) * 1000
    samples = replace(cell_samples(patients, sick, splits), **changes)
    numbers = {patient: number for number, patient in enumerate(dict.fromkeys(patients))}
    identities = np.array([first + numbers[patient] for patient in patients], np.uint64)
    manifest = made_manifest(name, dataset, options)
    shards: Any = None  # no image is read
    return LabeledSet(name, shards, manifest, replace(samples, ids=samples.ids + first, patient_ids=identities), name)


def made_manifest(name: str, dataset: str, options: Options) -> Manifest:
    return Manifest(1, dataset, "-", options, 1, 1, 0.5, 0.25, [], [], name=name)


def two_sets(**of_fitted: Any) -> JoinedSets:
    """120 images of 60 patients, the last 20 in an official test part; and 80 images of 40 other patients."""
    patients, splits = [f"p{number // 2}" for number in range(120)], ["train"] * 100 + ["test"] * 20
    fitted = labeled_set("a", patients, [number // 2 % 3 == 0 for number in range(120)], splits, **of_fitted)
    others = [f"q{number // 2}" for number in range(80)]
    return JoinedSets(fitted, labeled_set("b", others, [number // 2 % 2 == 0 for number in range(80)]))


def all_divided(sets: JoinedSets, preset: PresetName = "rigorous", **changes: Any) -> list[Cohort]:
    options: dict[str, Any] = {"seed": 0, "split": "official", "left_out": None, "folds": 4, "groups": sets.patients}
    tasks = changes.pop("tasks", TaskPair(CELL, CELL))
    return build_external_cohorts("b, fitted on a", sets, tasks, PRESETS[preset], **options | changes).questions


def divided(sets: JoinedSets, preset: PresetName = "rigorous", **changes: Any) -> Cohort:
    [cohort] = all_divided(sets, preset, **changes)
    return cohort


@pytest.mark.parametrize("preset", PRESETS)
def test_one_set_is_fitted_and_every_image_of_the_other_is_tested_once(preset: PresetName) -> None:
    cohort = divided(two_sets(), preset)
    [fold] = cohort.folds
    assert cohort.is_external and not cohort.is_official
    assert np.array_equal(cohort.rows[fold >= 0], np.arange(100))  # its own test part stays out
    assert np.array_equal(cohort.rows[fold == -1], np.arange(120, 200))
    assert cohort.excluded["in the official test part of a"] == 20
    assert sum(cohort.excluded.values()) == 20
    for number in range(4):
        inside = fold == number
        assert set(cohort.classes[inside]) == {0, 1}
        assert not set(cohort.patients[inside]) & set(cohort.patients[~inside])
    whole = divided(two_sets(), preset, split="ignore")
    assert np.array_equal(whole.rows[whole.folds[0] >= 0], np.arange(120))


@pytest.mark.parametrize("preset", PRESETS)
def test_what_shares_a_group_with_a_fitted_image_is_not_tested_by_either_preset(preset: PresetName) -> None:
    sets = two_sets()
    groups = sets.patients.copy()
    groups[groups == groups[120]] = groups[0]  # a patient of b, two images, has a picture of a
    groups[groups == groups[130]] = groups[110]  # another has one of the official test part, to which nothing is fitted
    cohort = divided(sets, preset, groups=groups)
    assert np.array_equal(cohort.rows[cohort.in_test[0]], np.arange(122, 200))
    assert cohort.excluded["of b, with a patient or picture of the development part"] == 2
    with pytest.raises(UserError) as caught:
        divided(sets, preset, groups=np.where(np.arange(200) < 120, groups, groups[0]))
    assert "0 patients with PNEUMONIA and 0 patients with NORMAL in its test part after 80 x of b, with a" in str(
        caught.value
    )


def codes(dataset: str, first: Options, second: Options) -> Int64:
    names = ["p", "p", "q", "q"]
    sets = [
        labeled_set(name, names, [True] * 4, dataset=dataset, options=options)
        for name, options in (("a", first), ("b", second))
    ]
    return JoinedSets(*sets).patients


def test_equal_names_are_one_patient_where_one_source_gave_them(capsys: pytest.CaptureFixture[str]) -> None:
    cases: list[tuple[str, Options, Options, bool]] = [
        ("chestxray14", {}, {}, True),
        ("chestxray14", {}, {"simulated": True}, False),
        ("folder", {}, {}, False),
        ("dicom", {"dicom.pseudonym_key": "k"}, {"dicom.pseudonym_key": "k"}, True),
        ("dicom", {"dicom.pseudonym_key": "k"}, {"dicom.pseudonym_key": "l"}, False),
    ]
    for dataset, first, second, same in cases:
        found = codes(dataset, first, second)
        assert np.array_equal(found[:4], found[4:]) is same
        assert len(set(found.tolist())) == (2 if same else 4)
    named: Options = {"folder.patient": "who"}
    sets = [labeled_set(name, ["p", "q"], [True] * 2, dataset="folder", options=named) for name in "ab"]
    JoinedSets(*sets).warn_of_equal_names()
    assert "warning: 2 patients of b have names of patients of a" in capsys.readouterr().err


def test_each_set_is_balanced_as_its_own_task_says() -> None:
    sets = two_sets()
    classes = {}
    for task in NIH:
        words = replace(task, questions=(Question("PNEUMONIA", "NORMAL"),))
        cohort = divided(sets, tasks=TaskPair(words, CELL))
        classes[task.balance] = np.bincount(cohort.classes[cohort.in_development[0]]).tolist()
        assert cohort.in_test.sum() == 80
        cohort = divided(sets, tasks=TaskPair(CELL, words))
        assert cohort.in_development.sum() == 100
        assert cohort.in_test.sum() == 80  # half of them are sick, so a balance takes none of b
    assert classes == {"development": [34, 34], "class": [34, 34], "view": [34, 34]}


def test_sets_that_call_one_label_otherwise_answer_in_the_words_of_the_task() -> None:
    fitted = two_sets().fitted
    english: list[Label] = [{"tuberculosis": number % 2, "edema": number % 3 % 2} for number in range(80)]
    short: list[Label] = [{"TB": number % 2, "edema": number % 3 % 2} for number in range(80)]
    task = replace(multilabel("two", ["tuberculosis", "edema"]), names=(("tuberculosis", "TB"),))
    assert task.missing_in({"TB", "edema"}) == [] and task.missing_in({"TB"}) == ["edema"]
    people = [f"p{number}" for number in range(80)]
    one, other = (replace(fitted, samples=make_samples(people, labels)) for labels in (english, short))
    sets = JoinedSets(one, other)
    cohorts = all_divided(sets, tasks=TaskPair(task, task), groups=np.arange(160))
    assert [cohort.question.positive for cohort in cohorts] == ["tuberculosis", "edema"]
    for cohort in cohorts:
        assert np.array_equal(cohort.classes[:80], cohort.classes[80:])


def test_copies_of_an_audit_and_images_without_an_answer_are_counted_by_set() -> None:
    sets = two_sets()
    labels = [
        dict.fromkeys(of_image) if number < 3 else of_image for number, of_image in enumerate(sets.samples.labels)
    ]
    sets = JoinedSets(replace(sets.fitted, samples=replace(sets.fitted.samples, labels=labels[:120])), sets.tested)
    left_out = np.isin(np.arange(200), [10, 150, 151])
    cohort = divided(sets, left_out=left_out)
    assert cohort.excluded["neither label in a"] == 3
    assert cohort.excluded["neither label in b"] == 0
    assert cohort.excluded[COPY] == 3


def test_a_task_of_classes_is_fitted_and_tested_for_the_same_classes() -> None:
    labels: list[Label] = [{name: int(number % 3 == code) for code, name in enumerate("xyz")} for number in range(120)]
    people = [f"p{number}" for number in range(120)]
    one, other = (
        replace(two_sets().fitted, samples=make_samples(people, [*labels[shift:], *labels[:shift]])) for shift in (0, 1)
    )
    task = Task("mine", "multiclass", tuple(Question(name) for name in "xyz"))
    cohorts = all_divided(JoinedSets(one, other), tasks=TaskPair(task, task), groups=np.arange(240))
    assert [int(cohort.classes[cohort.in_test[0]].sum()) for cohort in cohorts] == [40, 40, 40]
