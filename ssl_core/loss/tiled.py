"""The loss executor that works tile by tile, on CPUs and GPUs: memory O(n d + N d + one tile).

A tile of similarities is computed, used and overwritten while it is in the cache, and computed again in the backward
pass. One exponential serves both terms of the gradient:

    exp(s_ij - lse_i) + exp(s_ij - lse_j) = exp(s_ij) (exp(-lse_i) + exp(-lse_j))

Since |s| <= 1/tau <= 40 for tau >= 0.025, the factors lie between exp(-40)/N and exp(40), well within fp32: no running
maximum is needed, partial sums commute, and in a single process S's symmetry halves the work: only tiles on and above
the diagonal are made, and each also serves its mirror image. For smaller tau the sums follow a running maximum, and the
gradient takes two exponentials.

The few pairs of a tile that are left out or positive (the diagonal, partners, equal keys) are found by index and
changed one by one, without a mask of the tile's size.
"""

from collections.abc import Iterator
from itertools import pairwise
from typing import Final, NamedTuple

import torch
from torch import Tensor

from ssl_core.loss.pair_sums import Keys, RowPairs, RowStats

NO_MAXIMUM_FROM: Final = 0.025  # temperature

# Rows and columns of a tile. On a CPU a tile and its spare (16 MB together) fit the last-level cache; smaller ones are
# not faster on one thread, and on several each of the many short operations waits for the slowest.
_TILES: Final = {"cpu": (1024, 2048), "cuda": (4096, 8192)}


_Positions = tuple[Tensor, Tensor]  # rows and columns within a tile


class _Tile(NamedTuple):
    """Similarities of some rows with some columns.

    Attributes:
        rows: positions of the rows among the N global rows
        columns: positions of the columns, likewise
        values: (rows, columns) s, -inf for pairs that are not summed; may be overwritten
        spare: scratch memory of the same shape
        extra: positions within the tile of positives other than the partner
        at_extra: (positives,) s there
        mirrored: whether the tile also represents its transpose
    """

    rows: slice
    columns: slice
    values: Tensor
    spare: Tensor
    extra: _Positions | None
    at_extra: Tensor | None
    mirrored: bool


def forward(pairs: RowPairs) -> RowStats:
    """Return the sums of each row; see `LossExecutor`."""
    tiling = _Tiling(pairs)
    at_partner = pairs.partner_similarities.to(pairs.rows.dtype)
    peaks = None if tiling.bounded else torch.full_like(at_partner, -1 / pairs.temperature)
    sums = torch.zeros_like(at_partner, dtype=torch.float64)
    at_positives, positives = torch.zeros_like(sums), torch.ones_like(sums)
    above = torch.zeros_like(pairs.partner)

    for tile in tiling.tiles():
        i, j = tiling.local(tile.rows), tiling.local(tile.columns)
        s = tile.values
        if tile.extra is not None and tile.at_extra is not None:
            row, column = tile.extra
            at_extra = tile.at_extra.double()
            for side, index in [(i, row), (j, column)][: 1 + tile.mirrored]:
                at_positives[side].index_add_(0, index, at_extra)
                positives[side].index_add_(0, index, torch.ones_like(at_extra))
        # Compare into floats: on a CPU three times as fast as into bools, and exact, because a tile's sums are small.
        above[i] += torch.gt(s, at_partner[i, None], out=tile.spare).sum(1).long()
        if tile.mirrored:
            above[j] += torch.gt(s, at_partner[j], out=tile.spare).sum(0).long()
        if peaks is not None:
            before, peaks[i] = peaks[i].clone(), torch.maximum(peaks[i], s.amax(1))
            sums[i] *= torch.exp(before - peaks[i])
            s -= peaks[i, None]
        s.exp_()
        sums[i] += s.sum(1)
        if tile.mirrored:
            sums[j] += s.sum(0)
    return RowStats(sums.log() if peaks is None else sums.log() + peaks, at_positives, positives, above)


def backward(pairs: RowPairs, lse: Tensor, positives: Tensor) -> Tensor:
    """Return the gradient of all pairs except (i, partner(i)); see `LossExecutor`."""
    rows, all_rows, tiling = pairs.rows, pairs.all_rows, _Tiling(pairs)
    # Subtract the mean: nearly equal projections, as at the start, differ only by their small remainder.
    mean = all_rows.mean(0)
    pair_gradient, totals = torch.zeros_like(rows), torch.zeros_like(lse)
    level = lse.to(rows.dtype)
    factors = torch.exp(-lse if tiling.bounded else level - lse).to(rows.dtype)
    shares = (1 / positives).to(rows.dtype)

    for tile in tiling.tiles():
        i, j, weights, spare = tile.rows, tile.columns, tile.values, tile.spare
        if tiling.bounded:
            torch.add(factors[i, None], factors[j], out=spare)
            weights.exp_().mul_(spare)
        else:
            # The factors, near 1, restore the digits that rounding lse to fp32 loses.
            torch.sub(weights, level[i, None], out=spare).exp_().mul_(factors[i, None])
            weights.sub_(level[j]).exp_().mul_(factors[j]).add_(spare)
        if tile.extra is not None:
            row, column = tile.extra
            weights[row, column] -= shares[i][row] + shares[j][column]
        pair_gradient[tiling.local(i)].addmm_(weights, all_rows[j] - mean)
        totals[i] += weights.sum(1)
        if tile.mirrored:
            pair_gradient[tiling.local(j)].addmm_(weights.T, all_rows[i] - mean)
            totals[j] += weights.sum(0)
    return pair_gradient.addr_(totals[pairs.here].to(rows.dtype), mean)


class _Tiling:
    """The pairs of this rank's rows with all rows, as tiles that share one buffer."""

    def __init__(self, pairs: RowPairs) -> None:
        rows, self._all_rows, self._keys, self._start, self._partner, self._temperature, self._decoupled = pairs
        self._stop = self._start + len(rows)
        self._height, self._width = _TILES["cuda" if rows.is_cuda else "cpu"]
        self._partner_on_cpu = self._partner.cpu()  # without keys, exceptions need not wait for a GPU
        self.bounded = self._temperature >= NO_MAXIMUM_FROM
        self._symmetric = self.bounded and len(rows) == len(self._all_rows)

    def local(self, positions: slice) -> slice:
        """Return the positions of these global rows among this rank's."""
        return slice(positions.start - self._start, positions.stop - self._start)

    def tiles(self) -> Iterator[_Tile]:
        """Yield every tile: all of this rank's rows times all rows, or half of that if S is symmetric."""
        total = len(self._all_rows)
        buffers = self._all_rows.new_empty(2, self._height * max(self._height, self._width))
        for top in range(self._start, self._stop, self._height):
            rows = slice(top, min(top + self._height, self._stop))
            # The tile on the diagonal is square and holds each pair twice; the other tiles hold it once.
            edges = [*range(0, total, self._width), total]
            if self._symmetric:
                edges = [top, *range(rows.stop, total, self._width), total]
            for columns in [slice(*ends) for ends in pairwise(edges) if ends[0] < ends[1]]:
                shape = (rows.stop - rows.start, columns.stop - columns.start)
                values, spare = buffers[:, : shape[0] * shape[1]].view(2, *shape)
                z_i, z_j = self._all_rows[rows], self._all_rows[columns]
                torch.addmm(values, z_i, z_j.T, beta=0, alpha=1 / self._temperature, out=values)
                left_out, extra = self._exceptions(rows, columns)
                at_extra = None if extra is None else values[extra]
                values[left_out] = float("-inf")
                yield _Tile(rows, columns, values, spare, extra, at_extra, self._symmetric and columns.start > top)

    def _exceptions(self, rows: slice, columns: slice) -> tuple[_Positions, _Positions | None]:
        """Return the positions in a tile of the pairs that are not summed, and of positives other than the partner."""
        if self._keys is None:
            return self._diagonal_and_partner(rows, columns), None
        row, column = self._same_group(self._keys, rows, columns)
        i, j = row + rows.start, column + columns.start
        third = (i != j) & (self._partner[i - self._start] != j)  # neither the row itself nor its partner
        extra = third & (self._keys.positive[i] == self._keys.positive[j])
        left_out = (row, column) if self._decoupled else (row[~extra], column[~extra])
        return left_out, (row[extra], column[extra])

    def _diagonal_and_partner(self, rows: slice, columns: slice) -> _Positions:
        i = torch.arange(rows.start, rows.stop)
        positions = torch.cat([i, self._partner_on_cpu[self.local(rows)]])
        inside = (positions >= columns.start) & (positions < columns.stop)
        row, column = (i - rows.start).repeat(2)[inside], positions[inside] - columns.start
        return row.to(self._partner.device), column.to(self._partner.device)

    def _same_group(self, keys: Keys, rows: slice, columns: slice) -> _Positions:
        group_i, group_j = keys.group[rows], keys.group[columns]
        in_rows = torch.zeros(len(self._all_rows), dtype=torch.bool, device=group_i.device)
        in_rows[group_i] = True
        hit = in_rows[group_j].nonzero()[:, 0]  # the columns, often few, whose group occurs in the rows
        row, hit_column = (group_i[:, None] == group_j[hit]).nonzero(as_tuple=True)
        return row, hit[hit_column]
