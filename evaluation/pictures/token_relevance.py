"""Relevance of a vision transformer's patches (Chefer, Gur and Wolf 2021, "Generic Attention-model Explainability")."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_MOST_OTHERS: Final = 16  # tokens beside the patches: a class token and registers


class TokenRelevance:
    """Attention weighted by its gradient and followed through all blocks, from the features back to the patches.

    Attributes:
        method: what is computed, as a sentence
        cells: height and width of the maps
    """

    method = (
        "Gradient-weighted attention, followed through all blocks (Chefer et al. 2021), through the backbone and the "
        "classifier."
    )

    def __init__(self, backbone: nn.Module, cells: tuple[int, int]) -> None:
        """Explain features (n, D) of a backbone that cuts images into *cells patches."""
        self._backbone = backbone
        self.cells = cells

    def evidence(self, images: Tensor, directions: Tensor) -> Tensor:
        """Return the relevance (n, h, w), at least 0, of the patches for the scores; arguments as in `GradCam`."""
        attention, features = _attention(self._backbone, images)
        scores = (features * directions).sum()
        gradients = torch.autograd.grad(scores, attention)
        tokens = attention[0].shape[-1]
        relevance = torch.eye(tokens, device=images.device).repeat(len(images), 1, 1)
        for weights, gradient in zip(attention, gradients, strict=True):
            relevance = relevance + (weights * gradient).clamp(min=0).mean(dim=1).detach() @ relevance
        # The tokens that the features are made of: the class token, or all patches.
        is_read = gradients[-1].abs().amax(dim=(1, 3)) > 0
        is_read |= ~is_read.any(dim=1, keepdim=True)
        of_features = (relevance * is_read[:, :, None]).sum(dim=1) / is_read.sum(dim=1, keepdim=True)
        height, width = self.cells
        return of_features[:, -height * width :].view(-1, height, width)


def patch_cells(backbone: nn.Module, images: Tensor) -> tuple[int, int] | None:
    """Return in how many rows and columns of patches a vision transformer cuts square images.

    Args:
        backbone: the network
        images: (n, 1, size, size), of which only the size matters

    Returns:
        None if the network has no attention among all tokens of an image that are the patches behind a few others.
    """
    attention, _ = _attention(backbone, images)
    patches = [layer for layer in backbone.modules() if isinstance(layer, nn.Conv2d) and _cuts(layer)]
    if not attention or not patches:
        return None
    side, tokens = images.shape[-1] // patches[0].kernel_size[0], attention[0].shape[-1]
    fits = all(weights.shape[0] == len(images) and weights.shape[2:] == (tokens, tokens) for weights in attention)
    return (side, side) if fits and 0 <= tokens - side**2 <= _MOST_OTHERS else None


def _attention(backbone: nn.Module, images: Tensor) -> tuple[list[Tensor], Tensor]:
    """Return the attention of each layer, and the features that it leads to, with the graph between them."""
    # Without a gradient, torchvision's layers take a way that does not call the function to record.
    with torch.enable_grad(), recorded_attention() as attention:
        features = backbone(images.detach().requires_grad_())
    return attention, features


def _cuts(layer: nn.Conv2d) -> bool:
    """Return whether a convolution cuts an image into patches."""
    return layer.kernel_size == layer.stride and layer.kernel_size[0] > 1


@contextmanager
def recorded_attention() -> Iterator[list[Tensor]]:
    """Collect the attention (n, heads, queries, keys) of each layer that runs in the block, in order.

    torchvision, timm and transformers all attend by this function of torch, which does not return its weights. So it is
    replaced by its definition while the block runs.
    """
    attention: list[Tensor] = []

    def attend(
        query: Tensor, key: Tensor, value: Tensor, attn_mask: Any = None, *_: Any, scale: float | None = None, **__: Any
    ) -> Tensor:
        assert attn_mask is None, "a network for whole images hides no token from another"
        weights = (query @ key.transpose(-2, -1) * (scale or 1 / math.sqrt(query.shape[-1]))).softmax(dim=-1)
        attention.append(weights)
        return weights @ value

    own = F.scaled_dot_product_attention
    F.scaled_dot_product_attention = attend
    try:
        yield attention
    finally:
        F.scaled_dot_product_attention = own
