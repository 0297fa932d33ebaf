"""The loss over two large views and any number of small ones of each sample (multi-crop, Caron et al. 2020).

Every row, of a large view or a small one, is contrasted with the rows of all large views; the loss is the mean over all
rows. So it is the mean of NT-Xent over the large views and of the small rows' losses (`small_rows`), weighted by their
numbers, and without small views it is NT-Xent.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from infra.ranks.devices import on_device
from infra.ranks.processes import world_size
from ssl_core.loss.agreement import GlobalBatch, RowLayout, lay_out_rows
from ssl_core.loss.config import LossConfig
from ssl_core.loss.gather import gather_rows
from ssl_core.loss.ntxent import LossReport, contrast_pairs, keys_of_rows, unless_unusable
from ssl_core.loss.small_rows import Rows, SmallStats, forward, large_gradient, small_gradient


def contrast(z: Tensor, loss: LossConfig, batch: GlobalBatch) -> LossReport:
    """Compute the loss of the global batch from the projections of all ranks' views. Collective.

    Args:
        z: (2 + k, n, d) the projections of this rank's n samples: two large views, then k small ones; n may differ
            between ranks, and be 0
        loss: settings of the loss
        batch: what the ranks have agreed on

    Returns:
        The loss, whose gradient is `world size` times the true one as in `nt_xent`, and the health of the large views.
    """
    report = contrast_pairs(z[0], z[1], loss, batch)
    if len(z) == 2:
        return report
    with torch.autocast(z.device.type, enabled=False):
        of_small: Tensor = _SmallViews.apply(z[:2], z[2:], loss, batch)
    return report._replace(loss=(2 * report.loss + (len(z) - 2) * of_small) / len(z))


class _SmallViews(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, large: Tensor, small: Tensor, loss: LossConfig, batch: GlobalBatch) -> Tensor:
        """Map this rank's projections, (2, n, d) and (k, n, d), to the mean loss of all ranks' small rows."""
        count, n, _ = small.shape
        projections = torch.cat([large, small]).flatten(0, 1)
        norms = torch.linalg.vector_norm(projections, dim=1, dtype=torch.float64)
        samples = batch.samples
        layout = lay_out_rows(samples, small.device)
        unit = (projections / norms[:, None]).to(torch.promote_types(projections.dtype, torch.float32))
        of_small = [count * share for share in samples]
        all_large = gather_rows(unit[: 2 * n], [2 * share for share in samples])
        all_small = gather_rows(unit[2 * n :], of_small)
        keys = keys_of_rows(batch, layout.sample)
        group, positive = (layout.sample, layout.sample) if keys is None else keys
        first = layout.firsts[_samples_of_small_rows(samples, count, small.device)]
        large_rows, small_rows = Rows(all_large, group, positive), Rows(all_small, group[first], positive[first])

        here = _here(layout, n, count)
        mine = forward(small_rows.part(here[1]), large_rows, loss)
        mine = mine._replace(loss=unless_unusable(mine.loss, norms[2 * n :]))
        stats = SmallStats(*gather_rows(torch.stack(mine, dim=1), of_small).unbind(1))
        mean = stats.loss.mean()
        ctx.save_for_backward(projections, norms, mean, *large_rows, *small_rows, *stats)
        ctx.here, ctx.loss, ctx.shapes = here, loss, (large.shape, small.shape)
        return mean.to(all_large.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None]:
        """Evaluate the closed form for this rank's rows, then backpropagate through their normalization."""
        projections, norms, mean, *rest = ctx.saved_tensors
        large, small, stats = Rows(*rest[:3]), Rows(*rest[3:6]), SmallStats(*rest[6:])
        (my_large, my_small), loss = ctx.here, ctx.loss
        of_mine = SmallStats(*(values[my_small] for values in stats))
        toward = torch.cat(
            [
                large_gradient(small, large.part(my_large), stats, loss),
                small_gradient(small.part(my_small), large, of_mine, loss),
            ]
        )
        scale = gradients[0].double() * world_size() / (len(small.z) * loss.temperature)
        scale = scale + 0 * mean  # NaN if the loss is, so that no rank's gradient is finite
        z = projections / norms[:, None]
        result = (toward - (toward * z).sum(1, keepdim=True) * z) * (scale / norms[:, None])
        split = 2 * ctx.shapes[0][1]
        of_large, of_small = result[:split].view(ctx.shapes[0]), result[split:].view(ctx.shapes[1])
        return of_large.to(projections.dtype), of_small.to(projections.dtype), None, None


def _here(layout: RowLayout, n: int, count: int) -> tuple[slice, slice]:
    """Return the positions of this rank's large rows and of its small rows among those of all ranks."""
    start = count * layout.first_sample
    return slice(layout.start, layout.start + 2 * n), slice(start, start + count * n)


def _samples_of_small_rows(samples: Sequence[int], count: int, device: torch.device) -> Tensor:
    """Return the number of each small row's sample: rank after rank, view after view."""
    starts = [sum(samples[:rank]) for rank in range(len(samples))]
    parts = [torch.arange(start, start + share).repeat(count) for start, share in zip(starts, samples, strict=True)]
    return on_device(torch.cat(parts), device)
