from dataclasses import replace

import numpy as np
import pytest

from evaluation.data.attributes import encode_attributes, image_attributes, metadata_attributes
from evaluation.data.division import UNUSED
from evaluation.data.feature_matrix import FeatureMatrix, border
from evaluation.fitting.control_cases import shuffled_within_parts
from evaluation.fitting.probe_cases import few_labels_case
from evaluation.results.presets import PRESETS
from tests.support.probe_cases import made_case, made_task
from tests.support.sample_records import cell_samples


@pytest.mark.parametrize("rounds", [1, 5])
def test_few_labels_are_of_some_development_patients_of_both_classes_and_the_test_part_stays(rounds: int) -> None:
    case = made_case(rounds=rounds)
    smaller, larger = few_labels_case(case, 10, seed=0), few_labels_case(case, 25, seed=0)
    assert smaller is not None
    assert larger is not None
    assert len(smaller.folds) == 5  # draws of one part, or parts
    for number, (few, more, classes) in enumerate(zip(smaller.folds, larger.folds, smaller.classes, strict=True)):
        before = case.folds[number if rounds > 1 else 0]
        assert np.array_equal(few == -1, before == -1)
        assert set(case.patients[few >= 0]) <= set(case.patients[more >= 0])
        assert len(set(case.patients[few >= 0])) == pytest.approx(0.1 * len(set(case.patients[before >= 0])), abs=2)
        for patient in set(case.patients[few >= 0]):
            assert len(set(few[case.patients == patient])) == 1
        for fold in range(3):
            assert set(classes[few == fold]) == {0, 1}
    first = next(smaller.rounds())
    assert len(first.problem.rows) == (smaller.folds[0] != UNUSED).sum()
    assert not np.array_equal(smaller.folds[0], smaller.folds[1])


def test_few_labels_are_refused_when_there_are_too_few_patients_of_a_class() -> None:
    case = made_case()
    sick = (case.patients < 2).astype(np.int64)[None]
    assert few_labels_case(replace(case, classes=sick), 10, seed=0) is None


def test_identity_of_a_problem_changes_with_all_that_its_outcome_depends_on() -> None:
    case = made_case(rounds=2)
    others = [
        case,
        shuffled_within_parts(case, seed=0),
        replace(case, task=made_task(PRESETS["gazda2021"])),
        replace(case, matrix=FeatureMatrix("other", case.matrix.values)),
        replace(case, rows=case.rows[::-1]),
    ]
    identities = [identity for other in others for _, identity, _ in other.rounds()]
    assert len(set(identities)) == len(identities) == 10
    assert identities == [identity for other in others for _, identity, _ in other.rounds()]


def test_border_is_the_outer_three_pixels() -> None:
    pixels = np.zeros((2, 32, 32), np.float32)
    pixels[:, 3:-3, 3:-3] = 1
    result = border(FeatureMatrix("pixels", pixels.reshape(2, -1)))
    assert result.values.shape == (2, 32 * 32 - 26 * 26)
    assert not result.values.any()


def test_attributes_are_none_when_all_images_of_the_task_have_the_same() -> None:
    data = cell_samples(["a", "b", "c"], [True, False, True])
    assert encode_attributes(metadata_attributes(data), np.arange(3)) is None
    data.ages[2] = 40.0
    data.sexes[:] = ["F", "M", "F"]
    result = encode_attributes(metadata_attributes(data), np.arange(3))
    assert result is not None
    assert result.values.tolist() == [[1, 0, 0, 0], [0, 1, 0, 0], [1, 0, np.float32(0.4), 1]]  # sexes, age, known
    assert encode_attributes(metadata_attributes(data), np.array([0])) is None


def test_attributes_of_the_image_are_its_source_its_file_and_its_gray_level() -> None:
    data = cell_samples(["a", "b", "c"], [True, False, True])
    data.source_sizes[:2] = [[2000, 1000], [1000, 1500]]
    data.sizes[:] = [[64, 32], [64, 96], [64, 64]]
    data.file_bytes[:] = [1024, 1536, 4096]
    pixels = FeatureMatrix("pixels", np.array([[1, 3], [0, 0], [2, 2]], np.float32))
    attributes = image_attributes(data, pixels)
    assert np.stack(list(attributes.values())) == pytest.approx(
        np.array([[2, 1, np.nan], [1, 1.5, np.nan], [0.5, 1.5, np.nan], [0.5, 0.25, 1], [2, 0, 2], [1, 0, 0]]),
        nan_ok=True,
    )
    encoded = encode_attributes(attributes, np.arange(3))
    assert encoded is not None
    assert encoded.values[2].tolist() == [0, 0, 0, 1, 2, 0, 0]  # the last column: whether the source's size is known
    sources = {name: values for name, values in attributes.items() if name.startswith("source")}
    assert encode_attributes(sources, np.array([2])) is None
