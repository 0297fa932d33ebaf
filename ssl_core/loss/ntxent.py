"""NT-Xent (Gazda et al. 2021, eq. 3 and 4; Chen et al. 2020, eq. 1) over the projections of all ranks.

With unit rows z, s_ij = z_i . z_j / tau and lse_i the log-sum-exp of row i without its diagonal, the mean loss over
the N rows of the global batch has the gradient

    dL/dz_i = 1/(N tau) [ sum_{j != i} (exp(s_ij - lse_i) + exp(s_ij - lse_j)) z_j - 2 z_p(i) ]

so once the N numbers lse are gathered beside z, the backward needs no communication.
"""

from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from infra.errors import require
from infra.processes import world_size
from ssl_core.loss.gather import gather_rows


class Contrast(NamedTuple):
    """What the loss says of a global batch, equal on all ranks.

    loss: mean of equation 4 over all N rows. top1: share of the rows whose positive is their nearest row.
    """

    loss: Tensor
    top1: Tensor


def nt_xent(first: Tensor, second: Tensor, temperature: float) -> Contrast:
    """Contrast the two views' projections, row k of each being sample k, against those of all ranks.

    first, second: (n, d) each, this rank's; n may differ between ranks. The loss is that of the global batch; the
    gradient is `world size` times its true one, since the engines (DDP, DeepSpeed) average gradients over ranks.
    Raises UserError for temperature <= 0, for fewer than two samples in the global batch, and when ranks differ in d.
    """
    require(temperature > 0, f"loss.temperature={temperature} must be positive; the paper uses 0.5")
    with torch.autocast(first.device.type, enabled=False):
        z = torch.cat([first, second])
        z = F.normalize(z if z.dtype == torch.float64 else z.float(), dim=1)
        return Contrast(*_NTXent.apply(z, temperature))


def dense_nt_xent(first: Tensor, second: Tensor, temperature: float) -> Tensor:
    """Equation 4 as it is written, in one process and by autograd: what the other forms are tested against."""
    z = F.normalize(torch.cat([first, second]), dim=1)
    similarities = (z @ z.T / temperature).fill_diagonal_(float("-inf"))
    return F.cross_entropy(similarities, torch.arange(len(z), device=z.device).roll(len(first)))


class _NTXent(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        """Take this rank's unit rows (2n, d), first views before second ones."""
        everyone, start = gather_rows(z)  # (N, d)
        rows = torch.arange(len(z), device=z.device)
        positives = start + rows.roll(len(z) // 2)
        require(len(everyone) > 2, "one pair alone has no negatives; the global batch needs two samples or more")
        similarities = z @ everyone.T / temperature  # (2n, N)
        similarities[rows, start + rows] = float("-inf")
        lse = similarities.logsumexp(dim=1)
        at_positive = similarities[rows, positives]
        nearest = similarities.max(dim=1).values
        sums = torch.stack([(lse - at_positive).sum(), (at_positive >= nearest).sum().to(z.dtype)])
        if world_size() > 1:
            dist.all_reduce(sums)
        lse_everyone, _ = gather_rows(lse)
        ctx.save_for_backward(everyone, similarities, lse, lse_everyone, positives)
        ctx.temperature = temperature
        loss, top1 = sums / len(everyone)
        ctx.mark_non_differentiable(top1)
        return loss, top1

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        """Evaluate the closed form above for this rank's rows."""
        everyone, similarities, lse, lse_everyone, positives = ctx.saved_tensors
        pull = torch.exp(similarities - lse[:, None]) + torch.exp(similarities - lse_everyone)
        dz = pull @ everyone - 2 * everyone[positives]
        return gradients[0] * dz * (world_size() / (len(everyone) * ctx.temperature)), None
