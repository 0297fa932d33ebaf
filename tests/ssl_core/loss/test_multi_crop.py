"""The loss with small views: compared with autograd through its formula, by hand, and on several ranks."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from infra.errors import RunFailed
from ssl_core.loss import small_rows
from ssl_core.loss.agreement import agree, why_skipped
from ssl_core.loss.config import SamePatient
from ssl_core.loss.multi_crop import contrast
from ssl_core.loss.ntxent import Identities, LossConfig, LossReport, dense_nt_xent, nt_xent
from tests.ssl_core.loss.test_ntxent import SAME_PATIENT, SHARES, identities, keys
from tests.support.process_group import on_ranks


def projections(small: int, samples: int, size: int, seed: int, spread: float = 1.0) -> Tensor:
    """Views of samples, (2 + small, samples, size), that resemble each other."""
    draw = torch.Generator().manual_seed(seed)
    sample = torch.randn(samples, size, generator=draw, dtype=torch.float64)
    return sample + spread * torch.randn(2 + small, samples, size, generator=draw, dtype=torch.float64)


def contrasted(z: Tensor, config: LossConfig, ids: Identities | None = None) -> LossReport:
    return contrast(z, config, agree(z.shape[1], config, ids))


def gradient_of(loss: Tensor, z: Tensor) -> Tensor:
    return torch.autograd.grad(loss, z)[0]


def test_equals_its_definition_worked_by_hand() -> None:
    """Three samples, two large views a, b and two small ones c, d of each: 12 rows, each against the six of a and b."""
    z = projections(2, 3, 4, seed=1)
    rows = [(view, sample, F.normalize(z[view, sample], dim=0)) for view in range(4) for sample in range(3)]
    large = [row for row in rows if row[0] < 2]
    total = torch.zeros((), dtype=torch.float64)
    for view, sample, row in rows:
        others = [other for other in large if other[:2] != (view, sample)]
        assert len(others) == (5 if view < 2 else 6)
        positives = [row @ other[2] / 0.5 for other in others if other[1] == sample]
        assert len(positives) == (1 if view < 2 else 2)
        total += torch.stack([row @ other[2] / 0.5 for other in others]).logsumexp(0) - torch.stack(positives).mean()
    assert torch.isclose(contrasted(z, LossConfig(0.5)).loss, total / 12, rtol=1e-12)
    assert torch.isclose(dense_nt_xent(z[0], z[1], 0.5, small=z[2:].unbind()), total / 12, rtol=1e-12)


@settings(max_examples=60)
@given(
    st.integers(1, 4), st.integers(2, 20), st.integers(2, 20), st.floats(0.02, 5), st.floats(1e-2, 3),
    st.sampled_from(SAME_PATIENT), st.booleans(), st.integers(1, 9), st.integers(0, 10**6),
)  # fmt: skip
def test_loss_and_gradient_equal_the_oracle(
    small: int, samples: int, size: int, tau: float, spread: float, same_patient: SamePatient, decoupled: bool,
    block: int, seed: int,
) -> None:  # fmt: skip
    z = projections(small, samples, size, seed, spread).requires_grad_()
    ids = identities(samples, seed)
    group, positive = keys(ids, same_patient)
    config = LossConfig(tau, same_patient, decoupled=decoupled)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(small_rows, "_BLOCK", block)
        loss = contrasted(z, config, ids).loss
        result = gradient_of(loss, z)
    if decoupled and len(torch.unique(group)) == 1:
        assert loss == 0
        assert not result.any()
        return
    expected = dense_nt_xent(z[0], z[1], tau, group, positive, decoupled=decoupled, small=z[2:].unbind())
    truth = gradient_of(expected, z)
    assert torch.isclose(loss, expected, rtol=1e-10, atol=1e-12)
    assert (result - truth).norm() < 1e-8 * truth.norm() + 1e-12


@pytest.mark.parametrize("tau", [0.02, 0.1, 1.0])
@pytest.mark.parametrize("spread", [0.05, 1.0])
def test_fp32_stays_near_float64(tau: float, spread: float) -> None:
    z = projections(4, 150, 32, 3, spread).float()
    exact = z.double().requires_grad_()
    expected = dense_nt_xent(exact[0], exact[1], tau, small=exact[2:].unbind())
    z.requires_grad_()
    loss = contrasted(z, LossConfig(tau)).loss
    truth = gradient_of(expected, exact)
    assert abs(loss.item() - expected.item()) < 2e-6 * abs(expected.item())
    # What is left is the rounding of unit rows, which counts where views are nearly equal and the temperature is low.
    assert (gradient_of(loss, z) - truth).norm() < (3e-5 if spread < 0.1 and tau < 0.1 else 1e-6) * truth.norm()


def test_without_small_views_it_is_nt_xent_bit_for_bit() -> None:
    z = projections(0, 9, 5, seed=4)
    ids = identities(9, 1)
    for one, other in zip(contrasted(z, LossConfig(0.1), ids), nt_xent(z[0], z[1], LossConfig(0.1), ids), strict=True):
        assert torch.equal(one, other)


def test_health_is_that_of_the_large_views() -> None:
    z = projections(3, 9, 5, seed=4)
    assert contrasted(z, LossConfig())[1:] == nt_xent(z[0], z[1], LossConfig())[1:]


CONFIGS = [LossConfig(0.2, same, decoupled=decoupled) for same in SAME_PATIENT for decoupled in (False, True)]


def step_of_a_linear_model(rank: int, world: int, config: LossConfig) -> tuple[Tensor, Tensor]:
    """The loss and the parameter gradient of one step under DDP on this rank's share of 12 samples."""
    torch.manual_seed(0)
    model = torch.nn.Linear(7, 5).double()
    start = sum(SHARES[:rank])
    rows = slice(start, start + SHARES[rank]) if world > 1 else slice(None)
    parallel = DistributedDataParallel(model) if world > 1 else model
    z = parallel(projections(3, 12, 7, seed=3)[:, rows])
    loss = contrasted(z, config, Identities(*(part[rows] for part in identities(12, seed=9)))).loss
    torch.autograd.backward(loss)
    assert model.weight.grad is not None
    return loss.detach(), model.weight.grad


def steps(rank: int, world: int) -> list[tuple[Tensor, Tensor]]:
    return [step_of_a_linear_model(rank, world, config) for config in CONFIGS]


@pytest.mark.slow  # by default, test_invariance.py has small views on two and four ranks
def test_parameter_gradients_are_the_global_ones_when_five_ranks_hold_unequal_shares() -> None:
    alone = steps(0, 1)
    everywhere = on_ranks(len(SHARES), steps)
    for result in everywhere:
        for (loss, gradient), (expected, truth), (first, _) in zip(result, alone, everywhere[0], strict=True):
            assert torch.equal(loss, first)
            assert torch.allclose(loss, expected, rtol=1e-12, atol=1e-14)
            assert torch.allclose(gradient, truth, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(("value", "reason"), [(0, "zero and have no direction"), (torch.nan, "not finite")])
def test_a_small_view_that_is_not_finite_or_zero_leaves_no_loss_and_no_gradient(value: float, reason: str) -> None:
    z = projections(2, 4, 5, seed=0)
    z[3, 1] = value
    z.requires_grad_()
    loss = contrasted(z, LossConfig()).loss
    assert loss.isnan()
    assert gradient_of(loss, z).isnan().all()
    with pytest.raises(RunFailed, match=rf"projections are {reason}.*rank 0: 1 rows"):
        raise RunFailed(why_skipped(z))  # or it raises this itself
