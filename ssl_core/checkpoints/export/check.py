"""The check that every form of an exported network has the features of the network that was trained."""

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn

from infra.errors import require
from ssl_core.model.architectures import Network

TOLERANCE: Final = 1e-4  # absolute, and relative to the largest feature
_IMAGES: Final = 2


@dataclass(frozen=True)
class Reference:
    """Random images with the features that the trained network gives them.

    Attributes:
        images: (n, channels, size, size); three channels are equal
        features: (n, feature_size)
    """

    images: Tensor
    features: Tensor

    def difference(self, features: Tensor) -> float:
        """Return by how much other features (n, feature_size) differ, in units of the tolerance: above 1 is too much.

        Infinite if they have another shape or are not finite.
        """
        if features.shape != self.features.shape or not features.isfinite().all():
            return float("inf")
        allowed = TOLERANCE * max(1.0, float(self.features.abs().max()))
        return float((features - self.features).abs().max()) / allowed

    def first(self, count: int) -> "Reference":
        """Return the first images alone."""
        return Reference(self.images[:count], self.features[:count])


@torch.inference_mode()
def reference(network: Network, size_px: int, channels: int) -> Reference:
    """Return images of a fixed seed with the features of a network of one channel, in evaluation mode.

    Args:
        network: the network that was trained
        size_px: sides of the images
        channels: of the images, 1 or 3

    Raises:
        UserError: if the features are not finite
    """
    gray = torch.randn(_IMAGES, 1, size_px, size_px, generator=torch.Generator().manual_seed(0))
    features = network.module.eval()(gray)
    require(
        bool(features.isfinite().all()),
        f"the features of this {network.name} are not finite; its training diverged: export another checkpoint",
    )
    return Reference(gray.expand(-1, channels, -1, -1).contiguous(), features)


@torch.inference_mode()
def features_of(module: nn.Module, images: Tensor) -> Tensor:
    """Return the features (n, D) of images, with the module in evaluation mode."""
    return module.eval()(images)
