"""A small encoder and its images for tests of what trains it; a module of its own, as started processes need it."""

from copy import deepcopy
from functools import cache

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ssl_core.model.batch_norm import synchronize_batch_norm
from ssl_core.model.encoder import Encoder, ModelConfig, ProjectionHead, build_encoder

SIZE_PX = 32


class InDouble(Encoder):
    """An encoder with fp32 parameters that computes in float64, so that they see nothing of its rounding."""

    def forward(self, images: Tensor) -> Tensor:
        if images.dtype == torch.float64:
            return super().forward(images)
        return functional_call(self, {name: p.double() for name, p in self.named_parameters()}, images.double())


def small_encoder() -> Encoder:
    """The first half of a ResNet-18: the same for every caller."""
    return deepcopy(_small_encoder())


@cache
def _small_encoder() -> Encoder:
    model = build_encoder(ModelConfig("resnet18"), seed=0)
    model.backbone.resnet.layer3, model.backbone.resnet.layer4 = nn.Identity(), nn.Identity()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model.head = ProjectionHead(128, 64, 16)
    return model


def small_encoder_in_double() -> InDouble:
    small = small_encoder()
    model = synchronize_batch_norm(InDouble(small.backbone, small.head), torch.device("cpu")).double()
    for parameter in model.parameters():
        parameter.data = parameter.data.float()
    return model


def two_views(samples: int, seed: int = 1) -> list[Tensor]:
    """Two views that resemble each other, as augmented images do: of noise alone all projections are one heap."""
    generator = torch.Generator().manual_seed(seed)
    images = nn.functional.interpolate(torch.randn(samples, 1, 4, 4, generator=generator), size=SIZE_PX)
    return [images + 0.3 * torch.randn(images.shape, generator=generator) for _ in range(2)]
