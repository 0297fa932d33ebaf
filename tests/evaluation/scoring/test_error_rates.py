from dataclasses import replace

import numpy as np
import pytest

from evaluation.results.fault_records import GroupErrors
from evaluation.results.scores import Estimate
from evaluation.scoring.error_rates import error_rates
from evaluation.scoring.scores import Predictions, score
from infra.arrays import UInt64


def predictions_of(patients: int, images: int = 2, strength: float = 2.0) -> Predictions:
    random = np.random.default_rng(0)
    patient = np.repeat(np.arange(patients), images)
    classes = (np.arange(patients) % 2)[patient]
    values = strength * (classes - 0.5) + random.normal(size=patients)[patient] + 0.5 * random.normal(size=len(patient))
    probabilities = 1 / (1 + np.exp(-values))
    return Predictions(classes, probabilities, probabilities > 0.5, patient, np.zeros_like(patient))


def people(predictions: Predictions) -> UInt64:
    return predictions.patients.astype(np.uint64)


def mirrored(estimate: Estimate) -> tuple[float, ...]:
    assert estimate.low is not None
    assert estimate.high is not None
    return 1 - estimate.value, 1 - estimate.high, 1 - estimate.low


def interval(estimate: Estimate | None) -> tuple[float | None, ...]:
    assert estimate is not None
    return estimate.value, estimate.low, estimate.high


@pytest.mark.parametrize("strength", [2.0, 50.0])  # with some errors of both kinds, and with none
def test_rates_of_all_images_mirror_sensitivity_and_specificity(strength: float) -> None:
    predictions = predictions_of(60, strength=strength)
    [rates] = error_rates(predictions, {}, identities=people(predictions), resamples=200, seed=3)
    scores = score(predictions, resamples=200, seed=3)
    assert interval(rates.false_negative_rate) == pytest.approx(mirrored(scores.sen), abs=1e-12)
    assert interval(rates.false_positive_rate) == pytest.approx(mirrored(scores.spe), abs=1e-12)


def test_counts_of_the_groups_add_up_to_all_images() -> None:
    predictions = predictions_of(90)
    sexes = [("F", "M", None)[patient // 2 % 3] for patient in predictions.patients]
    everything, *groups = error_rates(predictions, {"sex": sexes}, identities=people(predictions), resamples=0, seed=0)
    assert [group.group for group in groups] == ["F", "M", "unknown"]
    for name in ("images", "patients", "positives", "false_positives", "false_negatives"):
        assert sum(getattr(group, name) for group in groups) == getattr(everything, name)
    wrong = predictions.decisions != (predictions.classes == 1)
    assert everything.false_positives + everything.false_negatives == wrong.sum() > 0
    rate = groups[0].false_positive_rate
    assert rate is not None
    assert rate.value == groups[0].false_positives / (groups[0].images - groups[0].positives)


def test_group_without_a_class_has_no_rate_of_its_errors_and_one_patient_has_a_wide_interval() -> None:
    predictions = predictions_of(41, images=1, strength=50)
    alone = ["one" if patient == 0 else "others" for patient in predictions.patients]  # patient 0 is healthy
    [_, one, others] = error_rates(predictions, {"view": alone}, identities=people(predictions), resamples=100, seed=0)
    assert (one.images, one.patients, one.positives) == (1, 1, 0)
    assert one.false_negative_rate is None
    assert interval(one.false_positive_rate) == pytest.approx((0, 0, 0.975))
    assert others.false_negative_rate is not None


def test_probe_that_never_calls_an_image_positive_misses_all() -> None:
    predictions = predictions_of(40)
    never = replace(predictions, decisions=np.zeros(80, np.bool_))
    [rates] = error_rates(never, {}, identities=people(predictions), resamples=100, seed=0)
    assert (rates.false_positives, rates.false_negatives) == (0, 40)
    assert interval(rates.false_negative_rate) == pytest.approx((1, 0.025 ** (1 / 20), 1))


def test_images_of_a_patient_are_resampled_together() -> None:
    single = predictions_of(100, images=1)
    copied = single.of(np.repeat(np.arange(100), 5))
    rates: list[GroupErrors] = []
    for predictions in (single, copied):
        rates += error_rates(predictions, {}, identities=people(predictions), resamples=200, seed=0)
    assert interval(rates[0].false_positive_rate) == pytest.approx(interval(rates[1].false_positive_rate))
