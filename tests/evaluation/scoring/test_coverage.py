"""Intervals hold the truth as often as they say: benchmarks/coverage.py, small by default and at length when slow."""

from dataclasses import replace

import numpy as np
import pytest

from benchmarks.coverage import (
    COMPARED,
    CROSSINGS,
    PARTS,
    Crossing,
    Part,
    draw_part,
    measure_crossing,
    measure_difference,
    measure_part,
)
from evaluation.scoring.scores import score


def _naive_coverage(part: Part, studies: int, resamples: int) -> float:
    """Return the percentage of intervals of the AUC that hold the truth if images count as patients."""
    held = []
    for seed in range(studies):
        drawn = draw_part(part, seed)
        by_image = replace(drawn, patients=np.arange(len(drawn.patients)))
        estimate = score(by_image, resamples=resamples, seed=seed).auc
        assert estimate.low is not None and estimate.high is not None
        held.append(estimate.low <= part.auc <= estimate.high)
    return 100 * float(np.mean(held))


def test_intervals_hold_the_truth_when_images_cluster_by_patient() -> None:
    part = Part(30, 30, 0.85, images=4, within=0.1)
    found = measure_part(part, 80, 100)
    assert min(found[name].percent for name in ("auc", "ap", "acc", "sen", "spe")) >= 88, found
    assert _naive_coverage(part, 80, 100) < 80  # what resampling images would claim


def test_intervals_hold_the_truth_when_one_class_has_few_patients() -> None:
    found = measure_part(Part(8, 400, 0.85), 150, 100)
    assert found["auc"].percent >= 90, found
    assert found["sen"].percent >= 90, found
    assert found["sen"].without == found["spe"].without == 0
    assert found["auc, all patients"].percent < found["auc"].percent


@pytest.mark.slow
def test_cross_validated_intervals_hold_the_mean_auc_of_such_classifiers() -> None:
    found = measure_crossing(Crossing(100, 64, 0.8), 50, 100)
    assert found["AUC"].percent >= 90, found
    assert found["difference"].percent >= 90, found
    assert found["AUC, fixed classifiers"].percent < found["AUC"].percent


@pytest.mark.slow
@pytest.mark.parametrize("part", PARTS, ids=str)
def test_intervals_hold_the_truth_in_one_part_when_measured_finely(part: Part) -> None:
    found = measure_part(part, 500, 200)
    least = 88 if min(part.positive, part.negative) < 20 else 90  # few patients hide the images that score low
    for name in ("auc", "acc", "sen", "spe", "f1", "f1_negative"):
        assert found[name].percent >= least, (name, found)
        assert found[name].without == 0, (name, found)


@pytest.mark.slow
@pytest.mark.parametrize("part", COMPARED, ids=str)
def test_differences_hold_the_truth_when_measured_finely(part: Part) -> None:
    found = measure_difference(part, 600, 200)
    assert found["bootstrap"].percent >= 93, found
    assert 91 <= found["DeLong"].percent <= 98, found


@pytest.mark.slow
@pytest.mark.parametrize("study", CROSSINGS, ids=str)
def test_cross_validated_intervals_hold_the_mean_auc_when_measured_finely(study: Crossing) -> None:
    found = measure_crossing(study, 250, 200)
    assert found["AUC"].percent >= 93, found
    assert found["difference"].percent >= 93, found
