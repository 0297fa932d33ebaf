from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules._functions import SyncBatchNorm

from ssl_core.model.batch_norm import GlobalBatchNorm, rows_counted, running_statistics_kept, synchronize_batch_norm
from tests.support.collective_checker import UnequalCollectives
from tests.support.process_group import on_ranks

SHARES = [[1, 5, 2], [3, 0, 5]]  # rows of the global batch that each rank holds


def batch(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(8, 6, 5, 5, generator=generator, dtype=torch.float64) * 2 + 3
    dy = torch.randn(8, 6, 5, 5, generator=generator, dtype=torch.float64)
    return x.to(dtype).contiguous(memory_format=torch.channels_last), dy.to(dtype)


def layer(dtype: torch.dtype) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(6).to(dtype)
    with torch.no_grad():
        norm.weight.copy_(torch.linspace(-1, 2, 6))
        norm.bias.copy_(torch.linspace(1, -2, 6))
    return norm


def parameters_of(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype in (torch.bfloat16, torch.float16) else dtype  # as autocast has it


def results(norm: nn.Module, x: Tensor, dy: Tensor) -> dict[str, Tensor]:
    x = x.clone().requires_grad_()
    y = norm(x)
    y.backward(dy)
    gradients = {f"d{name}": parameter.grad for name, parameter in norm.named_parameters()}
    return {"y": y.detach(), "dx": x.grad, **gradients, **dict(norm.named_buffers())}


def synchronized(norm: nn.Module) -> nn.Module:
    model = synchronize_batch_norm(nn.Sequential(norm))
    return model.get_submodule("0")


TOLERANCES = {torch.float64: 1e-13, torch.float32: 1e-5, torch.bfloat16: 0.03, torch.float16: 0.004}


def on_one_rank(rank: int, world: int, shares: list[int], padded: bool) -> dict[torch.dtype, dict[str, Tensor]]:
    start = sum(shares[:rank])
    rows = slice(start, start + shares[rank])
    result = {}
    for dtype in TOLERANCES:
        x, dy = (part[rows] for part in batch(dtype))
        norm = synchronized(layer(parameters_of(dtype)))
        result[dtype] = with_other_rows(norm, x, dy, max(shares)) if padded else results(norm, x, dy)
    return result


def with_other_rows(norm: nn.Module, x: Tensor, dy: Tensor, rows: int) -> dict[str, Tensor]:
    """The results of x where further rows, which do not count, make it as long as on all ranks."""
    more = torch.zeros(rows - len(x), *x.shape[1:], dtype=x.dtype)
    with rows_counted(norm, torch.arange(rows) < len(x)):
        found = results(norm, torch.cat([x, more + 1000]), torch.cat([dy, more]))
    assert not found["dx"][len(x) :].any()
    return found | {name: found[name][: len(x)] for name in ("y", "dx")}


@pytest.fixture(
    scope="module",
    params=[(SHARES[0], False), (SHARES[1], False), (SHARES[1], True)],
    ids=["unequal", "one rank empty", "one rank without rows that count"],
)
def every_rank(request: pytest.FixtureRequest) -> list[dict[torch.dtype, dict[str, Tensor]]]:
    return on_ranks(3, on_one_rank, *request.param)


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_equals_batch_norm_over_the_whole_batch_when_ranks_hold_unequal_shares(
    every_rank: list[dict[torch.dtype, dict[str, Tensor]]], dtype: torch.dtype
) -> None:
    expected = results(layer(torch.float64), *(part.double() for part in batch(dtype)))
    ranks, tolerance = [rank[dtype] for rank in every_rank], TOLERANCES[dtype]
    for name in ("y", "dx"):
        result = torch.cat([rank[name] for rank in ranks]).double()
        assert (result - expected[name]).abs().max() < tolerance
    for name in ("dweight", "dbias"):
        result = torch.stack([rank[name] for rank in ranks]).double().sum(0)
        assert (result - expected[name]).abs().max() < tolerance * 100
    for rank in ranks:
        for name in ("running_mean", "running_var", "num_batches_tracked"):
            assert (rank[name] - expected[name]).abs().max() < tolerance


def without_affine(rank: int, world: int, shares: list[int]) -> dict[str, Tensor]:
    start = sum(shares[:rank])
    x, dy = (part[start : start + shares[rank]] for part in batch(torch.float64))
    return results(synchronized(nn.BatchNorm2d(6, affine=False).double()), x, dy)


def test_equals_batch_norm_over_the_whole_batch_without_scale_and_shift_too() -> None:
    expected = results(nn.BatchNorm2d(6, affine=False).double(), *batch(torch.float64))
    ranks = on_ranks(3, without_affine, SHARES[1])
    for name in ("y", "dx"):
        assert torch.allclose(torch.cat([rank[name] for rank in ranks]), expected[name], rtol=0, atol=1e-12)
    for rank in ranks:
        assert torch.allclose(rank["running_var"], expected["running_var"], rtol=0, atol=1e-12)


def pass_through_torchs_layer(x: Tensor) -> None:
    """Call torch's SyncBatchNorm, with stand-ins for its CUDA kernels, whose statistics are fp32 in every precision."""
    kernels: dict[str, Any] = {
        "batch_norm_stats": lambda x, eps: (torch.zeros(x.shape[1]), torch.ones(x.shape[1])),
        "batch_norm_gather_stats_with_counts": lambda x, means, stds, *_: (means[0], stds[0]),
        "batch_norm_elemt": lambda x, *_: x,
    }
    with mock.patch.multiple(torch, **kernels):
        SyncBatchNorm.forward(mock.Mock(), x, None, None, None, None, 1e-5, 0.1, dist.group.WORLD, 2)  # type: ignore[no-untyped-call]


def empty_rank_sends(rank: int, world: int, old: bool) -> dict[torch.dtype, str]:
    messages = {}
    for dtype in (torch.float32, torch.bfloat16):
        x, dy = (values[: 8 * (rank > 0)] for values in batch(dtype))
        try:
            if old:
                pass_through_torchs_layer(x)
            else:
                results(synchronized(layer(torch.float32)), x, dy)
            messages[dtype] = ""
        except UnequalCollectives as error:
            messages[dtype] = str(error)
    return messages


def test_a_rank_without_rows_sends_what_the_others_send_unlike_in_torchs_layer() -> None:
    for messages in on_ranks(2, empty_rank_sends, False):
        assert messages == {torch.float32: "", torch.bfloat16: ""}
    for messages in on_ranks(2, empty_rank_sends, True):
        assert not messages[torch.float32]
        assert messages[torch.bfloat16].startswith("rank 0: all_gather  bfloat16x13 ")
        assert "; rank 1: all_gather  float32x13 " in messages[torch.bfloat16]


def test_is_plain_batch_norm_in_one_process() -> None:
    x, dy = batch(torch.float32)
    expected = results(layer(torch.float32), x, dy)
    result = results(synchronized(layer(torch.float32)), x, dy)
    assert all(torch.equal(result[name], value) for name, value in expected.items())


def test_keeps_parameters_buffers_and_their_names() -> None:
    model = nn.Sequential(nn.Conv2d(1, 6, 3), layer(torch.float32), nn.Sequential(nn.BatchNorm1d(4)))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    converted = synchronize_batch_norm(model)
    assert sum(isinstance(module, GlobalBatchNorm) for module in converted.modules()) == 2
    assert converted.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in converted.state_dict().items())


@pytest.mark.parametrize("norm", [nn.BatchNorm2d(6), GlobalBatchNorm(6)])
def test_keeps_its_running_statistics_within_the_block(norm: nn.Module) -> None:
    x, _ = batch(torch.float32)
    before = {name: value.clone() for name, value in norm.state_dict().items()}
    with running_statistics_kept(norm):
        inside = norm(x)
    assert all(torch.equal(value, before[name]) for name, value in norm.state_dict().items())
    assert torch.equal(norm(x), inside)
    assert norm.state_dict()["num_batches_tracked"] == 1
