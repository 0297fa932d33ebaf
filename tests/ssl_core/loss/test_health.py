import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from ssl_core.loss.agreement import agree
from ssl_core.loss.config import SamePatient
from ssl_core.loss.health import chance_loss, deviation, geometry, rankme, uniformity
from ssl_core.loss.multi_crop import contrast
from ssl_core.loss.ntxent import LossConfig
from tests.ssl_core.loss.test_ntxent import SAME_PATIENT, identities


def spread_out(rows: int, size: int = 128) -> Tensor:
    return F.normalize(torch.randn(rows, size, generator=torch.Generator().manual_seed(0)), dim=1)


def test_deviation_is_1_when_rows_are_spread_evenly_and_0_when_collapsed() -> None:
    assert deviation(spread_out(2000)) == pytest.approx(1, abs=0.01)
    assert deviation(spread_out(1).expand(2000, -1)) == pytest.approx(0, abs=1e-6)
    flat = F.pad(spread_out(2000, 32), (0, 96))  # a quarter of the dimensions is used
    assert deviation(flat) == pytest.approx(0.5, abs=0.01)


def test_uniformity_is_that_of_all_pairs_worked_by_hand() -> None:
    z = F.normalize(spread_out(12, 5).double(), dim=1)
    terms = [math.exp(-2 * float((z[i] - z[j]).square().sum())) for i in range(12) for j in range(12) if i != j]
    assert uniformity(z) == pytest.approx(math.log(sum(terms) / len(terms)), rel=1e-12)


def test_uniformity_tells_collapsed_from_spread_out() -> None:
    assert uniformity(spread_out(1).expand(500, -1)) == pytest.approx(0, abs=1e-5)
    assert uniformity(spread_out(500)) == pytest.approx(-4, abs=0.1)


def test_uniformity_in_blocks_is_that_of_all_pairs_also_for_a_row_of_zeros() -> None:
    z = spread_out(2500, 4).double()
    z[7] = 0
    distances = torch.cdist(z, z, compute_mode="donot_use_mm_for_euclid_dist").square()
    expected = math.log((torch.exp(-2 * distances).sum().item() - 2500) / (2500 * 2499))
    assert uniformity(z, z.square().sum(1)) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("rows", [30, 5])
def test_rankme_is_the_exponential_of_the_entropy_of_the_singular_values(rows: int) -> None:
    vectors = spread_out(rows, 8) * torch.linspace(0.01, 3, 8)
    shares = torch.linalg.svdvals(vectors.double())
    shares /= shares.sum()
    assert rankme(vectors) == pytest.approx(float((-shares * shares.log()).sum().exp()), rel=1e-6)


def test_rankme_counts_directions() -> None:
    assert rankme(torch.eye(8)) == pytest.approx(8)
    assert rankme(spread_out(1, 8).expand(20, -1)) == pytest.approx(1, abs=1e-5)
    assert rankme(torch.zeros(20, 8)) == 1


def test_geometry_looks_at_directions_of_both_views() -> None:
    views = spread_out(40, 8).view(2, 20, 8)
    found = geometry(3 * views)
    assert found.alignment == pytest.approx(float((views[0] - views[1]).square().sum(1).mean()), rel=1e-5)
    assert found.uniformity == pytest.approx(float(uniformity(views[0])), rel=1e-5)
    assert found.deviation == pytest.approx(float(deviation(views.flatten(0, 1))), rel=1e-5)


@pytest.mark.parametrize("small_views", [0, 3])
@pytest.mark.parametrize("decoupled", [False, True])
@pytest.mark.parametrize("same_patient", SAME_PATIENT)
def test_chance_is_the_loss_of_projections_that_are_all_alike(
    same_patient: SamePatient, decoupled: bool, small_views: int
) -> None:
    ids, loss = identities(12, seed=4), LossConfig(0.5, same_patient, decoupled=decoupled)
    alike = torch.ones(2 + small_views, 12, 6, dtype=torch.float64)
    assert chance_loss(loss, ids, small_views) == pytest.approx(
        contrast(alike, loss, agree(12, loss, ids)).loss.item(), rel=1e-12
    )


def test_chance_without_relations_is_the_log_of_all_other_rows() -> None:
    assert chance_loss(LossConfig(), [torch.arange(8)] * 3, 0) == pytest.approx(math.log(2 * 8 - 1))
