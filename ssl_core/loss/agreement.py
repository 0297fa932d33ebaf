"""What the ranks tell each other before the loss, so that all of them go on, or all raise the same error."""

from collections.abc import Sequence
from typing import Final, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from infra.errors import RunFailed, UserError, require
from infra.processes import world_size
from ssl_core.loss.gather import gather_equal

_DTYPES: Final = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


class NonFinite(RunFailed):
    """A rank's projections are not finite; raised on every rank, before anything is computed from them."""


class RowPositions(NamedTuple):
    """Where rows stand: each rank's first views, then its second views, rank after rank.

    own: (N,) the place of each row's own second view. sample: (N,) the number of its sample among the global B. start:
    the place of this rank's first row.
    """

    own: Tensor
    sample: Tensor
    start: int


def check_ranks_agree(projections: Tensor, norms: Tensor, named: bool, same_patient: str) -> list[int]:
    """Return how many samples each rank holds; raises on all ranks what is wrong on any of them.

    projections: (2n, d) of this rank, of lengths `norms` (2n,); named: whether it has the identities of its samples,
    which all ranks or none must have, and all for a `same_patient` other than `negative`.
    """
    fixed = [len(projections) // 2, projections.shape[1], _DTYPES.index(projections.dtype), named]
    wrong = torch.stack([(~norms.isfinite()).sum(), (norms == 0).sum()])
    ranks = gather_equal(torch.cat([torch.tensor(fixed, device=wrong.device), wrong])).tolist()
    samples, sizes, dtypes, all_named, not_finite, zero = (list(column) for column in zip(*ranks, strict=True))
    if len(set(sizes)) > 1 or len(set(dtypes)) > 1:
        found = [f"rank {r}: d={size} {_DTYPES[dtypes[r]]}" for r, size in enumerate(sizes)]
        raise UserError(f"ranks disagree on the projections ({'; '.join(found)}); give all the same model and dtype")
    if not all(all_named) and (any(all_named) or same_patient != "negative"):
        without = ", ".join(str(rank) for rank, there in enumerate(all_named) if not there)
        raise UserError(
            f"loss.same_patient={same_patient} needs the samples' identities, which rank {without} does not have; "
            "give them to all ranks, or set loss.same_patient=negative and give them to none"
        )
    require(
        sum(samples) > 1,
        f"a global batch of {sum(samples)} samples has no negatives; it needs two samples or more, all ranks together",
    )
    if any(not_finite):
        raise NonFinite(f"projections are not finite ({_counts(not_finite)}); lower optim.learning_rate, or use fp32")
    if any(zero):
        raise RunFailed(f"projections are zero and have no direction ({_counts(zero)}); the projection head is dead")
    return samples


def _counts(counts: Sequence[int]) -> str:
    return "; ".join(f"rank {rank}: {count} rows" for rank, count in enumerate(counts) if count)


def row_positions(samples: Sequence[int], device: torch.device) -> RowPositions:
    """Lay out the rows of ranks that hold so many samples each; `start` is that of this rank."""
    rank = dist.get_rank() if world_size() > 1 else 0
    held = torch.tensor(samples)
    before = held.cumsum(0) - held  # samples on the ranks before
    held_here, before_here = held.repeat_interleave(2 * held), before.repeat_interleave(2 * held)  # (N,)
    place = torch.arange(2 * sum(samples)) - 2 * before_here  # within the rank
    own = 2 * before_here + (place + held_here) % (2 * held_here)
    return RowPositions(own.to(device), (before_here + place % held_here).to(device), 2 * int(before[rank]))
