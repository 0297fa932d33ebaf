"""The backbone m(.) and the projection head n(.) (Gazda et al. 2021, section III B and Table I)."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torchvision
from torch import Tensor, nn

from infra.errors import UserError, require
from infra.options import require_at_least, setting


@dataclass(frozen=True)
class ModelConfig:
    """Backbone and projection head.

    Args:
        backbone: name of a torchvision ResNet; wide_resnet50_2 in the paper, resnet18 suits two CPU cores
        projection_width: units of the head's hidden layer (Table I: 2048)
        projection_size: d, the size of the vectors that the loss compares (Table I: 128)
    """

    backbone: str = "wide_resnet50_2"
    projection_width: int = 2048
    projection_size: int = 128

    def __post_init__(self) -> None:
        names = backbone_names()
        require(self.backbone in names, f"{setting(self, 'backbone')} must be one of {', '.join(names)}")
        require_at_least(self, "projection_width", 1, "use 2048")
        require_at_least(self, "projection_size", 2, "use 128")


def backbone_names() -> list[str]:
    """Return the names of torchvision's ResNets, including wide and grouped ones."""
    models = torchvision.models
    return [name for name in models.list_models(module=models) if _is_resnet(models.get_model_builder(name))]


def _is_resnet(builder: Callable[..., nn.Module]) -> bool:
    return bool(builder.__module__ == torchvision.models.resnet.__name__)


class Backbone(nn.Module):
    """A torchvision ResNet for one-channel images, without its classifier: (N, 1, H, W) -> (N, feature_size).

    The features are the output of global average pooling: the "last layer of the backbone" that the paper probes, and
    the first row of Table I. Parameter names are torchvision's.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        if name not in backbone_names():
            raise UserError(f"backbone {name!r} must be one of {', '.join(backbone_names())}")
        self.name = name
        self.resnet = torchvision.models.get_model(name, weights=None)
        self.feature_size: int = self.resnet.fc.in_features
        self.resnet.conv1 = _one_channel_stem(self.resnet.conv1)
        self.resnet.fc = nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        """Return the features of a batch of images."""
        return self.resnet(images)


def _one_channel_stem(stem: nn.Conv2d) -> nn.Conv2d:
    single = nn.Conv2d(1, stem.out_channels, stem.kernel_size, stem.stride, stem.padding, bias=False)  # type: ignore[arg-type]
    with torch.no_grad():
        single.weight.copy_(one_channel(stem.weight))
    return single


def one_channel(weight: Tensor) -> Tensor:
    """Sum a stem's weight (out, 3, k, k) over its input channels: (out, 1, k, k).

    The result responds to a gray image as the original does to the same image in all three channels.
    """
    return weight.sum(dim=1, keepdim=True)


class ProjectionHead(nn.Module):
    """Table I after the pooling: dense with bias, batch norm, ReLU, dense without bias; (N, features) -> (N, d)."""

    def __init__(self, feature_size: int, width: int, size: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(feature_size, width, bias=True)
        self.norm = nn.BatchNorm1d(width)
        self.output = nn.Linear(width, size, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        """Return the projections z that the loss compares."""
        return self.output(torch.relu(self.norm(self.hidden(features))))


class Encoder(nn.Module):
    """The network that pretraining trains, n(m(x)): (N, 1, H, W) -> (N, d)."""

    def __init__(self, backbone: Backbone, head: ProjectionHead) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head

    def forward(self, images: Tensor) -> Tensor:
        """Return the projections of a batch of images."""
        return self.head(self.backbone(images))


def build_encoder(config: ModelConfig, seed: int) -> Encoder:
    """Build the untrained encoder that `seed` determines, without changing the global random state."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        backbone = Backbone(config.backbone)
        return Encoder(backbone, ProjectionHead(backbone.feature_size, config.projection_width, config.projection_size))


def untrained_backbone(config: ModelConfig, seed: int) -> Backbone:
    """Return the initial backbone of a run with this seed: the control for every probe."""
    return build_encoder(config, seed).backbone.eval()
