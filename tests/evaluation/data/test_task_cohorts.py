"""Tasks with several labels: the meaning of their labels, and parts that all labels share."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sklearn.model_selection import StratifiedGroupKFold

from evaluation.data.answers import answers_of, several_classes
from evaluation.data.cohort import build_cohorts
from evaluation.data.samples import Samples
from evaluation.results.presets import PRESETS, PresetName, Uncertain
from evaluation.results.tasks import BUILT_IN, Question, Task, multilabel
from infra.errors import UserError
from infra.rng import permutation
from sharding.datasets import chexpert
from sharding.format.sample import Sample
from tests.support.sample_records import Label, cell_samples, make_samples

EDEMA = chexpert.OBSERVATIONS.index("Edema")


def write_chexpert(root: Path) -> None:
    """CheXpert's tables with all columns: blank, present, absent and uncertain values in turn, other for each label."""
    for name, folder, patients in (("train.csv", "train", 60), ("valid.csv", "valid", 12)):
        lines = [",".join(chexpert.COLUMNS)]
        for number in range(patients):
            values = [("1.0", "0.0", "", "-1.0")[(number + label) % 4] for label in range(len(chexpert.OBSERVATIONS))]
            if folder == "valid":  # radiologists leave nothing open
                values = ["1.0" if (number + label) % 2 else "0.0" for label in range(len(values))]
            path = f"CheXpert-v1.0/{folder}/patient{number + 100 * (folder == 'valid'):05d}/study1/view1_frontal.jpg"
            lines.append(",".join([path, "Female", "60", "Frontal", "AP", *values]))
        (root / name).write_text("\n".join(lines) + "\n")


@pytest.fixture(scope="module")
def chexpert_samples(tmp_path_factory: pytest.TempPathFactory) -> Samples:
    root = tmp_path_factory.mktemp("chexpert")
    write_chexpert(root)
    read = [item for item in chexpert.read(root) if isinstance(item, Sample)]
    samples = make_samples([item.patient for item in read], [dict(item.labels) for item in read])
    return replace(samples, splits=[item.split for item in read])


# Of 60 training images 15 each are present, absent, blank and uncertain for every label; blank counts as absent.
@pytest.mark.parametrize(
    ("policy", "positive", "negative", "uncertain"),
    [(None, 15, 30, 15), ("ignore", 15, 30, 15), ("zeros", 15, 45, 0), ("ones", 30, 30, 0)],
)
def test_chexpert14_counts_uncertain_and_blank_labels_by_its_policy(
    chexpert_samples: Samples, policy: Uncertain | None, positive: int, negative: int, uncertain: int
) -> None:
    task = BUILT_IN["chexpert14"][0].with_uncertain(policy)
    assert [question.positive for question in task.questions] == list(chexpert.OBSERVATIONS)
    for preset in PRESETS.values():
        cohorts = build_cohorts("chexpert", task, chexpert_samples, preset, seed=0, folds=3)
        assert not cohorts.left_out
        for cohort in cohorts.questions:
            assert cohort.split == "official"  # the 12 validation images, since the test part is not there
            assert Counter(cohort.classes[cohort.in_development[0]].tolist()) == {1: positive, 0: negative}
            assert Counter(cohort.classes[cohort.in_test[0]].tolist()) == {1: 6, 0: 6}
            assert cohort.excluded["label uncertain"] == uncertain


def test_a_policy_of_one_label_changes_no_other(chexpert_samples: Samples) -> None:
    task = BUILT_IN["chexpert14"][0]
    questions = tuple(
        replace(question, uncertain="ones") if question.positive == "Edema" else question for question in task.questions
    )
    before, after = (answers_of(item, chexpert_samples.labels) for item in (task, replace(task, questions=questions)))
    changed = (before != after).any(axis=1)
    assert np.flatnonzero(changed).tolist() == [EDEMA]
    assert set(after[EDEMA, before[EDEMA] == -1].tolist()) == {1}


def _labels(count: int, shares: dict[str, float], seed: int = 0) -> tuple[list[str], list[Label]]:
    """Return the patients of three images each, and labels whose shares differ from patient to patient."""
    random = np.random.default_rng(seed)
    patients = [f"p{number // 3}" for number in range(count)]
    of_patient = {name: random.beta(share, 1 - share, count) for name, share in shares.items()}
    return patients, [
        {name: int(random.random() < of_patient[name][number // 3]) for name in shares} for number in range(count)
    ]


@pytest.mark.parametrize("preset", ["gazda2021", "rigorous"])
def test_all_labels_share_parts_that_divide_no_patient_and_keep_the_shares(preset: PresetName) -> None:
    shares = {"common": 0.5, "usual": 0.2, "rare": 0.05}
    patients, labels = _labels(1500, shares)
    for number in range(0, 1500, 7):
        labels[number]["usual"] = None
    task = multilabel("mine", list(shares))
    cohorts = build_cohorts("own", task, make_samples(patients, labels), PRESETS[preset], seed=0)
    common, usual, rare = cohorts.questions
    assert len(common.rows) == len(rare.rows) == 1500
    assert usual.excluded["label unknown"] == 215
    inside = np.isin(common.rows, usual.rows)
    assert np.array_equal(common.folds[:, inside], usual.folds)
    assert np.array_equal(common.patients[inside], usual.patients)
    for cohort in cohorts.questions:
        for fold in cohort.folds:
            parts = {number: cohort.classes[fold == number].mean() for number in np.unique(fold)}
            assert np.allclose(list(parts.values()), cohort.classes.mean(), rtol=0.45)
            assert len({(patient, part) for patient, part in zip(cohort.patients, fold == -1, strict=True)}) == 500


def test_a_label_with_one_patient_is_left_out_by_name_and_the_others_stay() -> None:
    patients, labels = _labels(600, {"a": 0.4, "b": 0.3})
    labels = [of_image | {"hernia": int(number == 0)} for number, of_image in enumerate(labels)]
    task = multilabel("mine", ["a", "hernia", "b"])
    cohorts = build_cohorts("own", task, make_samples(patients, labels), PRESETS["rigorous"], seed=0)
    assert [cohort.question.positive for cohort in cohorts.questions] == ["a", "b"]
    assert cohorts.left_out.keys() == {"hernia"}
    assert cohorts.left_out["hernia"].startswith("has 1 patients with hernia and 200 patients with no hernia, fewer")


def test_a_label_that_is_missing_in_one_fold_is_left_out_by_name() -> None:
    # Of the label's six patients one has all images but five, which the five others share.
    patients, labels = _labels(600, {"a": 0.5})
    patients = ["big" if 300 <= number < 500 else patient for number, patient in enumerate(patients)]
    labels = [
        of_image | {"b": int(patients[number] == "big" or number in (0, 3, 6, 9, 12))}
        for number, of_image in enumerate(labels)
    ]
    splits = ["test" if number >= 540 or number in (9, 10, 11, 12, 13, 14) else "train" for number in range(600)]
    for number in (541, 544, 547, 550):
        labels[number]["b"] = 1
    task = multilabel("mine", ["a", "b"])
    samples = make_samples(patients, labels, splits)
    cohorts = build_cohorts("own", task, samples, PRESETS["rigorous"], seed=0, folds=4)
    [cohort] = cohorts.questions
    assert cohort.question.positive == "a"
    assert "has only one class of b in fold" in cohorts.left_out["b"]


def test_a_label_with_few_tested_patients_has_no_score_but_a_binary_task_does() -> None:
    patients, labels = _labels(600, {"a": 0.5, "b": 0.3})
    splits = ["test" if number >= 450 else "train" for number in range(600)]
    for number in range(450, 600):
        labels[number]["b"] = int(number in (450, 453, 456))
    samples = make_samples(patients, labels, splits)
    several = build_cohorts("own", multilabel("mine", ["a", "b"]), samples, PRESETS["gazda2021"], seed=0)
    assert "fewer than the 5 of each that a score in a mean needs" in several.left_out["b"]
    one = build_cohorts("own", Task("b", "binary", (Question("b"),)), samples, PRESETS["gazda2021"], seed=0)
    assert one.questions[0].classes[one.questions[0].in_test[0]].sum() == 3


def test_classes_exclude_each_other_and_images_of_several_or_none_are_counted() -> None:
    labels: list[Label] = [{name: int(number % 3 == code) for code, name in enumerate("abc")} for number in range(300)]
    labels += [{"a": 1, "b": 1, "c": 0}, {"a": 0, "b": 0, "c": 0}, {"a": -1, "b": 0, "c": 0}]
    task = Task("mine", "multiclass", tuple(Question(name) for name in "abc"))
    samples = make_samples([f"p{number}" for number in range(303)], labels)
    cohorts = build_cohorts("own", task, samples, PRESETS["rigorous"], seed=0)
    assert np.array_equal(np.sum([cohort.classes for cohort in cohorts.questions], axis=0), np.ones(300))
    for cohort in cohorts.questions:
        assert cohort.excluded == {"label uncertain": 1, "none of the classes": 1, "several classes": 1}
        assert np.array_equal(cohort.folds, cohorts.questions[0].folds)


def test_classes_that_overlap_are_blamed_for_the_images_that_they_leave_out() -> None:
    names = ("a", "b", "c")
    labels: list[Label] = [dict.fromkeys(names, 1) for _ in range(90)]
    labels += [{name: int(name == one) for name in names} for one in names for _ in range(6)]
    samples = make_samples([f"p{number}" for number in range(108)], labels)
    task = Task("mine", "multiclass", tuple(Question(name) for name in names))
    with pytest.raises(
        UserError, match=r"because 90 images have several of its classes .* kind: multilabel keeps them"
    ):
        build_cohorts("own", task, samples, PRESETS["rigorous"], seed=0, folds=8)
    assert several_classes(task, labels) == 90
    assert several_classes(multilabel("mine", names), labels) == 0


def test_a_task_whose_labels_all_lack_patients_is_refused_with_the_reasons() -> None:
    labels: list[Label] = [{"a": int(number == 0), "b": int(number == 1)} for number in range(40)]
    samples = make_samples([f"p{number}" for number in range(40)], labels)
    with pytest.raises(UserError, match=r"task 'mine': no label can be probed: a: has 1 patients .*; b: has 1"):
        build_cohorts("own", multilabel("mine", ["a", "b"]), samples, PRESETS["rigorous"], seed=0)


def test_a_task_with_one_question_is_divided_by_its_classes_alone() -> None:
    """The parts of the paper's tasks, as they were before tasks could have several questions."""
    random = np.random.default_rng(3)
    patients = [f"p{number:03d}" for number in random.integers(0, 120, 300)]
    sick = [bool(int(patient[1:]) % 3 == 0) for patient in patients]
    [cohort] = build_cohorts(
        "cell", BUILT_IN["cell"][0], cell_samples(patients, sick), PRESETS["gazda2021"], seed=7
    ).questions
    codes = np.unique(patients, return_inverse=True)[1]
    groups = permutation(codes.max() + 1, 7, "probe-test-0")[codes]
    [_, tested], *_ = StratifiedGroupKFold(5).split(codes, np.array(sick), groups)
    assert np.array_equal(np.flatnonzero(cohort.in_test[0]), tested)
    assert np.array_equal(cohort.classes, sick)
