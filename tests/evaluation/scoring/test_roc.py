from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import roc_curve

from evaluation.scoring.roc import sensitivities
from evaluation.scoring.scores import Predictions, auc
from infra.arrays import Float64


def predictions(images: int = 300, parts: int = 1) -> Predictions:
    random = np.random.default_rng(parts)
    classes = (random.random(images) < 0.3).astype(np.int64)
    probabilities = np.round(random.random(images) / 2 + classes * 0.2, 2).astype(np.float64)  # with ties
    part = random.integers(0, parts, images)
    return Predictions(classes, probabilities, probabilities > 0.5, np.arange(images), part)


def test_the_curve_of_one_part_passes_the_corners_of_scikit_learns() -> None:
    made = predictions()
    rates, hits, _ = roc_curve(made.classes, made.probabilities)
    corners = dict(zip(rates.tolist(), hits.tolist(), strict=True))  # the highest sensitivity of each rate
    at_corners: Float64 = np.array(list(corners))
    assert sensitivities(made, at_corners).tolist() == pytest.approx(list(corners.values()))


@pytest.mark.parametrize("parts", [1, 2, 7])
def test_the_area_below_the_curve_is_the_auc_of_the_table(parts: int) -> None:
    made = predictions(parts=parts)
    rates = np.linspace(0, 1, 20_001)
    assert np.trapezoid(sensitivities(made, rates), rates) == pytest.approx(auc(made), abs=2e-4)


def test_a_part_of_one_class_takes_no_part() -> None:
    made = predictions(parts=2)
    one_class = replace(made, classes=np.where(made.parts == 1, 1, made.classes))
    rates = np.linspace(0, 1, 11)
    assert (sensitivities(one_class, rates) == sensitivities(made.of(made.parts == 0), rates)).all()
    assert np.isnan(sensitivities(one_class.of(made.parts == 1), rates)).all()
