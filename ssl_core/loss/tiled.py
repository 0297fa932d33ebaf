"""The pair sums of the loss tile by tile, on CPUs and GPUs: memory O(n d + N d + one tile).

A tile of similarities is made, used and overwritten while it lies in the cache, and made again in the backward
pass. One exponential serves both terms of the gradient:

    exp(s_ij - lse_i) + exp(s_ij - lse_j) = exp(s_ij) (exp(-lse_i) + exp(-lse_j))

Since |s| <= 1/tau <= 40 for tau >= 0.025, the factors lie between exp(-40)/N and exp(40), well within fp32: no running
maximum is needed, partial sums commute, and in a single process S's symmetry halves the work: only tiles on and above
the diagonal are made, and each also serves its mirror image. For smaller tau the sums follow a running maximum, and the
gradient takes two exponentials.

The few pairs of a tile that are left out or positive (the diagonal, own views, equal keys) are found by index and
changed one by one; no mask of the tile's size is made.
"""

from collections.abc import Iterator
from itertools import pairwise
from typing import Final, NamedTuple

import torch
from torch import Tensor

from ssl_core.loss.rows import Keys, RowStats, own_similarities

NO_MAXIMUM_FROM: Final = 0.025  # temperature

# Rows and columns of a tile. On a CPU a tile and its spare (16 MB in all) lie in the last-level cache; smaller ones are
# not faster on one thread, and on several each of the many short operations waits for the slowest.
_TILES: Final = {"cpu": (1024, 2048), "cuda": (4096, 8192)}


_Places = tuple[Tensor, Tensor]  # rows and columns within a tile


class _Tile(NamedTuple):
    """Similarities of some rows with some columns.

    rows, columns: places among the N global rows. values: (rows, columns) s, -inf for pairs that are not summed; to be
    overwritten. spare: room of the same shape. extra: the places of positives beside the own view, within the tile.
    mirrored: its transpose is not visited.
    """

    rows: slice
    columns: slice
    values: Tensor
    spare: Tensor
    extra: _Places | None
    mirrored: bool


def forward(rows: Tensor, everyone: Tensor, keys: Keys | None, start: int, own: Tensor, temperature: float) -> RowStats:
    """Return what the loss needs of each row, as `ssl_core.loss.rows.Executor` says."""
    pairs = _Pairs(rows, everyone, keys, start, own, temperature)
    at_own = own_similarities(rows, everyone, own, temperature).to(rows.dtype)
    peaks = None if pairs.bounded else torch.full_like(at_own, -1 / temperature)
    sums = torch.zeros_like(at_own, dtype=torch.float64)
    at_positives, positives = torch.zeros_like(sums), torch.ones_like(sums)
    above = torch.zeros_like(own)

    for tile in pairs.tiles():
        i, j = pairs.local(tile.rows), pairs.local(tile.columns)
        s = tile.values
        if tile.extra is not None:
            row, column = tile.extra
            at_extra = s[row, column].double()
            for side, place in [(i, row), (j, column)][: 1 + tile.mirrored]:
                at_positives[side].index_add_(0, place, at_extra)
                positives[side].index_add_(0, place, torch.ones_like(at_extra))
        # Compared into floats: three times as fast as into bools on a CPU, and exact, since a tile's sums are small.
        above[i] += torch.gt(s, at_own[i, None], out=tile.spare).sum(1).long()
        if tile.mirrored:
            above[j] += torch.gt(s, at_own[j], out=tile.spare).sum(0).long()
        if peaks is not None:
            before, peaks[i] = peaks[i].clone(), torch.maximum(peaks[i], s.amax(1))
            sums[i] *= torch.exp(before - peaks[i])
            s -= peaks[i, None]
        s.exp_()
        sums[i] += s.sum(1)
        if tile.mirrored:
            sums[j] += s.sum(0)
    return RowStats(sums.log() if peaks is None else sums.log() + peaks, at_positives, positives, above)


def backward(
    rows: Tensor,
    everyone: Tensor,
    keys: Keys | None,
    start: int,
    own: Tensor,
    temperature: float,
    lse: Tensor,
    positives: Tensor,
) -> Tensor:
    """Return the pull of all pairs but (i, own(i)) on the rows, as `ssl_core.loss.rows.Executor` says."""
    pairs = _Pairs(rows, everyone, keys, start, own, temperature)
    # Projections that are much alike, as at the start, differ by what remains of their sum behind the mean.
    mean = everyone.mean(0)
    pull, totals = torch.zeros_like(rows), torch.zeros_like(lse)
    level = lse.to(rows.dtype)
    factors = torch.exp(-lse if pairs.bounded else level - lse).to(rows.dtype)
    shares = (1 / positives).to(rows.dtype)

    for tile in pairs.tiles():
        i, j, weights, spare = tile.rows, tile.columns, tile.values, tile.spare
        if pairs.bounded:
            torch.add(factors[i, None], factors[j], out=spare)
            weights.exp_().mul_(spare)
        else:
            # The factors, near 1, give back what rounding lse to fp32 loses.
            torch.sub(weights, level[i, None], out=spare).exp_().mul_(factors[i, None])
            weights.sub_(level[j]).exp_().mul_(factors[j]).add_(spare)
        if tile.extra is not None:
            row, column = tile.extra
            weights[row, column] -= shares[i][row] + shares[j][column]
        pull[pairs.local(i)].addmm_(weights, everyone[j] - mean)
        totals[i] += weights.sum(1)
        if tile.mirrored:
            pull[pairs.local(j)].addmm_(weights.T, everyone[i] - mean)
            totals[j] += weights.sum(0)
    return pull.addr_(totals[start : start + len(rows)].to(rows.dtype), mean)


class _Pairs:
    """The pairs of this rank's rows with everyone, as tiles that are made one after the other in one buffer."""

    def __init__(
        self, rows: Tensor, everyone: Tensor, keys: Keys | None, start: int, own: Tensor, temperature: float
    ) -> None:
        self._everyone, self._start, self._stop = everyone, start, start + len(rows)
        self._temperature = temperature
        self._height, self._width = _TILES["cuda" if rows.is_cuda else "cpu"]
        self._own = own
        self._own_on_cpu = own.cpu()  # where without keys the exceptions are found, so that a GPU need not be asked
        self._keys = keys
        if keys is not None:
            self._groups = torch.unique(keys.group, return_inverse=True)[1]  # (N,), numbered from 0 on
        self.bounded = temperature >= NO_MAXIMUM_FROM
        self._symmetric = self.bounded and len(rows) == len(everyone)

    def local(self, places: slice) -> slice:
        """Return where these global rows stand among this rank's."""
        return slice(places.start - self._start, places.stop - self._start)

    def tiles(self) -> Iterator[_Tile]:
        """Make every tile in turn: all of this rank's rows times everyone, or half of it where S is symmetric."""
        total = len(self._everyone)
        buffers = self._everyone.new_empty(2, self._height * max(self._height, self._width))
        for top in range(self._start, self._stop, self._height):
            rows = slice(top, min(top + self._height, self._stop))
            # The tile on the diagonal is square, so that it holds both images of its pairs and the others one each.
            edges = [*range(0, total, self._width), total]
            if self._symmetric:
                edges = [top, *range(rows.stop, total, self._width), total]
            for columns in [slice(*ends) for ends in pairwise(edges) if ends[0] < ends[1]]:
                shape = (rows.stop - rows.start, columns.stop - columns.start)
                values, spare = buffers[:, : shape[0] * shape[1]].view(2, *shape)
                z_i, z_j = self._everyone[rows], self._everyone[columns]
                torch.addmm(values, z_i, z_j.T, beta=0, alpha=1 / self._temperature, out=values)
                left_out, extra = self._exceptions(rows, columns)
                values[left_out] = float("-inf")
                yield _Tile(rows, columns, values, spare, extra, self._symmetric and columns.start > top)

    def _exceptions(self, rows: slice, columns: slice) -> tuple[_Places, _Places | None]:
        """Return the places within a tile of the pairs that are not summed, and of positives beside the own view."""
        if self._keys is None:
            return self._diagonal_and_own(rows, columns), None
        row, column = self._same_group(rows, columns)
        i, j = row + rows.start, column + columns.start
        third = (i != j) & (self._own[i - self._start] != j)  # neither the row itself nor its own view
        extra = third & (self._keys.positive[i] == self._keys.positive[j])
        return (row[~extra], column[~extra]), (row[extra], column[extra])

    def _diagonal_and_own(self, rows: slice, columns: slice) -> _Places:
        i = torch.arange(rows.start, rows.stop)
        places = torch.cat([i, self._own_on_cpu[self.local(rows)]])
        inside = (places >= columns.start) & (places < columns.stop)
        row, column = (i - rows.start).repeat(2)[inside], places[inside] - columns.start
        return row.to(self._own.device), column.to(self._own.device)

    def _same_group(self, rows: slice, columns: slice) -> _Places:
        group_i, group_j = self._groups[rows], self._groups[columns]
        in_rows = torch.zeros(len(self._everyone), dtype=torch.bool, device=group_i.device)
        in_rows[group_i] = True
        hit = in_rows[group_j].nonzero()[:, 0]  # the columns, often few, whose group stands in the rows at all
        row, place = (group_i[:, None] == group_j[hit]).nonzero(as_tuple=True)
        return row, hit[place]
