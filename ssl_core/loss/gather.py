"""Gathers of rows from all ranks, whose numbers of rows may differ."""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from infra.ranks.processes import world_size


def gather_equal(values: Tensor) -> Tensor:
    """Return every rank's `values`, (W, *shape); shape and dtype must be the same on all ranks."""
    gathered = values.new_empty(world_size(), *values.shape)
    if world_size() == 1:
        return gathered.copy_(values[None])
    dist.all_gather_into_tensor(gathered, values.contiguous()[None])
    return gathered


def gather_rows(rows: Tensor, counts: Sequence[int]) -> Tensor:
    """Return all ranks' rows in rank order, (N, ...) from (n, ...).

    Not differentiable: the loss has its gradient in closed form.

    Args:
        rows: (n, ...), with the same dtype and the same shape except n on all ranks
        counts: n of each rank, which may be 0
    """
    if world_size() == 1:
        return rows
    # Collectives gather equal shapes only, so pad to the longest and cut afterwards.
    longest = max(counts)
    if len(rows) < longest:
        rows = torch.cat([rows, rows.new_zeros(longest - len(rows), *rows.shape[1:])])
    gathered = gather_equal(rows)  # (W, longest, ...)
    if min(counts) == longest:
        return gathered.flatten(0, 1)
    return torch.cat([part[:count] for part, count in zip(gathered, counts, strict=True)])
