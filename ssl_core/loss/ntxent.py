"""NT-Xent (Gazda et al. 2021, eq. 3 and 4; Chen et al. 2020, eq. 1) over the projections of all ranks.

With unit rows z, s_ij = z_i . z_j / tau, lse_i the log-sum-exp of row i over the kept j, and P(i) its positives, the
mean over the N rows of lse_i - mean over P(i) of s_ip has the gradient

    dL/dz_i = 1/(N tau) [ sum over kept j of (exp(s_ij - lse_i) + exp(s_ij - lse_j)) z_j
                        - sum over p in P(i) of (1/|P(i)| + 1/|P(p)|) z_p ]

so once a few numbers a row are gathered beside z, the backward needs no communication. `docs/loss.md` derives it. An
executor sums over all pairs but those of a row and its own view, which are added here, in float64.
"""

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Final, Literal, NamedTuple, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from infra.errors import require
from infra.processes import world_size
from ssl_core.loss import health
from ssl_core.loss.agreement import NonFinite, check_ranks_agree, row_positions
from ssl_core.loss.gather import gather_rows
from ssl_core.loss.rows import Executor, Keys, RowStats

__all__ = ["Identities", "LossConfig", "LossReport", "NonFinite", "dense_nt_xent", "nt_xent"]

# Up to so many global rows `auto` makes the whole matrix: in float64 it then takes as long as tiles do in fp32.
DENSE_UP_TO: Final = 256
_BLOCK: Final = 2048  # rows that are worked on in float64 at once


@dataclass(frozen=True)
class LossConfig:
    """NT-Xent.

    Args:
        temperature: tau, by which cosine similarities are divided; the paper's is 0.5
        same_patient: what another image of the same patient is to an image: a negative (the paper's loss), masked
            (neither), or positive when it is of the same study and masked otherwise
        executor: how the sums over all pairs are made: dense, tiled, triton (GPUs), or auto, which chooses by device
            and size; all compute the same
    """

    temperature: float = 0.5
    same_patient: Literal["negative", "masked", "positive"] = "negative"
    executor: Literal["auto", "dense", "tiled", "triton"] = "auto"

    def __post_init__(self) -> None:
        require(
            math.isfinite(self.temperature) and self.temperature > 0,
            f"loss.temperature={self.temperature} must be positive; the paper uses 0.5",
        )


class Identities(NamedTuple):
    """Whose images a rank's samples are: sample, patient and study, (n,) int64 views of the 64-bit identities."""

    sample: Tensor
    patient: Tensor
    study: Tensor


class LossReport(NamedTuple):
    """What the loss says of a global batch: 0-dim tensors, equal on all ranks; only the loss is differentiable.

    loss: mean of equation 4 over all N rows. top1, top5: share of the rows whose own second view is their nearest, or
    among their five nearest, of the rows that the loss compares them with. alignment: mean squared distance of a row
    and its own second view. uniformity, deviation: of the projections, see `ssl_core.loss.health`.
    """

    loss: Tensor
    top1: Tensor
    top5: Tensor
    alignment: Tensor
    uniformity: Tensor
    deviation: Tensor


def nt_xent(first: Tensor, second: Tensor, loss: LossConfig, identities: Identities | None = None) -> LossReport:
    """Contrast the two views' projections, row k of each being sample k, against those of all ranks.

    first, second: (n, d) each, this rank's; n may differ between ranks, and be 0. identities: those of the n samples;
    without them, two samples of a batch are taken for different ones. The loss is that of the global batch; the
    gradient is `world size` times its true one, since the engines (DDP, DeepSpeed) average gradients over ranks.

    Raises on every rank alike: UserError when the global batch has fewer than two samples, when ranks differ in d or
    dtype, and for a same_patient other than `negative` without identities; NonFinite when any rank's projections are
    not; RunFailed when one is zero and has no direction.
    """
    assert first.shape == second.shape and first.dim() == 2, f"views of {first.shape} and {second.shape}"
    assert identities is None or all(len(ids) == len(first) for ids in identities), "one identity a sample"
    with torch.autocast(first.device.type, enabled=False):
        return LossReport(*_NTXent.apply(torch.cat([first, second]), loss, identities))


def dense_nt_xent(
    first: Tensor, second: Tensor, temperature: float, group: Tensor | None = None, positive: Tensor | None = None
) -> Tensor:
    """The loss as it is written, in one process and by autograd: what all other forms are tested against.

    group, positive: (2n,) as in `ssl_core.loss.rows.Keys`; without them, equation 4.
    """
    z = F.normalize(torch.cat([first, second]), dim=1, eps=0)
    rows = torch.arange(len(z), device=z.device)
    group = rows if group is None else group
    positive = rows % len(first) if positive is None else positive
    others = rows[:, None] != rows
    positives = others & (positive[:, None] == positive)
    kept = others & (positives | (group[:, None] != group))
    similarities = z @ z.T / temperature
    lse = similarities.masked_fill(~kept, float("-inf")).logsumexp(dim=1)
    return (lse - (similarities * positives).sum(1) / positives.sum(1)).mean()


class _NTXent(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, projections: Tensor, loss: LossConfig, identities: Identities | None) -> tuple[Tensor, ...]:
        """Take this rank's projections (2n, d), first views before second ones; returns the fields of a Contrast."""
        norms = torch.linalg.vector_norm(projections, dim=1, dtype=torch.float64)
        samples = check_ranks_agree(projections, norms, identities is not None, loss.same_patient)
        counts = [2 * count for count in samples]
        places = row_positions(samples, projections.device)
        keys = _keys(loss, identities, samples, places.sample)
        everyone = gather_rows(_unit(projections, norms), counts)  # (N, d)
        here = slice(places.start, places.start + len(projections))
        rows, own = everyone[here], places.own[here]

        make = _executor(loss.executor, everyone)
        stats = make.forward(rows, everyone, keys, here.start, own, loss.temperature)
        mine = _row_values(stats, _own_distances(projections, norms), loss.temperature)
        values = _RowValues(*gather_rows(torch.stack(mine, dim=1), counts).unbind(1))

        ctx.save_for_backward(
            projections, norms, everyone, own, values.lse, values.excess, values.positives, *keys or ()
        )
        ctx.here, ctx.make, ctx.temperature = here, make, loss.temperature
        firsts = (places.own > torch.arange(len(everyone), device=own.device)).nonzero()[:, 0]
        contrast = LossReport(
            loss=values.loss.mean(),
            top1=(values.above < 1).double().mean(),
            top5=(values.above < 5).double().mean(),
            alignment=values.distance.mean(),
            uniformity=health.uniformity(everyone, firsts),
            deviation=health.deviation(everyone),
        )
        outputs = tuple(value.to(everyone.dtype) for value in contrast)
        ctx.mark_non_differentiable(*outputs[1:])
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        """Evaluate the closed form above for this rank's rows, then go through their normalisation."""
        projections, norms, everyone, own, lse, excess, positives, *rest = ctx.saved_tensors
        keys = Keys(*rest) if rest else None
        rows, here = everyone[ctx.here], ctx.here
        pull = ctx.make.backward(rows, everyone, keys, here.start, own, ctx.temperature, lse, positives)
        # exp(s - lse_i) + exp(s - lse_own) - 2/|P|, of which near convergence only the excesses remain
        weight = torch.expm1(-excess[here]) + torch.expm1(-excess[own]) + (2 - 2 / positives[here])
        scale = gradients[0].double() * world_size() / (len(everyone) * ctx.temperature)
        result = pull if pull.dtype == projections.dtype else torch.empty_like(projections)
        for mine, others in _views(len(projections)):
            z, z_own = projections[mine] / norms[mine, None], projections[others] / norms[others, None]
            toward = pull[mine] + weight[mine, None] * z_own
            radial = (toward * z).sum(1, keepdim=True) * z
            result[mine] = (toward - radial) * (scale / norms[mine, None])
        return result, None, None


class _RowValues(NamedTuple):
    """What every rank learns of every row, (N,) float64 each; positives and above are those of RowStats.

    lse: log of the sum of exp(s_ij) over all kept j. excess: lse less the similarity to the own view. loss: the row's
    share in the mean. distance: squared, to the own view.
    """

    lse: Tensor
    excess: Tensor
    positives: Tensor
    above: Tensor
    loss: Tensor
    distance: Tensor


def _row_values(stats: RowStats, distance: Tensor, temperature: float) -> _RowValues:
    at_own = (1 - distance / 2) / temperature
    # log(1 + sum over the others of exp(s_ij - s_own)): exact also where lse and s_own agree to all digits.
    excess = torch.logaddexp(stats.others - at_own, torch.zeros_like(at_own))
    return _RowValues(
        lse=at_own + excess,
        excess=excess,
        positives=stats.positives,
        above=stats.above.double(),
        loss=excess + at_own * (1 - 1 / stats.positives) - stats.at_positives / stats.positives,
        distance=distance,
    )


def _keys(loss: LossConfig, identities: Identities | None, samples: Sequence[int], sample: Tensor) -> Keys | None:
    """Return the keys of all rows, or None where no two samples have anything in common.

    sample: (N,) the number of each row's sample. The other views of a sample that stands twice in a batch are no
    negatives in any case.
    """
    if identities is None:
        return None
    kinds = {"negative": [identities.sample], "masked": [identities.patient], "positive": identities[1:]}
    ids = gather_rows(torch.stack([*kinds[loss.same_patient]], dim=1).to(sample.device), samples)  # (B, 1 or 2)
    if len(torch.unique(ids[:, 0])) == len(ids):
        return None
    ids = ids[sample]
    return Keys(group=ids[:, 0].contiguous(), positive=ids[:, 1].contiguous() if ids.shape[1] > 1 else sample)


def _unit(projections: Tensor, norms: Tensor) -> Tensor:
    """Return the rows divided by their norms, in fp32 (fp64 where they are)."""
    z = torch.empty_like(projections, dtype=torch.promote_types(projections.dtype, torch.float32))
    for mine, _ in _views(len(z)):
        z[mine] = projections[mine] / norms[mine, None]
    return z


def _own_distances(projections: Tensor, norms: Tensor) -> Tensor:
    """Return the squared distance of each unit row to its own second view, (2n,) float64, from unrounded unit rows."""
    distances = torch.empty_like(norms)
    for mine, others in _views(len(norms)):
        apart = projections[mine] / norms[mine, None] - projections[others] / norms[others, None]
        distances[mine] = apart.square_().sum(1)
    return distances


def _views(count: int) -> Iterator[tuple[slice, slice]]:
    """Cut this rank's rows into blocks to be worked on in float64: the places of rows, and of their second views."""
    half = count // 2
    for start in range(0, half, _BLOCK):
        first = slice(start, min(start + _BLOCK, half))
        second = slice(half + first.start, half + first.stop)
        yield first, second
        yield second, first


def _executor(name: str, everyone: Tensor) -> Executor:
    """Return the module that makes the sums; raises UserError for triton where it cannot be had."""
    if name == "auto":
        name = "dense" if len(everyone) <= DENSE_UP_TO else "tiled"
        if everyone.is_cuda and everyone.dtype == torch.float32 and find_spec("triton"):
            kernels = import_module("ssl_core.loss.kernels")
            name = "triton" if everyone.shape[1] <= kernels.LARGEST_D else name
    if name == "triton":
        interpreted = os.environ.get("TRITON_INTERPRET") == "1"
        require(
            find_spec("triton") is not None and (everyone.is_cuda or interpreted),
            "loss.executor=triton needs a GPU and the package triton; set loss.executor=auto",
        )
        name = "kernels"
    return cast(Executor, import_module(f"ssl_core.loss.{name}"))
