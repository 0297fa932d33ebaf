"""Checks of the ranks' inputs before the loss, so that all ranks continue or all raise the same error."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Final, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from infra.errors import RunFailed, UserError, require
from infra.options import key
from infra.processes import world_size
from ssl_core.loss.config import LossConfig
from ssl_core.loss.gather import gather_equal

_DTYPES: Final = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


class NonFinite(RunFailed):
    """Projections of a rank are not finite; raised on every rank before anything is computed from them."""


class RowLayout(NamedTuple):
    """Positions of all rows: each rank's first views, then its second views, rank after rank.

    Attributes:
        partner: (N,) the position of each row's partner
        sample: (N,) the number of each row's sample among the global B samples
        firsts: (B,) the positions of the first views
        start: the position of this rank's first row
        first_sample: the number of this rank's first sample
    """

    partner: Tensor
    sample: Tensor
    firsts: Tensor
    start: int
    first_sample: int


def check_ranks_agree(
    projections: Tensor, norms: Tensor, samples: int, has_identities: bool, same_patient: str
) -> list[int]:
    """Check the inputs of all ranks. Collective.

    Args:
        projections: (rows, d) of this rank
        norms: (rows,) their lengths
        samples: n, the number of this rank's samples
        has_identities: whether this rank has the identities of its samples; all ranks or none must, and all must for a
            `same_patient` other than `negative`
        same_patient: the setting of the loss

    Returns:
        The number of samples of each rank.

    Raises:
        UserError: on all ranks, if ranks disagree on the size or type of the projections, or identities are missing
        NonFinite: on all ranks, if a projection is not finite
        RunFailed: on all ranks, if a projection is zero
    """
    fixed = [samples, projections.shape[1], _DTYPES.index(projections.dtype), has_identities]
    wrong = torch.stack([(~norms.isfinite()).sum(), (norms == 0).sum()])
    ranks = gather_equal(torch.cat([torch.tensor(fixed, device=wrong.device), wrong])).tolist()
    shares, sizes, dtypes, identified, not_finite, zero = (list(column) for column in zip(*ranks, strict=True))
    if len(set(sizes)) > 1 or len(set(dtypes)) > 1:
        shown = [f"rank {r}: d={size} {_DTYPES[dtypes[r]]}" for r, size in enumerate(sizes)]
        raise UserError(f"ranks disagree on the projections ({'; '.join(shown)}); give all the same model and dtype")
    if not all(identified) and (any(identified) or same_patient != "negative"):
        option = key(LossConfig, "same_patient")
        without = ", ".join(str(rank) for rank, has_them in enumerate(identified) if not has_them)
        raise UserError(
            f"{option}={same_patient} needs the samples' identities, which rank {without} does not have; give them to "
            f"all ranks, or use {option}=negative and give them to none"
        )
    require(
        sum(shares) > 1,
        f"a global batch of {sum(shares)} samples has no negatives; it needs at least two samples over all ranks",
    )
    if any(not_finite):
        raise NonFinite(f"projections are not finite ({_counts(not_finite)}); lower the learning rate, or use fp32")
    if any(zero):
        raise RunFailed(f"projections are zero and have no direction ({_counts(zero)}); the projection head is dead")
    return shares


def _counts(counts: Sequence[int]) -> str:
    return "; ".join(f"rank {rank}: {count} rows" for rank, count in enumerate(counts) if count)


def lay_out_rows(samples: Sequence[int], device: torch.device) -> RowLayout:
    """Lay out the rows of ranks that have `samples[rank]` samples each."""
    return _lay_out_rows(tuple(samples), dist.get_rank() if world_size() > 1 else 0, device)


@lru_cache(2)  # most steps have the same shares, and for 100,000 rows it takes milliseconds while the GPU idles
def _lay_out_rows(samples: tuple[int, ...], rank: int, device: torch.device) -> RowLayout:
    counts = torch.tensor(samples)
    before = counts.cumsum(0) - counts  # samples on the ranks before
    count, first = counts.repeat_interleave(2 * counts), before.repeat_interleave(2 * counts)  # (N,)
    within = torch.arange(2 * sum(samples)) - 2 * first  # position within the rank
    partner = 2 * first + (within + count) % (2 * count)
    firsts = (within < count).nonzero()[:, 0]
    sample = first + within % count
    start = int(before[rank])
    return RowLayout(partner.to(device), sample.to(device), firsts.to(device), 2 * start, start)
