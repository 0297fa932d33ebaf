"""NT-Xent (Gazda et al. 2021, eq. 3 and 4; Chen et al. 2020, eq. 1) over the projections of all ranks.

With unit rows z, s_ij = z_i . z_j / tau, lse_i the log-sum-exp of row i over the kept j, and P(i) its positives, the
mean over the N rows of lse_i - mean over P(i) of s_ip has the gradient

    dL/dz_i = 1/(N tau) [ sum over kept j of (exp(s_ij - lse_i) + exp(s_ij - lse_j)) z_j
                        - sum over p in P(i) of (1/|P(i)| + 1/|P(p)|) z_p ]

so once z and a few numbers for each row are gathered, the backward pass needs no communication. `docs/loss.md` derives
it. An executor sums over all pairs except those of a row and its partner (the other view of the same sample), which
this module adds in float64.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from infra.ranks.devices import on_device
from infra.ranks.processes import world_size
from ssl_core.loss.agreement import GlobalBatch, Identities, agree, lay_out_rows
from ssl_core.loss.config import LossConfig
from ssl_core.loss.executor_choice import loss_executor
from ssl_core.loss.gather import gather_rows
from ssl_core.loss.pair_sums import LARGE, Keys, RowPairs, RowStats

__all__ = [
    "GlobalBatch",
    "Identities",
    "LossConfig",
    "LossReport",
    "contrast_pairs",
    "dense_nt_xent",
    "keys_of_rows",
    "nt_xent",
    "unless_unusable",
]

_BLOCK: Final = 2048  # rows processed in float64 at once


class LossReport(NamedTuple):
    """The loss of a global batch and how it is met: 0-dim tensors, equal on all ranks; only the loss has a gradient.

    Attributes:
        loss: mean of equation 4 over all N rows; NaN if a projection of any rank is not finite, or zero
        top1: share of the rows whose partner is the nearest of the rows that the loss compares them with
        top5: share of the rows whose partner is among the five nearest
        alignment: mean squared distance of a row and its partner
    """

    loss: Tensor
    top1: Tensor
    top5: Tensor
    alignment: Tensor


def nt_xent(first: Tensor, second: Tensor, loss: LossConfig, identities: Identities | None = None) -> LossReport:
    """Compute the loss of the global batch from the projections of all ranks' two views. Collective.

    The gradient is `world size` times the true one, because the engines (DDP, DeepSpeed) average gradients over ranks.

    Args:
        first: (n, d) first views of this rank's samples; n may differ between ranks, and be 0
        second: (n, d) second views of the same samples
        loss: settings of the loss
        identities: identities of the n samples; without them, all samples of a batch count as different

    Returns:
        The loss and its health.

    Raises:
        UserError: on every rank, as in `agree`
    """
    return contrast_pairs(first, second, loss, agree(len(first), loss, identities, projections=first))


def contrast_pairs(first: Tensor, second: Tensor, loss: LossConfig, batch: GlobalBatch) -> LossReport:
    """Compute the loss as `nt_xent` does, from what the ranks have agreed on; the host does not wait for the GPU."""
    assert first.shape == second.shape and first.dim() == 2, f"views of {first.shape} and {second.shape}"
    with torch.autocast(first.device.type, enabled=False):
        return LossReport(*_NTXent.apply(torch.cat([first, second]), loss, batch))


def dense_nt_xent(
    first: Tensor,
    second: Tensor,
    temperature: float,
    group: Tensor | None = None,
    positive: Tensor | None = None,
    *,
    decoupled: bool = False,
    small: Sequence[Tensor] = (),
) -> Tensor:
    """Compute the loss straight from its formula, in one process and by autograd: the reference for tests.

    Args:
        first: (n, d) first views
        second: (n, d) second views
        temperature: tau
        group: (2n,) as in `ssl_core.loss.pair_sums.Keys`; without keys, equation 4
        positive: (2n,), likewise
        decoupled: whether positives are left out of the denominator; every row needs a negative then
        small: (n, d) for each small view, see `ssl_core.loss.multi_crop`
    """
    z = F.normalize(torch.cat([first, second, *small]), dim=1, eps=0)
    rows = torch.arange(len(z), device=z.device)
    sample, large = rows % len(first), slice(2 * len(first))  # all rows are compared with the large views' only
    group = (sample if group is None else group)[sample]
    positive = (sample if positive is None else positive)[sample]
    others = rows[:, None] != rows[large]
    positives = others & (positive[:, None] == positive[large])
    kept = others & (positives | (group[:, None] != group[large]))
    similarities = z @ z[large].T / temperature
    kept &= ~positives | (not decoupled)
    lse = similarities.masked_fill(~kept, float("-inf")).logsumexp(dim=1)
    return (lse - (similarities * positives).sum(1) / positives.sum(1)).mean()


class _NTXent(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, projections: Tensor, loss: LossConfig, batch: GlobalBatch) -> tuple[Tensor, ...]:
        """Map this rank's projections (2n, d), first views before second ones, to the fields of a LossReport."""
        norms = torch.linalg.vector_norm(projections, dim=1, dtype=torch.float64)
        counts = [2 * count for count in batch.samples]
        layout = lay_out_rows(batch.samples, projections.device)
        keys = keys_of_rows(batch, layout.sample)
        all_rows = gather_rows(_unit(projections, norms), counts)  # (N, d)
        here = slice(layout.start, layout.start + len(projections))
        partner = layout.partner[here]

        executor = loss_executor(loss, all_rows, keyed=keys is not None)
        pairs = RowPairs(all_rows[here], all_rows, keys, here.start, partner, loss.temperature, loss.decoupled)
        mine = _row_values(executor.forward(pairs), _partner_distances(projections, norms), loss)
        mine = mine._replace(loss=unless_unusable(mine.loss, norms))
        values = _RowValues(*gather_rows(torch.stack(mine, dim=1), counts).unbind(1))

        mean = values.loss.mean()
        ctx.save_for_backward(
            projections, norms, all_rows, partner, values.lse, values.excess, values.positives, mean, *keys or ()
        )
        ctx.here, ctx.executor, ctx.loss = here, executor, loss
        report = LossReport(
            loss=mean,
            top1=(values.above < 1).double().mean(),
            top5=(values.above < 5).double().mean(),
            alignment=values.distance.mean(),
        )
        outputs = tuple(value.to(all_rows.dtype) for value in report)
        ctx.mark_non_differentiable(*outputs[1:])
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        """Evaluate the closed form above for this rank's rows, then backpropagate through their normalization."""
        projections, norms, all_rows, partner, lse, excess, positives, mean, *rest = ctx.saved_tensors
        keys = Keys(*rest) if rest else None
        here, loss = ctx.here, ctx.loss
        pairs = RowPairs(all_rows[here], all_rows, keys, here.start, partner, loss.temperature, loss.decoupled)
        pair_gradient = ctx.executor.backward(pairs, lse, positives)
        weight = -2 / positives[here]
        if not loss.decoupled:  # + exp(s - lse_i) + exp(s - lse_partner); near convergence only the excesses remain
            weight = torch.expm1(-excess[here]) + torch.expm1(-excess[partner]) + (2 + weight)
        scale = gradients[0].double() * world_size() / (len(all_rows) * loss.temperature)
        scale = scale + 0 * mean  # NaN if the loss is, so that no rank's gradient is finite
        result = pair_gradient if pair_gradient.dtype == projections.dtype else torch.empty_like(projections)
        for mine, others in _row_blocks(len(projections)):
            z, z_partner = projections[mine] / norms[mine, None], projections[others] / norms[others, None]
            toward = pair_gradient[mine] + weight[mine, None] * z_partner
            radial = (toward * z).sum(1, keepdim=True) * z
            result[mine] = (toward - radial) * (scale / norms[mine, None])
        return result, None, None


class _RowValues(NamedTuple):
    """The numbers that every rank gets for every row, (N,) float64 each.

    Attributes:
        lse: log of the sum of exp(s_ij) over all kept j
        excess: lse minus the similarity to the partner
        positives: as in RowStats; infinite for a row whose loss is 0 because it has nothing to be told apart from
        above: as in RowStats
        loss: the row's term in the mean
        distance: squared distance to the partner
    """

    lse: Tensor
    excess: Tensor
    positives: Tensor
    above: Tensor
    loss: Tensor
    distance: Tensor


def _row_values(stats: RowStats, distance: Tensor, loss: LossConfig) -> _RowValues:
    at_partner = (1 - distance / 2) / loss.temperature
    excess = stats.others - at_partner
    if not loss.decoupled:
        # log(1 + sum over the others of exp(s_ij - s_partner)): exact even if lse and s_partner agree in all digits.
        excess = torch.logaddexp(excess, torch.zeros_like(excess))
    # A decoupled batch of one group has no negatives. These values make its terms and all weights exactly 0.
    alone = excess.isneginf()
    positives = stats.positives.masked_fill(alone, torch.inf)
    value = excess + at_partner * (1 - 1 / positives) - stats.at_positives / positives
    return _RowValues(
        lse=(at_partner + excess).masked_fill(alone, LARGE),
        excess=excess,
        positives=positives,
        above=stats.above.double(),
        loss=value.masked_fill(alone, 0),
        distance=distance,
    )


def keys_of_rows(batch: GlobalBatch, sample: Tensor) -> Keys | None:
    """Return the keys of all rows, on the device of `sample`, (N,) the number of each row's sample."""
    return batch.keys and Keys(*(on_device(key, sample.device)[sample] for key in batch.keys))


def unless_unusable(values: Tensor, norms: Tensor) -> Tensor:
    """Return the values of rows (n,), but NaN for rows that are not finite, or zero and without a direction."""
    return torch.where(norms.isfinite() & (norms > 0), values, torch.nan)


def _unit(projections: Tensor, norms: Tensor) -> Tensor:
    """Return the rows divided by their norms, in fp32 (fp64 for fp64 rows)."""
    z = torch.empty_like(projections, dtype=torch.promote_types(projections.dtype, torch.float32))
    for mine, _ in _row_blocks(len(z)):
        z[mine] = projections[mine] / norms[mine, None]
    return z


def _partner_distances(projections: Tensor, norms: Tensor) -> Tensor:
    """Return the squared distance of each unit row to its partner, (2n,) float64, from unrounded unit rows."""
    distances = torch.empty_like(norms)
    for mine, others in _row_blocks(len(norms)):
        difference = projections[mine] / norms[mine, None] - projections[others] / norms[others, None]
        distances[mine] = difference.square_().sum(1)
    return distances


def _row_blocks(count: int) -> Iterator[tuple[slice, slice]]:
    """Cut this rank's rows into blocks for float64: yield the positions of rows and of their partners."""
    half = count // 2
    for start in range(0, half, _BLOCK):
        first = slice(start, min(start + _BLOCK, half))
        second = slice(half + first.start, half + first.stop)
        yield first, second
        yield second, first
