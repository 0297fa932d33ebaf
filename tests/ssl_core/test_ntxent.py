from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ranks import on_ranks
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from infra.errors import UserError
from ssl_core.loss.ntxent import dense_nt_xent, nt_xent

SHARES = [3, 6, 1, 2]  # samples that each of four ranks holds, together 12


def projections(samples: int, size: int, seed: int, spread: float = 1.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    first = torch.randn(samples, size, generator=generator, dtype=torch.float64)
    return first, first + spread * torch.randn(samples, size, generator=generator, dtype=torch.float64)


def loss_and_gradients(loss: Callable[..., Any], first: Tensor, second: Tensor, tau: float) -> tuple[Tensor, Tensor]:
    first, second = first.clone().requires_grad_(), second.clone().requires_grad_()
    value = loss(first, second, tau)
    value = value if isinstance(value, Tensor) else value.loss
    return value.detach(), torch.stack(torch.autograd.grad(value, (first, second)))


def test_equals_equation_4_worked_by_hand() -> None:
    first, second = projections(3, 4, seed=1)
    z = [row / row.norm() for row in [*first, *second]]
    total = 0.0
    for i in range(6):
        positive = (i + 3) % 6
        others = sum(torch.exp(z[i] @ z[k] / 0.5) for k in range(6) if k != i)
        total = total - torch.log(torch.exp(z[i] @ z[positive] / 0.5) / others)
    assert torch.isclose(dense_nt_xent(first, second, 0.5), total / 6, rtol=1e-12)


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 40), st.integers(2, 20), st.floats(0.02, 5), st.floats(1e-3, 3), st.integers(0, 10**6))
def test_loss_and_gradient_equal_the_dense_form(samples: int, size: int, tau: float, spread: float, seed: int) -> None:
    first, second = projections(samples, size, seed, spread)
    loss, gradients = loss_and_gradients(nt_xent, first, second, tau)
    expected, expected_gradients = loss_and_gradients(dense_nt_xent, first, second, tau)
    assert torch.isclose(loss, expected, rtol=1e-10, atol=1e-12)
    # Where the loss is nearly zero its gradient is too, as the difference of numbers near 1.
    assert (gradients - expected_gradients).norm() < 1e-8 * expected_gradients.norm() + 1e-13


def test_top1_counts_the_rows_whose_positive_is_nearest() -> None:
    first = torch.eye(4)
    assert nt_xent(first, first, 0.5).top1 == 1
    assert nt_xent(first, first.roll(1, 0), 0.5).top1 == 0


def linear_model_step(rank: int, world: int) -> tuple[Tensor, Tensor, Tensor]:
    """Train one step of a linear model under DDP on this rank's share of 12 samples."""
    torch.manual_seed(0)
    model = torch.nn.Linear(7, 5).double()
    first, second = projections(12, 7, seed=3)
    start = sum(SHARES[:rank])
    rows = slice(start, start + SHARES[rank]) if world > 1 else slice(None)
    parallel = DistributedDataParallel(model) if world > 1 else model
    contrast = nt_xent(*parallel(torch.cat([first[rows], second[rows]])).chunk(2), 0.2)
    contrast.loss.backward()
    assert model.weight.grad is not None
    return contrast.loss.detach(), contrast.top1, model.weight.grad


def test_parameter_gradients_are_the_global_ones_when_four_ranks_hold_unequal_shares() -> None:
    expected = linear_model_step(0, 1)
    for found in on_ranks(4, linear_model_step):
        for value, reference in zip(found, expected, strict=True):
            assert torch.allclose(value, reference, rtol=1e-12, atol=1e-14)


def disagree(rank: int, world: int) -> str:
    try:
        nt_xent(torch.ones(4, 5 + rank), torch.ones(4, 5 + rank), 0.5)
    except UserError as error:
        return str(error)
    return ""


def test_ranks_that_disagree_on_the_size_all_say_so() -> None:
    for message in on_ranks(2, disagree):
        assert "rank 0: d=5" in message
        assert "rank 1: d=6" in message


@pytest.mark.parametrize("tau", [0.0, -1.0])
def test_a_temperature_that_is_not_positive_is_refused(tau: float) -> None:
    with pytest.raises(UserError, match=r"loss\.temperature=.* must be positive"):
        nt_xent(torch.ones(4, 3), torch.ones(4, 3), tau)


def test_one_pair_alone_is_refused() -> None:
    with pytest.raises(UserError, match="no negatives"):
        nt_xent(torch.ones(1, 3), torch.ones(1, 3), 0.5)
