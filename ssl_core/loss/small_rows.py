"""The part of the loss that small views add: each of their rows is contrasted with the rows of all large views.

With unit rows z, s_kj = z_k . z_j / tau for a small row k and a large row j. Large rows with the same `positive` as k
are its positives P(k), among them both large views of its sample; kept(k) are these and all large rows of other groups,
in the decoupled loss only the latter. A row's loss and the derivatives of the sum of these losses are

    lse over kept(k) of s_kj - mean over P(k) of s_kj,    w_kj = [j kept by k] exp(s_kj - lse_k) - [j in P(k)] / |P(k)|,
    dL/dz_k = 1/tau sum over j of w_kj z_j,               dL/dz_j = 1/tau sum over k of w_kj z_k.

A rank needs the large rows of all ranks for its own small rows, and the small rows of all ranks, with two numbers each,
for its own large rows. Blocks of small rows are computed in float64: memory O(_BLOCK N).
"""

from collections.abc import Iterator
from typing import Final, NamedTuple

import torch
from torch import Tensor

from ssl_core.loss.config import LossConfig
from ssl_core.loss.pair_sums import LARGE

_BLOCK: Final = 1024  # small rows at once


class Rows(NamedTuple):
    """Unit rows and their relations.

    Attributes:
        z: (n, d)
        group: (n,), see `ssl_core.loss.pair_sums.Keys`
        positive: (n,), likewise
    """

    z: Tensor
    group: Tensor
    positive: Tensor

    def part(self, which: slice) -> "Rows":
        """Return some of the rows."""
        return Rows(self.z[which], self.group[which], self.positive[which])


class SmallStats(NamedTuple):
    """Numbers of each small row, (n,) float64.

    Attributes:
        lse: log of the sum of exp(s_kj) over the kept large rows; LARGE if none is kept
        positives: number of positives; infinite if none is kept, so that the row has no gradient
        loss: the row's loss
    """

    lse: Tensor
    positives: Tensor
    loss: Tensor


def forward(small: Rows, large: Rows, loss: LossConfig) -> SmallStats:
    """Return the numbers of these small rows, compared with the large rows of all ranks."""
    parts = [_stats(small.part(which), large, loss) for which in _blocks(small)]
    return SmallStats(*(torch.cat(values) for values in zip(*parts, strict=True)))


def small_gradient(small: Rows, large: Rows, stats: SmallStats, loss: LossConfig) -> Tensor:
    """Return tau dL/dz_k of these small rows, (n, d) float64, from the large rows of all ranks."""
    return torch.cat([_weights(small, large, stats, which, loss) @ large.z.double() for which in _blocks(small)])


def large_gradient(small: Rows, large: Rows, stats: SmallStats, loss: LossConfig) -> Tensor:
    """Return what the small rows of all ranks add to tau dL/dz_j of these large rows, (n, d) float64."""
    gradient = torch.zeros_like(large.z, dtype=torch.float64)
    for which in _blocks(small):
        gradient.addmm_(_weights(small, large, stats, which, loss).T, small.z[which].double())
    return gradient


def _blocks(small: Rows) -> Iterator[slice]:
    for start in range(0, max(len(small.z), 1), _BLOCK):  # one empty block if there is no row
        yield slice(start, start + _BLOCK)


def _similarities(small: Rows, large: Rows, loss: LossConfig) -> tuple[Tensor, Tensor, Tensor]:
    """Return s, the mask of kept pairs, and the mask of positives, each for all pairs of these rows."""
    positive = small.positive[:, None] == large.positive
    stranger = small.group[:, None] != large.group
    s = small.z.double() @ large.z.double().T / loss.temperature
    return s, stranger if loss.decoupled else stranger | positive, positive


def _stats(small: Rows, large: Rows, loss: LossConfig) -> SmallStats:
    s, kept, positive = _similarities(small, large, loss)
    lse = s.masked_fill(~kept, float("-inf")).logsumexp(dim=1)
    alone = lse.isneginf()
    positives = positive.sum(1).double().masked_fill(alone, torch.inf)
    at_positives = (s * positive).sum(1) / positives
    return SmallStats(lse.masked_fill(alone, LARGE), positives, (lse - at_positives).masked_fill(alone, 0))


def _weights(small: Rows, large: Rows, stats: SmallStats, which: slice, loss: LossConfig) -> Tensor:
    """Return w_kj for these small rows, (small rows, large rows)."""
    s, kept, positive = _similarities(small.part(which), large, loss)
    weights = torch.exp(s - stats.lse[which, None]).masked_fill(~kept, 0)
    return weights - positive / stats.positives[which, None]
