"""The loss executor that computes the whole (n, N) matrix in float64, straight from the formula: the oracle."""

import torch
from torch import Tensor

from ssl_core.loss.pair_sums import RowPairs, RowStats


def forward(pairs: RowPairs) -> RowStats:
    """Return the sums of each row; see `LossExecutor`."""
    similarities, kept, extra = _matrices(pairs)
    return RowStats(
        others=similarities.masked_fill(~kept, float("-inf")).logsumexp(dim=1),
        at_positives=(similarities * extra).sum(1),
        positives=1 + extra.sum(1).double(),
        above=(kept & (similarities > pairs.partner_similarities[:, None])).sum(1),
    )


def backward(pairs: RowPairs, lse: Tensor, positives: Tensor) -> Tensor:
    """Return the gradient of all pairs except (i, partner(i)); see `LossExecutor`."""
    similarities, kept, extra = _matrices(pairs)
    weights = torch.exp(similarities - lse[pairs.here, None]) + torch.exp(similarities - lse)
    weights = weights.masked_fill(~kept, 0) - extra * (1 / positives[pairs.here, None] + 1 / positives)
    return (weights @ pairs.all_rows.double()).to(pairs.rows.dtype)


def _matrices(pairs: RowPairs) -> tuple[Tensor, Tensor, Tensor]:
    """Return s, the mask of kept pairs without the partner, and the mask of other positives, (n, N) each."""
    rows, all_rows, keys, start, partner, temperature, decoupled = pairs
    similarities = rows.double() @ all_rows.double().T / temperature
    i = start + torch.arange(len(rows), device=rows.device)
    j = torch.arange(len(all_rows), device=rows.device)
    third = (i[:, None] != j) & (partner[:, None] != j)  # neither the row itself nor its partner
    if keys is None:
        return similarities, third, torch.zeros_like(third)
    extra = third & (keys.positive[i, None] == keys.positive)
    strangers = keys.group[i, None] != keys.group
    return similarities, strangers if decoupled else third & (extra | strangers), extra
