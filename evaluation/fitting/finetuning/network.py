"""The network that is fine-tuned: a backbone with a linear head."""

from collections.abc import Iterable
from copy import deepcopy
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from infra.arrays import Float64, UInt64
from infra.ranks.devices import has_bf16_matrix_units
from ssl_core.views.batches import Batch


class LinearHead(NamedTuple):
    """Weights (outputs, D) and biases (outputs,) of a linear head."""

    weight: Float64
    bias: Float64


class FinetunedNetwork(nn.Module):
    """A copy of a backbone with a linear head that starts at zero: (N, 1, H, W) -> (N, outputs), the logits.

    Training uses bf16 where the device computes it faster, evaluation fp32 as frozen features do; the head is always
    fp32.
    """

    def __init__(self, backbone: nn.Module, outputs: int, size_px: int) -> None:
        """Copy the backbone to the CPU.

        Args:
            backbone: maps images (n, 1, size, size) to features (n, D); stays unchanged
            outputs: number of outputs
            size_px: sides of the images
        """
        super().__init__()
        self.backbone = deepcopy(backbone).cpu().requires_grad_(True).eval()
        with torch.inference_mode():
            feature_size = self.backbone(torch.zeros(1, 1, size_px, size_px)).shape[1]
        # Without the usual initialization, which would draw from the global random state.
        self.head = nn.Linear(feature_size, outputs, device="meta").to_empty(device="cpu")
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    @torch.no_grad()
    def start_from(self, head: LinearHead) -> None:
        """Copy a head; outputs beyond its own stay at zero."""
        count = len(head.bias)
        self.head.weight[:count].copy_(torch.from_numpy(head.weight))
        self.head.bias[:count].copy_(torch.from_numpy(head.bias))

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of a batch of images."""
        images = images.contiguous(memory_format=torch.channels_last)
        with torch.autocast(
            images.device.type, torch.bfloat16, enabled=self.training and has_bf16_matrix_units(images.device)
        ):
            features = self.backbone(images)
        logits: Tensor = self.head(features.float())
        return logits


@torch.inference_mode()
def logits_of(network: FinetunedNetwork, batches: Iterable[Batch]) -> tuple[UInt64, Float64]:
    """Return the ids (n,) of the samples in the batches, and their logits (n, outputs), the means over the views."""
    network.eval()
    ids, logits = [], []
    for batch in batches:
        ids.append(batch.rows["sample"])
        of_views = torch.stack([network(view).double() for view in batch.views])
        logits.append(of_views.mean(dim=0).cpu().numpy())
    return np.concatenate(ids), np.concatenate(logits)
