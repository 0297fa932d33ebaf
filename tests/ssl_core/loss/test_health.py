import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from ssl_core.loss.health import UNIFORMITY_ROWS, deviation, first_views_uniformity, uniformity


def spread_out(rows: int, size: int = 128) -> Tensor:
    return F.normalize(torch.randn(rows, size, generator=torch.Generator().manual_seed(0)), dim=1)


def test_deviation_is_1_when_rows_are_spread_evenly_and_0_when_collapsed() -> None:
    assert deviation(spread_out(2000)) == pytest.approx(1, abs=0.01)
    assert deviation(spread_out(1).expand(2000, -1)) == pytest.approx(0, abs=1e-6)
    flat = F.pad(spread_out(2000, 32), (0, 96))  # a quarter of the dimensions is used
    assert deviation(flat) == pytest.approx(0.5, abs=0.01)


def test_uniformity_is_that_of_all_pairs_worked_by_hand() -> None:
    z = F.normalize(spread_out(12, 5).double(), dim=1)
    firsts = torch.tensor([0, 1, 2, 6, 7])
    terms = [math.exp(-2 * float((z[i] - z[j]).square().sum())) for i in firsts for j in firsts if i != j]
    assert first_views_uniformity(z, firsts) == pytest.approx(math.log(sum(terms) / len(terms)), rel=1e-12)


def test_uniformity_tells_collapsed_from_spread_out() -> None:
    assert uniformity(spread_out(1).expand(500, -1)) == pytest.approx(0, abs=1e-5)
    assert uniformity(spread_out(500)) == pytest.approx(-4, abs=0.1)


def test_uniformity_in_blocks_is_that_of_all_pairs_also_for_a_row_of_zeros() -> None:
    z = spread_out(2500, 4).double()
    z[7] = 0
    distances = torch.cdist(z, z, compute_mode="donot_use_mm_for_euclid_dist").square()
    expected = math.log((torch.exp(-2 * distances).sum().item() - 2500) / (2500 * 2499))
    assert uniformity(z, z.square().sum(1)) == pytest.approx(expected, rel=1e-9)


def test_uniformity_of_a_large_batch_is_that_of_evenly_spaced_rows() -> None:
    z = spread_out(5000, 16)
    every_other = first_views_uniformity(z, torch.arange(0, 2 * UNIFORMITY_ROWS))
    assert torch.equal(every_other, first_views_uniformity(z, torch.arange(0, 2 * UNIFORMITY_ROWS, 2)))
