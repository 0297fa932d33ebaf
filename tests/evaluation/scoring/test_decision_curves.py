import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluation.scoring.decision_curves import THRESHOLDS, decision_curve

images = st.lists(st.tuples(st.integers(0, 1), st.floats(0, 1)), min_size=1, max_size=40)


def test_net_benefit_of_a_case_counted_by_hand() -> None:
    classes = np.array([1, 1, 1, 0, 0, 0, 0, 0, 0, 0])
    probabilities = np.array([0.9, 0.6, 0.2, 0.7, 0.5, 0.1, 0.1, 0.1, 0.05, 0.0])
    curve = decision_curve(classes, probabilities)
    at = {threshold: number for number, threshold in enumerate(curve.thresholds)}
    assert curve.net_benefit[at[0.5]] == pytest.approx(2 / 10 - 2 / 10)  # acts on 0.9, 0.6, 0.7 and 0.5
    assert curve.net_benefit[at[0.2]] == pytest.approx(3 / 10 - 2 / 10 / 4)
    assert curve.net_benefit[at[0.8]] == pytest.approx(1 / 10)
    assert curve.treat_all[at[0.2]] == pytest.approx(3 / 10 - 7 / 10 / 4)
    assert curve.net_benefit[at[0.95]] == 0


@given(images)
def test_a_curve_lies_between_nothing_gained_and_perfection(drawn: list[tuple[int, float]]) -> None:
    classes, probabilities = (np.array(column) for column in zip(*drawn, strict=True))
    curve = decision_curve(classes, probabilities)
    assert curve.thresholds == list(THRESHOLDS)
    perfect = decision_curve(classes, classes.astype(np.float64))
    assert perfect.net_benefit == pytest.approx([classes.mean()] * len(THRESHOLDS))
    assert all(np.array(curve.net_benefit) <= classes.mean() + 1e-12)
    everyone = decision_curve(classes, np.ones(len(classes)))
    assert everyone.net_benefit == everyone.treat_all == curve.treat_all
    assert decision_curve(classes, np.zeros(len(classes))).net_benefit == [0.0] * len(THRESHOLDS)
