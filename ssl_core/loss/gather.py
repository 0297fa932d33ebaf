"""One gather of rows from all ranks, whose numbers of rows may differ."""

import torch
import torch.distributed as dist
from torch import Tensor

from infra.errors import UserError


def gather_rows(rows: Tensor) -> tuple[Tensor, int]:
    """Return all ranks' rows in rank order, (N, ...) from (n, ...), and the index of this rank's first row in them.

    Not differentiable: the loss knows its gradient in closed form. Raises UserError on every rank when the ranks'
    rows differ in shape or dtype.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return rows, 0
    kinds = [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64]
    local = torch.tensor([len(rows), rows.shape[1:].numel(), kinds.index(rows.dtype)], device=rows.device)
    shapes = [torch.empty_like(local) for _ in range(dist.get_world_size())]
    dist.all_gather(shapes, local)
    counts, widths, dtypes = torch.stack(shapes).T.tolist()
    if len(set(widths)) > 1 or len(set(dtypes)) > 1:
        found = [f"rank {r}: d={widths[r]} {kinds[dtypes[r]]}" for r in range(len(widths))]
        raise UserError(f"ranks disagree on the rows to gather ({'; '.join(found)}); give all the same model and dtype")
    # gloo gathers equal shapes only: pad to the longest, and cut after.
    padded = rows.new_zeros(max(counts), *rows.shape[1:])
    padded[: len(rows)] = rows
    parts = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(parts, padded)
    gathered = torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])
    return gathered, sum(counts[: dist.get_rank()])
