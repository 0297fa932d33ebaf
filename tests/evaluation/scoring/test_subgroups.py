from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluation.scoring.scores import Predictions, auc_difference, score
from evaluation.scoring.subgroups import age_group, subgroups


def _predictions(seed: int, patients: int = 200, images: int = 2, strength: float = 2.0) -> Predictions:
    random = np.random.default_rng(seed)
    patient = np.repeat(np.arange(patients), images)
    classes = (np.arange(patients) % 2)[patient]
    values = strength * classes + random.normal(size=patients)[patient] + 0.3 * random.normal(size=len(patient))
    probabilities = 1 / (1 + np.exp(-values))
    return Predictions(classes, probabilities, probabilities > 0.7, patient, np.zeros_like(patient))


def _by_patient(predictions: Predictions, names: list[str | None]) -> list[str | None]:
    """Give every second pair of patients, one of each class, the next name."""
    return [names[patient // 2 % len(names)] for patient in predictions.patients]


@settings(max_examples=30)
@given(seed=st.integers(0, 2**31), names=st.lists(st.sampled_from(["F", "M", None]), min_size=1, max_size=5))
def test_counts_of_the_groups_add_up_to_the_test_part(seed: int, names: list[str | None]) -> None:
    predictions = _predictions(seed, patients=30)
    result, _ = subgroups(
        predictions, {"sex": _by_patient(predictions, names), "view": ["pa"] * 60}, smallest=10, resamples=0, seed=0
    )
    for attribute in ("sex", "view"):
        groups = [group for group in result if group.attribute == attribute]
        assert sum(group.images for group in groups) == 60
        assert sum(group.patients for group in groups) == 30
        assert sum(group.positive for group in groups) == 30


def test_people_are_counted_also_where_groups_of_them_are_resampled() -> None:
    predictions = _predictions(1)
    pairs = replace(predictions, patients=predictions.patients // 4)
    counted, _ = subgroups(
        pairs, {"view": ["pa"] * 400}, identities=predictions.patients.astype(np.uint64), resamples=0, seed=0
    )
    assert [(group.images, group.patients) for group in counted] == [(400, 200)]


def test_scores_of_a_group_are_those_of_its_images_alone() -> None:
    predictions = _predictions(1)
    sexes = _by_patient(predictions, ["F", "M"])
    women = np.array(sexes) == "F"
    alone = score(predictions.of(women), resamples=0, seed=0)
    result, _ = subgroups(predictions, {"sex": sexes}, resamples=200, seed=0)
    [of_women] = [group for group in result if group.group == "F"]
    assert of_women.auc is not None
    assert of_women.sen is not None
    assert of_women.spe is not None
    assert (of_women.auc.value, of_women.sen.value, of_women.spe.value) == (
        alone.auc.value,
        alone.sen.value,
        alone.spe.value,
    )
    for estimate in (of_women.auc, of_women.sen, of_women.spe):
        assert estimate.low is not None
        assert estimate.high is not None
        assert 0 <= estimate.low < estimate.value < estimate.high <= 1


def test_group_of_everything_has_the_interval_of_the_whole() -> None:
    predictions = _predictions(2)
    [whole], gaps = subgroups(predictions, {"view": ["pa"] * 400}, resamples=200, seed=3)
    assert whole.auc == score(predictions, resamples=200, seed=3).auc
    assert gaps == []


@pytest.mark.parametrize(
    ("images", "positive", "scored"), [(50, 10, True), (49, 10, False), (50, 9, False), (50, 41, False)]
)
def test_group_is_scored_from_fifty_images_with_ten_of_each_class(images: int, positive: int, scored: bool) -> None:
    patients = np.arange(images)
    classes = (patients < positive).astype(np.int64)
    probabilities = np.random.default_rng(0).random(images)
    predictions = Predictions(classes, probabilities, probabilities > 0.5, patients, np.zeros(images, np.int64))
    [group], _ = subgroups(predictions, {"sex": ["F"] * images}, resamples=0, seed=0)
    assert (group.images, group.patients, group.positive) == (images, images, positive)
    for estimate in (group.auc, group.sen, group.spe):
        assert (estimate is not None) is scored


def test_group_is_listed_only_when_no_part_holds_both_of_its_classes() -> None:
    predictions = _predictions(3)
    [group], _ = subgroups(replace(predictions, parts=predictions.classes), {"sex": ["F"] * 400}, resamples=0, seed=0)
    assert group.images == 400
    assert group.auc is None


def test_gap_is_between_the_extremes_and_leaves_unknown_out() -> None:
    random = np.random.default_rng(4)
    predictions = _predictions(4, patients=400)
    sexes = _by_patient(predictions, ["a", "b", "c", None])
    noise = {"a": 0.0, "b": 1.5, "c": 4.0, None: 50.0}
    values = predictions.classes * 2 + random.normal(size=800) * np.array([0.3 + noise[sex] for sex in sexes])
    predictions = replace(predictions, probabilities=1 / (1 + np.exp(-values)))
    groups, [gap] = subgroups(predictions, {"sex": sexes}, resamples=300, seed=0)
    aucs = {group.group: group.auc.value for group in groups if group.auc}
    assert (gap.attribute, gap.highest, gap.lowest) == ("sex", "a", "c")
    assert aucs["unknown"] < aucs["c"]
    assert gap.auc.value == aucs["a"] - aucs["c"]
    assert gap.auc.low is not None
    assert gap.auc.high is not None
    assert 0 < gap.auc.low < gap.auc.value < gap.auc.high


def test_gap_is_resampled_jointly_when_groups_share_their_patients() -> None:
    predictions = _predictions(5, patients=60, images=2)
    views = ["pa", "lateral"] * 60  # two images of every patient that say nearly the same
    frontal = np.array(views) == "pa"
    paired = auc_difference(predictions.of(frontal), predictions.of(~frontal), resamples=500, seed=7)
    _, [gap] = subgroups(predictions, {"view": views}, resamples=500, seed=7)
    assert gap.auc.value == abs(paired.value)
    assert paired.low is not None
    assert paired.high is not None
    expected = (paired.low, paired.high) if gap.highest == "pa" else (-paired.high, -paired.low)
    assert (gap.auc.low, gap.auc.high) == pytest.approx(expected)


def test_groups_of_equal_auc_have_a_gap_of_nothing() -> None:
    predictions = _predictions(6, patients=100, images=2)
    copied = predictions.of(np.repeat(np.arange(0, 200, 2), 2))
    _, [gap] = subgroups(copied, {"view": ["pa", "lateral"] * 100}, resamples=100, seed=0)
    assert (gap.auc.value, gap.auc.low, gap.auc.high) == (0, 0, 0)
    assert gap.highest != gap.lowest


def test_there_is_no_gap_when_only_one_known_group_is_scored() -> None:
    predictions = _predictions(7)
    assert subgroups(predictions, {"sex": _by_patient(predictions, ["F", None])}, resamples=0, seed=0)[1] == []


def test_groups_are_listed_by_name_with_ages_ascending_and_unknown_last() -> None:
    predictions = _predictions(8)
    ages: list[str | None] = [None, *map(age_group, (85, 5, 70, 50, 30))]
    result, _ = subgroups(
        predictions,
        {"sex": _by_patient(predictions, ["M", None, "F"]), "age": _by_patient(predictions, ages)},
        resamples=0,
        seed=0,
    )
    assert [group.group for group in result] == [
        *("F", "M", "unknown"),
        *("under 18", "18-39", "40-59", "60-79", "80 and over", "unknown"),
    ]


@pytest.mark.parametrize(
    ("age", "group"),
    [
        (None, None),
        *((0, "under 18"), (17.9, "under 18"), (18, "18-39"), (39.9, "18-39"), (40, "40-59"), (59, "40-59")),
        *((60, "60-79"), (79.5, "60-79"), (80, "80 and over"), (104, "80 and over")),
    ],
)
def test_age_group_of_an_age(age: float | None, group: str | None) -> None:
    assert age_group(age) == group
