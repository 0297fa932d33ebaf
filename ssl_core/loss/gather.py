"""Gathers of rows from all ranks, whose numbers of rows may differ."""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from infra.processes import world_size


def gather_equal(values: Tensor) -> Tensor:
    """Return every rank's `values`, (W, *shape), which have the same shape and dtype on all ranks."""
    gathered = values.new_empty(world_size(), *values.shape)
    if world_size() == 1:
        return gathered.copy_(values[None])
    dist.all_gather_into_tensor(gathered, values.contiguous()[None])
    return gathered


def gather_rows(rows: Tensor, counts: Sequence[int]) -> Tensor:
    """Return all ranks' rows in rank order, (N, ...) from (n, ...), where rank r holds counts[r], perhaps none.

    Not differentiable: the loss knows its gradient in closed form. Shapes and dtypes have to agree but for n.
    """
    if world_size() == 1:
        return rows
    # Collectives gather equal shapes only: pad to the longest, and cut after.
    longest = max(counts)
    if len(rows) < longest:
        rows = torch.cat([rows, rows.new_zeros(longest - len(rows), *rows.shape[1:])])
    gathered = gather_equal(rows)  # (W, longest, ...)
    if min(counts) == longest:
        return gathered.flatten(0, 1)
    return torch.cat([part[:count] for part, count in zip(gathered, counts, strict=True)])
