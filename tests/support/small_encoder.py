"""A small encoder and images for it, in a module that spawned processes can import."""

from copy import deepcopy
from functools import cache

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ssl_core.model.batch_norm import synchronize_batch_norm
from ssl_core.model.encoder import Encoder, ModelConfig, ProjectionHead, build_encoder

SIZE_PX = 32


class InDouble(Encoder):
    """An encoder with fp32 parameters that computes in float64, so that its rounding does not reach them."""

    def forward(self, images: Tensor) -> Tensor:
        if images.dtype == torch.float64:
            return super().forward(images)
        projections: Tensor = functional_call(
            self, {name: parameter.double() for name, parameter in self.named_parameters()}, images.double()
        )
        return projections


def small_encoder(backbone: str = "", *, head_norm: bool = False) -> Encoder:
    """Return the first half of a ResNet-18, or another backbone, with the same weights for every caller."""
    return deepcopy(_small_encoder(backbone, head_norm))


@cache
def _small_encoder(backbone: str, head_norm: bool) -> Encoder:
    if backbone:
        return build_encoder(ModelConfig(backbone, 64, 16, head_norm=head_norm), seed=0, size_px=SIZE_PX)
    model = build_encoder(ModelConfig("resnet18"), seed=0)
    model.backbone.network.module.layer3, model.backbone.network.module.layer4 = nn.Identity(), nn.Identity()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model.head = ProjectionHead(128, 64, 16, output_norm=head_norm)
    return model


def small_encoder_in_double(backbone: str = "", *, head_norm: bool = False) -> InDouble:
    small = small_encoder(backbone, head_norm=head_norm)
    model = InDouble(small.backbone, small.head)
    synchronized = synchronize_batch_norm(model).double()
    assert isinstance(synchronized, InDouble)
    for parameter in synchronized.parameters():
        parameter.data = parameter.data.float()
    return synchronized


def two_views(samples: int, seed: int = 1) -> list[Tensor]:
    """Return two views (samples, 1, S, S) that resemble each other, as augmented images do.

    Pure noise would give projections that are all alike.
    """
    return views_of(samples, small=0, seed=seed)


def views_of(samples: int, *, small: int, seed: int = 1) -> list[Tensor]:
    """Return the same two views, then `small` ones of three quarters of their size."""
    generator = torch.Generator().manual_seed(seed)
    images = nn.functional.interpolate(torch.randn(samples, 1, 4, 4, generator=generator), size=SIZE_PX)
    views = [images + 0.3 * torch.randn(images.shape, generator=generator) for _ in range(2 + small)]
    return views[:2] + [view[..., : SIZE_PX * 3 // 4, : SIZE_PX * 3 // 4] for view in views[2:]]
