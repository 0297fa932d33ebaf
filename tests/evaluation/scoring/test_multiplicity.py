import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluation.scoring.multiplicity import holm

p_values = st.lists(st.floats(0, 1), max_size=12)


def test_a_family_adjusted_by_hand() -> None:
    # In ascending order: 0.01 x 4, 0.02 x 3, 0.03 x 2 (the same), and 0.04 x 1 is raised to the one before.
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


@given(p_values)
def test_the_adjusted_values_keep_the_order_and_lie_between_each_value_and_bonferronis(values: list[float]) -> None:
    adjusted = holm(values)
    for value, found in zip(values, adjusted, strict=True):
        assert value <= found <= min(1.0, value * len(values))
        assert all(found <= other for p, other in zip(values, adjusted, strict=True) if p >= value)


@given(p_values, st.floats(0.001, 0.5))
def test_rejections_are_those_of_the_sequential_procedure(values: list[float], level: float) -> None:
    rejected = 0
    for position, value in enumerate(sorted(values)):
        if value * (len(values) - position) > level:
            break
        rejected += 1
    assert sum(found <= level for found in holm(values)) == rejected


def test_equal_features_are_rarely_called_different() -> None:
    random = np.random.default_rng(0)
    families = [holm(random.uniform(size=20).tolist()) for _ in range(2000)]
    assert np.mean([min(family) <= 0.05 for family in families]) == pytest.approx(0.05, abs=0.015)
