"""What the ranks agree on before a step, on the CPU, so that all of them continue or all raise the same error.

Everything here is known before a GPU computes anything, so no rank waits for its GPU. What only the GPU knows, whether
projections are finite, makes the loss NaN on all ranks; `why_skipped` says why, where a step was left out for that.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Final, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from infra.configuration.options import key
from infra.errors import RunFailed, UserError, require
from infra.ranks.devices import on_device
from infra.ranks.processes import world_size
from sharding.reading.data_config import DataConfig
from ssl_core.loss.config import LossConfig
from ssl_core.loss.gather import gather_equal, gather_rows
from ssl_core.loss.pair_sums import Keys

_DTYPES: Final = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


class Identities(NamedTuple):
    """What a rank's samples are of, (n,) int64 views of 64-bit identities, on the CPU.

    Attributes:
        instance: what the loss tells apart: the sample, or the study or patient whose images second views may show
        patient: the patient
        study: the study
    """

    instance: Tensor
    patient: Tensor
    study: Tensor


class GlobalBatch(NamedTuple):
    """The samples of all ranks in a step, B in total.

    Attributes:
        samples: number of samples of each rank
        keys: relations of the samples, (B,) each on the CPU; None if no two samples are related
        stops: number of ranks that were asked to stop after this step
    """

    samples: tuple[int, ...]
    keys: Keys | None = None
    stops: int = 0


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


def agree(
    samples: int,
    loss: LossConfig,
    identities: Identities | None = None,
    *,
    stop: bool = False,
    projections: Tensor | None = None,
) -> GlobalBatch:
    """Tell all ranks about the samples of each. Collective, over gloo.

    Here ranks wait for those whose data come late. A wait inside NCCL counts as a hang much sooner, and no error of
    another rank reaches it.

    Args:
        samples: n, the number of this rank's samples
        loss: settings of the loss
        identities: those of the n samples; all ranks or none must have them, and all must for a `same_patient` other
            than `negative`
        stop: whether this rank was asked to stop
        projections: (rows, d) of this rank, to compare their size and type, where no common configuration sets these

    Raises:
        UserError: on all ranks, if there are fewer than two samples, identities are missing, or ranks disagree on the
            size or type of the projections
    """
    kind = [0, 0] if projections is None else [projections.shape[1], _DTYPES.index(projections.dtype)]
    ranks = gather_equal(torch.tensor([samples, identities is not None, stop, *kind])).tolist()
    shares, identified, stops, sizes, dtypes = (list(column) for column in zip(*ranks, strict=True))
    if len(set(sizes)) > 1 or len(set(dtypes)) > 1:
        shown = [f"rank {r}: d={size} {_DTYPES[dtypes[r]]}" for r, size in enumerate(sizes)]
        raise UserError(f"ranks disagree on the projections ({'; '.join(shown)}); give all the same model and dtype")
    if not all(identified) and (any(identified) or loss.same_patient != "negative"):
        option = key(LossConfig, "same_patient")
        without = ", ".join(str(rank) for rank, has_them in enumerate(identified) if not has_them)
        raise UserError(
            f"{option}={loss.same_patient} needs the samples' identities, which rank {without} does not have; give "
            f"them to all ranks, or use {option}=negative and give them to none"
        )
    require(
        sum(shares) >= 2,
        f"the global batch has {sum(shares)} readable samples, but the loss needs at least two, because one alone has "
        f"no negatives; look for warnings about masked samples, and raise {key(DataConfig, 'global_batch')}",
    )
    keys = None if identities is None else _related(loss, identities, shares)
    return GlobalBatch(tuple(shares), keys, sum(stops))


def _related(loss: LossConfig, identities: Identities, shares: Sequence[int]) -> Keys | None:
    """Return the relations of all samples; None if no two are related. Collective.

    If an instance occurs twice in a batch, its views are never negatives of each other.
    """
    columns = {"negative": [identities.instance], "masked": [identities.patient], "positive": identities[1:]}
    ids = gather_rows(torch.stack([*columns[loss.same_patient]], dim=1).cpu(), shares)  # (B, 1 or 2)
    instances = np.sort(ids[:, 0].numpy())  # twice as fast as torch's
    if not (instances[1:] == instances[:-1]).any():
        return None
    group, *positive = (torch.unique(column, return_inverse=True)[1] for column in ids.unbind(1))
    return Keys(group, positive[0] if positive else torch.arange(len(ids)))


def why_skipped(projections: Tensor) -> str:
    """Say why the loss or the gradient of a step was not finite. Collective; it waits for the GPU.

    Args:
        projections: (..., d) of this rank in that step

    Raises:
        RunFailed: on all ranks, if a projection is zero: training cannot mend that
    """
    norms = torch.linalg.vector_norm(projections, dim=-1, dtype=torch.float64)
    counts = torch.stack([(~norms.isfinite()).sum(), (norms == 0).sum()])
    not_finite, zero = gather_equal(counts.cpu()).T.tolist()
    if any(not_finite):
        return f"projections are not finite: {_counts(not_finite)}"
    if any(zero):
        raise RunFailed(f"projections are zero and have no direction ({_counts(zero)}); the projection head is dead")
    return "the gradient is not finite"


def _counts(counts: Sequence[int]) -> str:
    return "; ".join(f"rank {rank}: {count} rows" for rank, count in enumerate(counts) if count)


def lay_out_rows(samples: Sequence[int], device: torch.device) -> RowLayout:
    """Lay out the rows of ranks that have `samples[rank]` samples each."""
    return _lay_out_rows(tuple(samples), dist.get_rank() if world_size() > 1 else 0, device)


@lru_cache(2)  # most steps have the same shares, and for 100,000 rows it takes milliseconds
def _lay_out_rows(samples: tuple[int, ...], rank: int, device: torch.device) -> RowLayout:
    counts = torch.tensor(samples)
    before = counts.cumsum(0) - counts  # samples on the ranks before
    count, first = counts.repeat_interleave(2 * counts), before.repeat_interleave(2 * counts)  # (N,)
    within = torch.arange(2 * sum(samples)) - 2 * first  # position within the rank
    partner = 2 * first + (within + count) % (2 * count)
    firsts = (within < count).nonzero()[:, 0]
    sample = first + within % count
    start = int(before[rank])
    partner, sample, firsts = (on_device(values, device) for values in (partner, sample, firsts))
    return RowLayout(partner, sample, firsts, 2 * start, start)
