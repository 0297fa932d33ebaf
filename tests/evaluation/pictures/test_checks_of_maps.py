"""The two checks of maps, on maps whose answer is known."""

import numpy as np
import pytest

from evaluation.pictures.lung_region import outside_of
from evaluation.pictures.weight_randomization import rank_correlations, structural_similarities
from ssl_core.views.parameters import Fit

SQUARE = np.array([[100, 100]])


def test_equal_attention_has_the_share_of_the_area() -> None:
    shares, areas = outside_of(np.ones((1, 7, 7), np.float32), SQUARE, "pad")
    assert shares == pytest.approx(areas)
    # A frame of a tenth, and at each corner what a quarter by a quarter has beyond it; pixels of the grid round both.
    assert areas == pytest.approx(1 - 0.8**2 + 4 * 0.15**2, abs=0.03)


def test_attention_in_the_middle_is_inside_in_a_corner_outside_and_none_has_no_share() -> None:
    maps = np.zeros((3, 16, 16), np.float32)
    maps[0, 6:10, 6:10] = 1
    maps[1, :3, :3] = 1
    shares, _ = outside_of(maps, np.repeat(SQUARE, 3, axis=0), "pad")
    np.testing.assert_array_equal(shares, [0, 1, np.nan])


@pytest.mark.parametrize(("fit", "expected"), [("pad", True), ("squash", False), ("square", False)])
def test_what_lies_beside_a_high_film_is_outside(fit: Fit, expected: bool) -> None:
    maps = np.zeros((1, 16, 16), np.float32)
    maps[0, 6:10, 3] = 1  # a fifth from the left: beside a film that is half as wide as it is high
    [share], _ = outside_of(maps, np.array([[200, 100]]), fit)
    assert (share > 0.9) == expected and (share < 0.1) == (not expected)


def test_alike_maps_are_alike_and_opposite_ones_are_not() -> None:
    maps = np.random.default_rng(0).random((5, 7, 7)).astype(np.float32)
    np.testing.assert_allclose(rank_correlations(maps, 3 * maps), 1)
    np.testing.assert_allclose(rank_correlations(maps, 1 - maps), -1)
    np.testing.assert_allclose(structural_similarities(maps, 3 * maps), 1)
    assert (structural_similarities(maps, 1 - maps) < 0).all()
    assert np.isnan(rank_correlations(maps, np.zeros_like(maps))).all()
