"""The gradient of the loss over the whole global batch, with the activations of one micro-batch in memory.

Gao et al. 2021, "Scaling deep contrastive learning batch size under memory limited setup". The loss couples all
samples, but only through their projections z. So every rank cuts its share into P parts and

1. projects the parts one after the other without keeping what their gradient needs, but for the last;
2. evaluates the loss over the projections of all ranks, and dL/dz;
3. projects each part again and adds the gradient of sum(z dL/dz), that is (dz/dw)^T dL/dz, to the parameters' own.

The gradient is that of the loss, not an approximation; the price is a second forward pass over P - 1 of P parts. With
one part it is the ordinary step.

Batch norm takes the statistics of a part, over all ranks; that is the one thing that P changes. Part p holds the
samples p, p + P, ... of a rank's share. So where P divides the shares, the parts of all ranks together are the same
sets of samples at every world size, and the gradient stays the same too.
"""

from collections.abc import Sequence
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from infra.errors import require
from infra.processes import world_size
from ssl_core.loss.ntxent import Identities, LossConfig, LossReport, nt_xent
from ssl_core.model.batch_norm import running_statistics_kept


class Projector(Protocol):
    """An encoder whose gradients are averaged over the ranks."""

    device: torch.device
    module: nn.Module

    def project(self, images: Tensor, *, last: bool) -> Tensor:
        """Return the projections (m, d) of images (m, 1, H, W) for one `backpropagate`; `last` as there."""

    def backpropagate(self, value: Tensor, *, last: bool) -> None:
        """Add a scalar's gradient to the parameters'; with the `last` one of a step they are averaged over ranks."""


def contrast_gradients(
    projector: Projector,
    views: Sequence[Tensor],
    identities: Identities | None,
    loss: LossConfig,
    micro_batches: int = 1,
) -> LossReport:
    """Leave the gradient of the loss over all ranks' samples in the parameters, and return what the loss says.

    views: the two views of this rank's share, (n, 1, H, W) each; n may differ between ranks, and be 0. micro_batches:
    P, the same on all ranks; there are fewer where a part would be empty on every rank. Collective. Raises UserError
    on every rank when there are fewer than two samples in all, and as `nt_xent` does.
    """
    samples = len(views[0])
    parts = min(micro_batches, _largest_share(samples, projector.device))

    def images_of(part: int) -> Tensor:
        """Return the two views of a part's m samples, (2m, 1, H, W)."""
        return torch.cat([view[part::parts] for view in views])

    with torch.no_grad():
        pieces = [projector.module(images_of(part)) for part in range(parts - 1)]
    # One micro-batch's activations have to be held anyway, so the last part is projected only once.
    kept = projector.project(images_of(parts - 1), last=parts == 1)
    z = _in_order([*pieces, kept.detach()], samples).requires_grad_()  # (2, n, d)
    contrast = nt_xent(z[0], z[1], loss, identities)
    contrast.loss.backward()  # type: ignore[no-untyped-call]
    assert z.grad is not None, "the loss depends on the projections"
    dz = z.grad

    projector.backpropagate(_product(kept, dz[:, parts - 1 :: parts]), last=parts == 1)
    del kept
    with running_statistics_kept(projector.module):  # each part has entered them above
        for part in range(parts - 1):
            last = part == parts - 2
            projections = projector.project(images_of(part), last=last)
            projector.backpropagate(_product(projections, dz[:, part::parts]), last=last)
    return contrast._replace(loss=contrast.loss.detach())


def _largest_share(samples: int, device: torch.device) -> int:
    """Return the most samples that a rank holds; raises UserError on every rank when there are too few in all."""
    shares = [samples]
    if world_size() > 1:
        gathered = [torch.empty(1, dtype=torch.int64, device=device) for _ in range(world_size())]
        dist.all_gather(gathered, torch.tensor([samples], device=device))
        shares = torch.cat(gathered).tolist()
    require(
        sum(shares) >= 2,
        f"the global batch holds {sum(shares)} readable samples, but a contrast needs two or more; "
        "see which samples were masked, and raise data.global_batch",
    )
    return max(shares)


def _in_order(pieces: Sequence[Tensor], samples: int) -> Tensor:
    """Put the parts' projections, (2m, d) each, into the order of the samples: (2, n, d), in fp32 or fp64."""
    dtype = torch.promote_types(pieces[0].dtype, torch.float32)
    z = torch.empty(2, samples, pieces[0].shape[1], dtype=dtype, device=pieces[0].device)
    for part, piece in enumerate(pieces):
        into = z[:, part :: len(pieces)]
        into.copy_(piece.view(into.shape))
    return z


def _product(projections: Tensor, dz: Tensor) -> Tensor:
    """Return sum(z dL/dz), whose gradient by z is dL/dz; (2m, d) and (2, m, d)."""
    return (projections.to(dz.dtype) * dz.reshape(projections.shape)).sum()
