"""The gradient of the loss over the whole global batch, with the activations of one micro-batch in memory.

Gao et al. 2021, "Scaling deep contrastive learning batch size under memory limited setup". The loss couples all
samples, but only through their projections z. So every rank cuts its share into P parts and

1. projects one part after the other, and keeps the activations of the last part only;
2. computes the loss over the projections of all ranks, and dL/dz;
3. projects each part again and adds the gradient of sum(z dL/dz), that is (dz/dw)^T dL/dz, to that of the parameters w.

The result is the exact gradient of the loss; the price is a second forward pass over P - 1 of the P parts. With one
part it is the ordinary step.

P changes one thing: batch norm takes the statistics of one part, over all ranks. Part p holds the samples p, p + P, ...
of a rank's share. So where P divides the shares, the parts of all ranks together are the same sets of samples at every
world size, and the gradient stays the same too.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from infra.ranks.devices import on_device
from ssl_core.loss.multi_crop import contrast
from ssl_core.loss.ntxent import GlobalBatch, LossConfig, LossReport
from ssl_core.model.batch_norm import running_statistics_kept


class Projector(ABC):
    """An encoder whose gradients are averaged over the ranks: the part of an engine that this module needs."""

    device: torch.device
    module: nn.Module

    @abstractmethod
    def project(self, images: Sequence[Tensor], counted: Tensor | None, *, last: bool) -> Tensor:
        """Return the projections (M, d) of images (m, 1, H, W) of each size, for one `backpropagate` with this `last`.

        `images` and `counted` are the arguments of `module`: first the large images, then the small ones if there are
        any; which samples count.
        """

    @abstractmethod
    def backpropagate(self, value: Tensor, *, last: bool) -> None:
        """Add a scalar's gradient to those of the parameters; the `last` call of a step averages them over ranks."""


class Contrast(NamedTuple):
    """The loss of a global batch. report: detached, with its health; projections: (views, n, d) of this rank."""

    report: LossReport
    projections: Tensor


def contrast_gradients(
    projector: Projector,
    views: Sequence[Tensor],
    batch: GlobalBatch,
    loss: LossConfig,
    micro_batches: int = 1,
    counted: Tensor | None = None,
) -> Contrast:
    """Add the gradient of the loss over all ranks' samples to the parameters' gradients. Collective.

    Args:
        projector: the encoder
        views: two large views of this rank's share, then any number of small ones, (n, 1, H, W) each; n may differ
            between ranks, and be 0
        batch: what the ranks have agreed on
        loss: settings of the loss
        micro_batches: P, the same on all ranks; fewer are used if a part would be empty on every rank
        counted: (n,) on the CPU, which samples count if not all do; n is the same on all ranks then
    """
    samples = len(views[0])
    parts = min(micro_batches, max(batch.samples) if counted is None else samples)
    counted_here = None if counted is None else on_device(counted, views[0].device)

    def images_of(part: int) -> list[Tensor]:
        """Return both large views of a part's m samples, (2m, 1, H, W), and the k small ones, (km, 1, h, w)."""
        return [
            torch.cat([view[part::parts] for view in same_size]) for same_size in (views[:2], views[2:]) if same_size
        ]

    def counted_of(part: int) -> Tensor | None:
        return None if counted_here is None else counted_here[part::parts]

    with torch.no_grad():
        pieces = [projector.module(*images_of(part), counted=counted_of(part)) for part in range(parts - 1)]
    # Memory must hold the activations of one part anyway, so the last part is projected only once.
    kept = projector.project(images_of(parts - 1), counted_of(parts - 1), last=parts == 1)
    z = _in_order([*pieces, kept.detach()], len(views), samples).requires_grad_()  # (views, n, d)
    contrasted = z
    if counted is not None:
        contrasted = z.index_select(1, on_device(counted.nonzero()[:, 0], z.device))
    report = contrast(contrasted, loss, batch)
    report.loss.backward()  # type: ignore[no-untyped-call]
    assert z.grad is not None, "the loss depends on the projections"
    dz = z.grad

    projector.backpropagate(_product(kept, dz[:, parts - 1 :: parts]), last=parts == 1)
    del kept
    with running_statistics_kept(projector.module):  # the first pass has already updated them
        for part in range(parts - 1):
            last = part == parts - 2
            projections = projector.project(images_of(part), counted_of(part), last=last)
            projector.backpropagate(_product(projections, dz[:, part::parts]), last=last)
    return Contrast(report._replace(loss=report.loss.detach()), contrasted.detach())


def _in_order(pieces: Sequence[Tensor], views: int, samples: int) -> Tensor:
    """Merge the parts' projections, (views m, d) each, in the order of samples: (views, n, d), in fp32 or fp64."""
    dtype = torch.promote_types(pieces[0].dtype, torch.float32)
    z = torch.empty(views, samples, pieces[0].shape[1], dtype=dtype, device=pieces[0].device)
    for part, piece in enumerate(pieces):
        into = z[:, part :: len(pieces)]
        into.copy_(piece.view(into.shape))
    return z


def _product(projections: Tensor, dz: Tensor) -> Tensor:
    """Return sum(z dL/dz), whose gradient with respect to z is dL/dz; (views m, d) and (views, m, d)."""
    return (projections.to(dz.dtype) * dz.reshape(projections.shape)).sum()
