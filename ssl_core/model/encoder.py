"""The backbone m(.) and the projection head n(.) (Gazda et al. 2021, section III B and Table I)."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from infra.configuration.options import require_at_least, setting
from ssl_core.model.architectures import USUAL_SIZE_PX, build_network, require_backbone, require_trainable


@dataclass(frozen=True)
class ModelConfig:
    """Backbone and projection head.

    Args:
        backbone: a ResNet, DenseNet, ConvNeXt or ViT of torchvision by its name there, such as densenet121 or vit_b_16,
            or timm/NAME; wide_resnet50_2 in the paper, resnet18 suits two CPU cores
        projection_width: units of the head's hidden layer (Table I: 2048)
        projection_size: d, the size of the vectors that the loss compares (Table I: 128)
        init: weights to start from instead of random ones: a .safetensors or .pth file, a run (its newest checkpoint),
            a checkpoint, an export, or published weights in the local cache, such as torchvision/resnet50.IMAGENET1K_V2
            or timm/resnet50.a1_in1k; nothing is downloaded
        head_norm: whether a batch norm without scale and shift follows the head's last layer; Table I has none, the
            heads of SimCLR's own code and of other libraries do
    """

    backbone: str = "wide_resnet50_2"
    projection_width: int = 2048
    projection_size: int = 128
    init: str | None = None
    head_norm: bool = False

    def __post_init__(self) -> None:
        require_backbone(self.backbone, setting(self, "backbone"))
        require_at_least(self, "projection_width", 1, "use 2048")
        require_at_least(self, "projection_size", 2, "use 128")


class Backbone(nn.Module):
    """A network for one-channel images, without its classifier: (N, 1, H, W) -> (N, feature_size).

    Of a ResNet, the features are the output of global average pooling: the "last layer of the backbone" that the paper
    probes, and the first row of Table I. A parameter's name is the network's family and its name in its library, such
    as `resnet.conv1.weight`.

    Attributes:
        name: name of the network
        network: the network with what is known about it
        feature_size: number of features of an image
    """

    def __init__(self, name: str, size_px: int = USUAL_SIZE_PX) -> None:
        """Build the backbone with random weights.

        Args:
            name: as in `build_network`
            size_px: sides of the images; only a ViT needs to know
        """
        super().__init__()
        self.name = name
        self.network = build_network(name, size_px)
        self.feature_size = self.network.feature_size
        require_trainable(self.network, size_px)
        self.add_module(self.network.family, self.network.module)

    def forward(self, images: Tensor) -> Tensor:
        """Return the features of a batch of images."""
        return self.network.module(images)


class ProjectionHead(nn.Module):
    """Table I after the pooling: dense with bias, batch norm, ReLU, dense without bias; (N, features) -> (N, d).

    With `output_norm`, a batch norm follows. Without it, the projections of an untrained network share a direction, and
    training may begin by moving all of them along it.
    """

    def __init__(self, feature_size: int, width: int, size: int, *, output_norm: bool = False) -> None:
        super().__init__()
        self.hidden = nn.Linear(feature_size, width, bias=True)
        self.norm = nn.BatchNorm1d(width)
        self.output = nn.Linear(width, size, bias=False)
        self.output_norm = nn.BatchNorm1d(size, affine=False) if output_norm else nn.Identity()

    def forward(self, features: Tensor) -> Tensor:
        """Return the projections z that the loss compares."""
        return self.output_norm(self.output(torch.relu(self.norm(self.hidden(features)))))


class Encoder(nn.Module):
    """The network that pretraining trains, n(m(x)): (N, 1, H, W) -> (N, d)."""

    def __init__(self, backbone: Backbone, head: ProjectionHead) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head

    def forward(self, images: Tensor) -> Tensor:
        """Return the projections of a batch of images."""
        return self.head(self.backbone(images))


def build_encoder(config: ModelConfig, seed: int, size_px: int = USUAL_SIZE_PX) -> Encoder:
    """Build the encoder with the random weights that `seed` determines, without changing the global random state.

    Args:
        config: backbone and head; `init` has no effect here
        seed: determines the weights
        size_px: sides of the views; only a ViT needs to know
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        backbone = Backbone(config.backbone, size_px)
        width, size = config.projection_width, config.projection_size
        return Encoder(backbone, ProjectionHead(backbone.feature_size, width, size, output_norm=config.head_norm))


def untrained_backbone(config: ModelConfig, seed: int, size_px: int = USUAL_SIZE_PX) -> Backbone:
    """Return the backbone of a run before its first step, or before `init`: the control for every probe."""
    return build_encoder(config, seed, size_px).backbone.eval()
