"""Frozen features of the ground's images: of trained weights, of an untrained network, and the pixels themselves."""

from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import torch
import torchvision
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from infra.arrays import Float32, UInt8
from ssl_core.model.encoder import ModelConfig, untrained_backbone

RAW_SIDE_PX: Final = 32
_BATCH: Final = 64


class Weights(NamedTuple):
    """A ResNet-18 in torchvision's names, and the mean and standard deviation of its input's gray levels (0 to 1)."""

    state: dict[str, Tensor]
    mean: float
    std: float


def save_weights(path: Path, weights: Weights) -> None:
    """Write weights with their normalization."""
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {name: value.contiguous() for name, value in weights.state.items()}
    save_file(state, path, {"mean": str(weights.mean), "std": str(weights.std)})


def load_weights(path: Path) -> Weights:
    """Read what `save_weights` wrote."""
    with safe_open(path, "pt") as file:
        facts = file.metadata()
        return Weights(
            {name: file.get_tensor(name) for name in file.keys()},  # noqa: SIM118 - it is no dict
            float(facts["mean"]),
            float(facts["std"]),
        )


def untrained_weights(seed: int, mean: float, std: float) -> Weights:
    """Return the weights that Sternum's training begins with."""
    network = untrained_backbone(ModelConfig("resnet18"), seed).network.module
    return Weights(network.state_dict(), mean, std)


def resnet18(weights: Weights) -> nn.Module:
    """Return torchvision's ResNet-18 with these weights, without its classifier, in evaluation mode."""
    network = torchvision.models.resnet18()
    network.fc = nn.Identity()
    channels = weights.state["conv1.weight"].shape[1]
    if channels == 1:
        network.conv1 = nn.Conv2d(1, 64, 7, stride=2, padding=3, bias=False)
    network.load_state_dict({name: value for name, value in weights.state.items() if not name.startswith("fc.")})
    return network.to(memory_format=torch.channels_last).eval()


def features_of(weights: Weights, pixels: UInt8, size_px: int) -> Float32:
    """Return the features (N, 512) of whole images, reduced to size_px without aliasing."""
    network = resnet18(weights)
    channels = weights.state["conv1.weight"].shape[1]
    found = []
    with torch.no_grad():
        for first in range(0, len(pixels), _BATCH):
            images = torch.from_numpy(reduced(pixels[first : first + _BATCH], size_px))[:, None].float()
            images = ((images / 255 - weights.mean) / weights.std).expand(-1, channels, -1, -1)
            found.append(network(images.contiguous(memory_format=torch.channels_last)))
    return torch.cat(found).numpy()


def raw_pixels(pixels: UInt8) -> Float32:
    """Return 32 x 32 gray levels of each image as features (N, 1024)."""
    return reduced(pixels, RAW_SIDE_PX).reshape(len(pixels), -1).astype(np.float32)


def reduced(pixels: UInt8, size_px: int) -> UInt8:
    """Return square images (N, H, H) as (N, size, size)."""
    size = (size_px, size_px)
    return np.stack([np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR)) for image in pixels])
