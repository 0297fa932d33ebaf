"""The loss executor on NVIDIA GPUs: Triton kernels that never hold the (n, N) similarities.

A program of either kernel owns a block of rows and a range of columns, a split, which it processes tile by tile: tensor
cores compute the cosines, everything else happens in registers. Splits fill the GPU if a rank has few rows. They write
their partial sums next to each other, to be added in a fixed order and without atomics, so that the same input gives
the same bits.

Numbers. Operands are rounded to fp16 or bf16, sums are fp32, and operations on n or N numbers are fp64.
- fp16 keeps 11 bits of a coordinate and bf16 keeps 8, at the same speed, so fp16 is the default.
- A pair's weight in the gradient is an operand too, of the second product. It is at most 2, about 2/N at the start and
  exp(-1/tau) near convergence, which fp16 would flush to zero. So a row's weights are multiplied by the power of two
  that raises their bound to half of fp16's range, and their sum is divided by it (`_lifts`). Only weights below about
  1e-13 are lost. Unlifted, the gradient near convergence was 67 % off at tau = 0.03 and 3 %
  at 0.05; all lifted by 2^14, 3 % and 0.02 %; lifted row by row, 0.07 % and 0.02 %.
- An extra positive's -1/|P| is applied in fp32 before the rounding, and the partner is not among the pairs
  (see `ssl_core.loss.pair_sums`): no rounded numbers near 1 are subtracted, so errors are relative to the gradient.
- `above` compares with the partner's cosine as a tile rounds it: equal rows are not above each other.
- Cosines are at most 1, so exp(s - 1/tau) needs no running maximum, and one exponential serves both terms of the
  gradient: exp(s - lse_i) + exp(s - lse_j) = exp(s - 1/tau) (exp(1/tau - lse_i) + exp(1/tau - lse_j)). Below tau =
  0.025 that leaves fp32's range: there the sums follow a running maximum, and the gradient takes two exponentials.

The gradient's error relative to its norm, N = 512, d = 128, near the start / near convergence (`errors_of` in
tests/ssl_core/loss/test_kernels.py, in Triton's interpreter):

    tau                    0.05            0.1             0.5
    fp16                   9e-5 / 2e-4     3e-5 / 4e-5     1e-5 / 1e-5
    fp16, extra positives  4e-4 / 8e-5     3e-4 / 7e-5     3e-4 / 2e-4
    bf16                   1e-3 / 2e-3     4e-4 / 5e-4     2e-4 / 2e-4
"""

import math
from typing import Any, Final, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional as F

from infra.configuration.options import key
from infra.errors import require
from ssl_core.loss.config import LossConfig
from ssl_core.loss.pair_sums import Keys, RowPairs, RowStats

NO_MAXIMUM_FROM: Final = 0.025  # temperature
LARGEST_D: Final = 512  # 64 such rows and two tiles of their factors fill a processor's 227 KB

_BITS: Final = math.log2(math.e)  # in one nat; the kernels count in bits, because the hardware has exp2
_VARYING: Final = ["start", "count", "total", "stretch"]  # one compiled kernel for all their values


class Blocks(NamedTuple):
    """A tile's rows and columns, and Triton's num_warps and num_stages."""

    rows: int
    columns: int
    num_warps: int
    num_stages: int


def forward(pairs: RowPairs, *, operands: torch.dtype = torch.float16, splits: int | None = None) -> RowStats:
    """Return the sums of each row; see `LossExecutor`.

    Args:
        pairs: the rows
        operands: float16, bfloat16, or float32 (three products of tf32 for one, for tests; d up to 256)
        splits: most column splits; by default enough to fill the GPU

    Raises:
        UserError: if d is larger than 512
    """
    rows, all_rows, keys, start, partner, temperature, decoupled = pairs
    z = _operand(all_rows, operands)
    blocks = forward_blocks(z.shape[1], operands)
    grid, stretch = _cut(len(rows), len(all_rows), blocks, splits, rows.device)
    partial = rows.new_empty(grid[1], 4, len(rows), dtype=torch.float32)
    group, positive, positives = _relations(keys, partner)
    sizes = (start, len(rows), len(all_rows), stretch, _BITS / temperature)
    pointers = (z, partner, group, positive, partial)
    _launch(forward_kernel, grid, (*pointers, *sizes), constants(z, blocks, keys, temperature, decoupled))
    sums, peaks, above, at_positives = partial.double().unbind(1)  # (splits, n) each
    return RowStats(
        others=torch.logsumexp(sums.log() + peaks / temperature, dim=0),
        at_positives=at_positives.sum(0) / temperature,
        positives=positives[pairs.here] if keys else torch.ones_like(partner, dtype=torch.float64),
        above=above.sum(0).long(),
    )


def backward(
    pairs: RowPairs,
    lse: Tensor,
    positives: Tensor,
    *,
    operands: torch.dtype = torch.float16,
    splits: int | None = None,
) -> Tensor:
    """Return the gradient of all pairs except (i, partner(i)); see `LossExecutor`, and `forward` for the options."""
    rows, all_rows, keys, start, partner, temperature, decoupled = pairs
    z = _operand(all_rows, operands)
    blocks = backward_blocks(z.shape[1], operands)
    grid, stretch = _cut(len(rows), len(all_rows), blocks, splits, rows.device)
    partial = rows.new_empty(grid[1], len(rows), z.shape[1], dtype=torch.float32)
    group, positive, _ = _relations(keys, partner)
    levels = lse * _BITS if temperature < NO_MAXIMUM_FROM else torch.exp(1 / temperature - lse)
    lifts = _lifts(pairs, lse, positives)
    pointers = (z, partner, group, positive, levels.float(), (1 / positives).float(), lifts, partial)
    sizes = (start, len(rows), len(all_rows), stretch, _BITS / temperature)
    _launch(backward_kernel, grid, (*pointers, *sizes), constants(z, blocks, keys, temperature, decoupled))
    return (partial.sum(0)[:, : rows.shape[1]] * torch.exp2(-lifts)[:, None]).to(rows.dtype)


def forward_blocks(width: int, operands: torch.dtype) -> Blocks:
    """Return how the forward kernel cuts rows of `width` numbers: on sm_90 no registers spill in fp16 or bf16."""
    if operands == torch.float32:
        return Blocks(64, 32, 8, 2)
    return Blocks(128, 64, 8, 3) if width <= 128 else Blocks(128, 64, 8, 2) if width <= 256 else Blocks(64, 64, 8, 2)


def backward_blocks(width: int, operands: torch.dtype) -> Blocks:
    """Return the same for the backward kernel, whose registers also hold a block's gradient."""
    if operands == torch.float32:
        return Blocks(64, 32, 8, 2)
    return Blocks(128, 64, 8, 3) if width <= 128 else Blocks(128, 64, 8, 2) if width <= 256 else Blocks(64, 16, 8, 2)


def constants(
    z: Tensor, blocks: Blocks, keys: Keys | None, temperature: float, decoupled: bool = False
) -> dict[str, Any]:
    """Return the constants that a kernel is compiled with."""
    return {
        "width": z.shape[1],
        "block_rows": blocks.rows,
        "block_columns": blocks.columns,
        "online": temperature < NO_MAXIMUM_FROM,
        "keyed": keys is not None,
        "decoupled": keys is not None and decoupled,
        "num_warps": blocks.num_warps,
        "num_stages": blocks.num_stages,
        "enable_fp_fusion": True,
    }


def _operand(all_rows: Tensor, operands: torch.dtype) -> Tensor:
    """Round the rows and pad them with zeros to a power of two, (N, width)."""
    d = all_rows.shape[1]
    option = key(LossConfig, "executor")
    rule = f"{option}=triton takes projections of up to {LARGEST_D} numbers, not {d}; use {option}=tiled"
    require(d <= LARGEST_D, rule)
    return F.pad(all_rows.to(operands), (0, max(16, triton.next_power_of_2(d)) - d)).contiguous()


def _cut(
    count: int, total: int, blocks: Blocks, splits: int | None, device: torch.device
) -> tuple[tuple[int, int], int]:
    """Return the grid (row blocks, column splits) without empty splits, and the columns of a split."""
    row_blocks, column_blocks = triton.cdiv(count, blocks.rows), triton.cdiv(total, blocks.columns)
    if splits is None:
        # Four programs for each processor: few idle while the last ones finish, and the splits' gradients together are
        # no larger than that many blocks of rows, or than one gradient.
        on_gpu = device.type == "cuda"  # not in Triton's interpreter
        processors = torch.cuda.get_device_properties(device).multi_processor_count if on_gpu else 1
        splits = max(1, 4 * processors // max(1, row_blocks))
    blocks_per_split = triton.cdiv(column_blocks, splits)
    return (row_blocks, triton.cdiv(column_blocks, blocks_per_split)), blocks_per_split * blocks.columns


def _relations(keys: Keys | None, partner: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the keys in int32, which take half the registers, and how many positives each row has, (N,) each."""
    if keys is None:
        return partner, partner, partner  # not read
    ones = torch.ones_like(keys.positive, dtype=torch.float64)
    sizes = torch.zeros_like(ones).index_add_(0, keys.positive, ones)  # sums of ones are exact in any order
    return keys.group.int(), keys.positive.int(), sizes[keys.positive] - 1


def _lifts(pairs: RowPairs, lse: Tensor, positives: Tensor) -> Tensor:
    """Return the exponents, (n,) fp32, of the powers of two that raise each row's weights to at most 2^15."""
    mine, temperature = pairs.here, pairs.temperature
    at_partner = pairs.partner_similarities  # of the rows rounded to fp32
    # The loss computes `lse` from the unrounded partner, which deviates from `at_partner`. The bound: a distance of two
    # rows is uncertain by 2^-23, and its square by that times the distance; doubled, plus the rounding of fp64.
    distance = (2 - 2 * temperature * at_partner).clamp(min=0).sqrt()
    uncertain = (distance * 2.0**-22 + 2.0**-45) / temperature
    # The sum of all exp(s_ij - lse_i) except that of partner(i), which is 1 if `lse` leaves out the partner too.
    others = (-torch.expm1(at_partner - lse[mine])).clamp(min=0) + uncertain
    others = torch.ones_like(others) if pairs.decoupled else others
    largest = others * (1 + torch.exp(lse[mine] - lse.min()))
    largest = torch.where(positives[mine] > 1, 2.0, largest)
    return (15 - torch.log2(largest.clamp(max=2))).floor().float()


def _launch(kernel: Any, grid: tuple[int, int], arguments: tuple[Any, ...], compiled_for: dict[str, Any]) -> None:
    if grid[0]:  # a rank may have no rows
        with torch.cuda.device_of(arguments[0]):  # type: ignore[no-untyped-call]
            kernel[grid](*arguments, **compiled_for)


@triton.jit
def _tile(z: tl.tensor, positions: tl.tensor, inside: tl.tensor, width: tl.constexpr) -> tl.tensor:
    """Load rows `positions` of z, (len(positions), width); zeros where not `inside`."""
    offsets = positions.to(tl.int64)[:, None] * width + tl.arange(0, width)[None, :]
    return tl.load(z + offsets, mask=inside[:, None], other=0.0)


@triton.jit
def _pairs(
    i: tl.tensor, partner_i: tl.tensor, group_i: tl.tensor, positive_i: tl.tensor,
    j: tl.tensor, group: tl.tensor, positive: tl.tensor, total: tl.tensor,
    keyed: tl.constexpr, decoupled: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """Return which pairs (i, j) of a tile are summed, and which are extra positives."""
    summed = (j < total)[None, :] & (i[:, None] != j[None, :]) & (partner_i[:, None] != j[None, :])
    extra = summed
    if keyed:
        group_j = tl.load(group + j, mask=j < total, other=-1)
        positive_j = tl.load(positive + j, mask=j < total, other=-1)
        same = positive_i[:, None] == positive_j[None, :]
        strange = group_i[:, None] != group_j[None, :]
        extra = summed & same
        summed &= strange if decoupled else same | strange
    return summed, extra


@triton.jit(do_not_specialize=_VARYING)
def forward_kernel(
    z: tl.tensor, partner: tl.tensor, group: tl.tensor, positive: tl.tensor, partial: tl.tensor,
    start: tl.tensor, count: tl.tensor, total: tl.tensor, stretch: tl.tensor, sharpness: tl.tensor,
    width: tl.constexpr, block_rows: tl.constexpr, block_columns: tl.constexpr,
    online: tl.constexpr, keyed: tl.constexpr, decoupled: tl.constexpr,
) -> None:  # fmt: skip
    """Sum over a split and write sums, peaks, above, and cosines at extra positives to partial (splits, 4, count) fp32.

    The sum over exp(s_ij) is `sums * exp(peaks / tau)`. z: (total, width); partner: (count,); group and positive:
    (total,).
    """
    row = tl.program_id(0) * block_rows + tl.arange(0, block_rows)
    inside = row < count
    i = start + row
    partner_i = tl.load(partner + row, mask=inside, other=0).to(tl.int32)
    group_i = tl.load(group + i, mask=inside, other=0) if keyed else i
    positive_i = tl.load(positive + i, mask=inside, other=0) if keyed else i
    z_i = _tile(z, i, inside, width)

    # The cosines of this block's rows with all of their partners; on the diagonal, of each row with its own.
    across = tl.dot(z_i, tl.trans(_tile(z, partner_i, inside, width)), input_precision="tf32x3")
    diagonal = tl.arange(0, block_rows)[:, None] == tl.arange(0, block_rows)[None, :]
    at_partner = tl.sum(tl.where(diagonal, across, 0.0), 1)

    sums = tl.full([block_rows], 0.0, tl.float32)
    peaks = tl.full([block_rows], -2.0 if online else 1.0, tl.float32)  # no cosine is as low as -2
    above = tl.full([block_rows], 0.0, tl.float32)
    at_positives = tl.full([block_rows], 0.0, tl.float32)
    first = tl.program_id(1) * stretch
    for left in range(first, tl.minimum(first + stretch, total), block_columns):
        j = left + tl.arange(0, block_columns)
        cosines = tl.dot(z_i, tl.trans(_tile(z, j, j < total, width)), input_precision="tf32x3")
        summed, extra = _pairs(i, partner_i, group_i, positive_i, j, group, positive, total, keyed, decoupled)
        if online:
            raised = tl.maximum(peaks, tl.max(tl.where(summed, cosines, -2.0), 1))
            sums *= tl.exp2((peaks - raised) * sharpness)
            peaks = raised
        sums += tl.sum(tl.where(summed, tl.exp2((cosines - peaks[:, None]) * sharpness), 0.0), 1)
        above += tl.sum(tl.where(summed & (cosines > at_partner[:, None]), 1.0, 0.0), 1)
        if keyed:
            at_positives += tl.sum(tl.where(extra, cosines, 0.0), 1)

    to = partial + tl.program_id(1).to(tl.int64) * 4 * count + row
    tl.store(to, sums, mask=inside)
    tl.store(to + count, peaks, mask=inside)
    tl.store(to + 2 * count, above, mask=inside)
    tl.store(to + 3 * count, at_positives, mask=inside)


@triton.jit(do_not_specialize=_VARYING)
def backward_kernel(
    z: tl.tensor, partner: tl.tensor, group: tl.tensor, positive: tl.tensor,
    levels: tl.tensor, shares: tl.tensor, lifts: tl.tensor, partial: tl.tensor,
    start: tl.tensor, count: tl.tensor, total: tl.tensor, stretch: tl.tensor, sharpness: tl.tensor,
    width: tl.constexpr, block_rows: tl.constexpr, block_columns: tl.constexpr,
    online: tl.constexpr, keyed: tl.constexpr, decoupled: tl.constexpr,
) -> None:  # fmt: skip
    """Sum weights times rows over a split, and write 2^lifts times the sum to partial (splits, count, width) fp32.

    levels: (total,) fp32, lse in bits when `online`, else exp(1/tau - lse). shares: (total,) fp32, 1/|P|. lifts:
    (count,) fp32.
    """
    row = tl.program_id(0) * block_rows + tl.arange(0, block_rows)
    inside = row < count
    i = start + row
    partner_i = tl.load(partner + row, mask=inside, other=0).to(tl.int32)
    group_i = tl.load(group + i, mask=inside, other=0) if keyed else i
    positive_i = tl.load(positive + i, mask=inside, other=0) if keyed else i
    level_i = tl.load(levels + i, mask=inside, other=0.0)[:, None]
    share_i = tl.load(shares + i, mask=inside, other=0.0)[:, None]
    lift_i = tl.load(lifts + row, mask=inside, other=0.0)[:, None]
    z_i = _tile(z, i, inside, width)

    gradient = tl.full([block_rows, width], 0.0, tl.float32)
    first = tl.program_id(1) * stretch
    for left in range(first, tl.minimum(first + stretch, total), block_columns):
        j = left + tl.arange(0, block_columns)
        z_j = _tile(z, j, j < total, width)
        bits = tl.dot(z_i, tl.trans(z_j), input_precision="tf32x3") * sharpness
        level_j = tl.load(levels + j, mask=j < total, other=0.0)[None, :]
        if online:
            weights = tl.exp2(bits + (lift_i - level_i)) + tl.exp2(bits + (lift_i - level_j))
        else:
            weights = tl.exp2(bits + (lift_i - sharpness)) * (level_i + level_j)
        summed, extra = _pairs(i, partner_i, group_i, positive_i, j, group, positive, total, keyed, decoupled)
        weights = tl.where(summed, weights, 0.0)
        if keyed:
            share_j = tl.load(shares + j, mask=j < total, other=0.0)[None, :]
            weights -= tl.where(extra, (share_i + share_j) * tl.exp2(lift_i), 0.0)
        gradient = tl.dot(weights.to(z_j.dtype), z_j, gradient, input_precision="tf32x3")

    positions = tl.program_id(1).to(tl.int64) * count + row
    tl.store(partial + positions[:, None] * width + tl.arange(0, width)[None, :], gradient, mask=inside[:, None])
