"""The pair sums of the loss as they are written, over the whole (n, N) matrix and in float64: the oracle."""

import torch
from torch import Tensor

from ssl_core.loss.rows import Keys, RowStats, own_similarities


def forward(rows: Tensor, everyone: Tensor, keys: Keys | None, start: int, own: Tensor, temperature: float) -> RowStats:
    """Return what the loss needs of each row, as `ssl_core.loss.rows.Executor` says."""
    similarities, kept, extra = _pairs(rows, everyone, keys, start, own, temperature)
    at_own = own_similarities(rows, everyone, own, temperature)
    return RowStats(
        others=similarities.masked_fill(~kept, float("-inf")).logsumexp(dim=1),
        at_positives=(similarities * extra).sum(1),
        positives=1 + extra.sum(1).double(),
        above=(kept & (similarities > at_own[:, None])).sum(1),
    )


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
    similarities, kept, extra = _pairs(rows, everyone, keys, start, own, temperature)
    here = slice(start, start + len(rows))
    pull = torch.exp(similarities - lse[here, None]) + torch.exp(similarities - lse)
    pull = pull.masked_fill(~kept, 0) - extra * (1 / positives[here, None] + 1 / positives)
    return (pull @ everyone.double()).to(rows.dtype)


def _pairs(
    rows: Tensor, everyone: Tensor, keys: Keys | None, start: int, own: Tensor, temperature: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return s, which pairs are kept beside the own view, and which of those are positives, (n, N) each."""
    similarities = rows.double() @ everyone.double().T / temperature
    i = start + torch.arange(len(rows), device=rows.device)
    j = torch.arange(len(everyone), device=rows.device)
    third = (i[:, None] != j) & (own[:, None] != j)  # neither the row itself nor its own view
    if keys is None:
        return similarities, third, torch.zeros_like(third)
    extra = third & (keys.positive[i, None] == keys.positive)
    return similarities, third & (extra | (keys.group[i, None] != keys.group)), extra
