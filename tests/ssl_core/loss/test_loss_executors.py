"""The executors for any machine, compared with each other and with autograd in float64."""

from itertools import pairwise
from typing import Any, Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.loss_accuracy import relative_errors
from ssl_core.loss import dense, tiled
from ssl_core.loss.config import SamePatient
from ssl_core.loss.ntxent import Identities, LossConfig, nt_xent
from ssl_core.loss.pair_sums import Keys, RowPairs, RowStats

TEMPERATURES = [0.01, 0.02, 0.05, 0.1, 0.5, 1.0]


def global_rows(shares: list[int], size: int, seed: int) -> tuple[Tensor, Tensor, list[int]]:
    """Unit rows of ranks with `shares` samples each, their partners, and where each rank's rows start."""
    draw = torch.Generator().manual_seed(seed)
    z, partner, starts = [], [], [0]
    for samples in shares:
        first = torch.randn(samples, size, generator=draw, dtype=torch.float64)
        second = first + 0.5 * torch.randn(samples, size, generator=draw, dtype=torch.float64)
        z.append(F.normalize(torch.cat([first, second]), dim=1))
        partner.append(starts[-1] + torch.arange(2 * samples).roll(samples))
        starts.append(starts[-1] + 2 * samples)
    return torch.cat(z), torch.cat(partner), starts


def drawn_keys(partner: Tensor, kinds: int, seed: int) -> Keys:
    """Positives within groups, drawn for each pair of views."""
    pair = torch.minimum(partner, torch.arange(len(partner)))
    draw = torch.Generator().manual_seed(seed)
    group = torch.randint(0, kinds, (len(partner),), generator=draw)[pair]
    positive = group * 3 + torch.randint(0, 3, (len(partner),), generator=draw)[pair]
    return Keys(*(torch.unique(values, return_inverse=True)[1] for values in (group, positive)))


def gradient_and_stats(
    executor: Any,
    z: Tensor,
    partner: Tensor,
    starts: list[int],
    keys: Keys | None,
    tau: float,
    stats: RowStats | None,
    decoupled: bool = False,
) -> tuple[RowStats, Tensor]:
    """Compute the ranks one after the other; `stats`, if given, replace the forward results in the backward passes."""
    ends = list(pairwise(starts))
    pairs = [RowPairs(z[a:b], z, keys, a, partner[a:b], tau, decoupled) for a, b in ends]
    forward = [executor.forward(part) for part in pairs]
    actual = RowStats(*(torch.cat(parts) for parts in zip(*forward, strict=True)))
    stats = stats or actual
    lse = stats.others.clamp(min=-1 / tau)
    if not decoupled:
        lse = torch.logaddexp(stats.others, (z * z[partner]).sum(1).double() / tau)
    backward = [executor.backward(part, lse, stats.positives) for part in pairs]
    return actual, torch.cat(backward)


@settings(max_examples=40)
@given(
    st.lists(st.integers(0, 14), min_size=1, max_size=4).filter(lambda shares: sum(shares) > 1),
    st.sampled_from([1, 2, 7, 16]),
    st.sampled_from([None, 1, 3, 30]),
    st.sampled_from(TEMPERATURES),
    st.tuples(st.integers(1, 20), st.integers(1, 20)),
    st.booleans(),
    st.integers(0, 10**6),
)
def test_tiles_give_what_the_whole_matrix_gives(
    shares: list[int], size: int, kinds: int | None, tau: float, tile: tuple[int, int], decoupled: bool, seed: int
) -> None:
    z, partner, starts = global_rows(shares, size, seed)
    keys = None if kinds is None else drawn_keys(partner, kinds, seed)
    expected, pair_gradient = gradient_and_stats(dense, z, partner, [0, len(z)], keys, tau, None, decoupled)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(tiled._TILES, "cpu", tile)
        actual, tiled_gradient = gradient_and_stats(tiled, z, partner, starts, keys, tau, expected, decoupled)
    for name in ("others", "at_positives", "positives"):
        torch.testing.assert_close(getattr(actual, name), getattr(expected, name), rtol=1e-10, atol=1e-10)
    if size > 1:  # on a line, all similarities are equal but for rounding
        assert torch.equal(actual.above, expected.above)
    torch.testing.assert_close(tiled_gradient, pair_gradient, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("executor", ["dense", "tiled"])
@pytest.mark.parametrize("same_patient", ["negative", "masked", "positive"])
@pytest.mark.parametrize("stage", ["start", "midway", "end", "very end"])
def test_fp32_stays_near_float64_at_every_temperature(
    stage: str, same_patient: SamePatient, executor: Literal["dense", "tiled"]
) -> None:
    for tau in TEMPERATURES:
        errors = relative_errors(stage, 300, tau, same_patient, executor)
        if errors.loss > 1e-8:  # of less, float64 autograd is no reference: test_ntxent.py has one
            assert errors.in_loss < (3e-7 if tau >= 0.05 else 2e-6)
            assert errors.in_gradient < (1.5e-6 if tau >= 0.05 else 4e-6)


@pytest.mark.parametrize(
    ("stage", "tau"),
    [
        ("start", 0.02),
        pytest.param("start", 0.5, marks=pytest.mark.slow),
        pytest.param("end", 0.1, marks=pytest.mark.slow),
    ],
)
@pytest.mark.slow
def test_fp32_stays_near_float64_in_a_batch_of_4096_rows(stage: str, tau: float) -> None:
    errors = relative_errors(stage, 2048, tau, "negative", "tiled")
    assert errors.in_loss < 1e-6
    assert errors.in_gradient < 2e-6


class _LargestTensor(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records the size of the largest tensor that any operation returns."""

    numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **kwargs or {})
        self.numbers = max([self.numbers, *(part.numel() for part in tree_leaves(result) if isinstance(part, Tensor))])
        return result


@pytest.mark.parametrize("same_patient", ["negative", "positive"])
def test_tiles_never_make_the_whole_matrix(same_patient: SamePatient) -> None:
    first, second = torch.randn(2, 4000, 8).requires_grad_()
    ids = Identities(torch.arange(4000), torch.arange(4000) // 4, torch.arange(4000) // 2)
    with _LargestTensor() as largest:  # type: ignore[no-untyped-call]
        torch.autograd.backward(nt_xent(first, second, LossConfig(0.1, same_patient, "tiled"), ids).loss)
    assert largest.numbers <= 2 * 1024 * 2048 < 8000 * 8000 / 15  # a tile and its spare


def test_tiles_leave_the_rows_as_they_are() -> None:
    z, partner, starts = global_rows([9], 8, seed=1)
    before = z.clone()
    gradient_and_stats(tiled, z, partner, starts, drawn_keys(partner, 3, 1), 0.1, None)
    assert torch.equal(z, before)
