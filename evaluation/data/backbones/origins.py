"""Where the weights of a backbone come from: a file with a state dict, or a checkpoint of Sternum."""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

from torch import nn

from infra.errors import require
from ssl_core.checkpoints.checkpoint import MODEL, Checkpoint
from ssl_core.checkpoints.tensors import load_backbone
from ssl_core.model.architectures import USUAL_SIZE_PX, build_network
from ssl_core.model.published import Input
from ssl_core.model.weights import fit, load, read_weights, stem_channels


class Loaded(NamedTuple):
    """A network with its weights.

    Attributes:
        network: (N, channels, H, W) -> (N, D), in evaluation mode
        channels: of its images, 1 or 3
        summary: what the file gave to the network, in one line
    """

    network: nn.Module
    channels: int
    summary: str


class Origin(Protocol):
    """Weights on disk, and the network that they belong to."""

    @property
    def path(self) -> Path:
        """The file with the weights."""

    @property
    def architecture(self) -> str:
        """Name of the network."""

    @property
    def input(self) -> Input | None:
        """The images that the network was trained on; None if nothing says so."""

    @property
    def antialias(self) -> bool:
        """Whether these images were reduced without aliasing."""

    def load(self, size_px: int) -> Loaded:
        """Read the weights into the network for images of this size; raises UserError if they do not fit."""

    def random(self, size_px: int, channels: int) -> nn.Module:
        """Return the network with random weights, drawn from torch's global generator."""


@dataclass(frozen=True)
class StateDict:
    """A safetensors or PyTorch file with the weights of a network of torchvision or timm.

    Attributes:
        path: the file
        architecture: name of the network, as `build_network` takes it
        input: the images that the network was trained on
        what: the option with its value, for messages
        is_published: whether the library itself says which network the file holds
        antialias: whether these images were reduced without aliasing, as the libraries do
        trained_on: what an export states of its training data; empty if nothing does
    """

    path: Path
    architecture: str
    input: Input | None
    what: str
    is_published: bool = False
    antialias: bool = True
    trained_on: str = ""

    def load(self, size_px: int) -> Loaded:
        """Read the weights, whatever stands before their names; the whole network must be there."""
        weights = read_weights(self.path, self.what)
        channels = stem_channels(weights, build_network(self.architecture, size_px, 3))
        require(
            channels in (1, 3), f"{self.what} is for images of {channels} channels; use weights for 1 or 3 channels"
        )
        network = build_network(self.architecture, size_px, channels)
        found = fit(weights, network, least_share=1.0)
        lacking = [*found.missing, *found.misshapen]
        require(
            not lacking,
            f"{self.what} lacks {len(lacking)} of the values of a {self.architecture} ({', '.join(lacking[:3])}); name "
            "a file with the whole network",
        )
        require(
            self.is_published or not found.foreign,
            f"{self.what} also holds {len(found.foreign)} value(s) for layers that a {self.architecture} does not have "
            f"({', '.join(found.foreign[:3])}), so it is another network; name the architecture of the file",
        )
        load(found, network.module)
        return Loaded(network.module.eval(), channels, str(found))

    def random(self, size_px: int, channels: int) -> nn.Module:
        """Return the network with random weights."""
        return build_network(self.architecture, size_px, channels).module


@dataclass(frozen=True)
class OfCheckpoint:
    """The backbone in a checkpoint of Sternum."""

    checkpoint: Checkpoint

    @property
    def path(self) -> Path:
        """The file with the weights."""
        return self.checkpoint.path / MODEL

    @property
    def architecture(self) -> str:
        """Name of the network."""
        return self.checkpoint.state.backbone

    @property
    def input(self) -> Input:
        """The images of the run."""
        state = self.checkpoint.state
        size_px = state.size_px or int(state.config.get("views.size_px", USUAL_SIZE_PX))
        return Input(size_px, (state.pixel_mean,), (state.pixel_std,))

    @property
    def antialias(self) -> bool:
        """Whether the views of the run were antialiased."""
        return bool(self.checkpoint.state.config.get("views.antialias", False))

    def load(self, size_px: int) -> Loaded:
        """Read the backbone, after verifying its bytes; a ViT takes the size of its run alone."""
        return Loaded(load_backbone(self.checkpoint), 1, f"the checkpoint of step {self.checkpoint.step}")

    def random(self, size_px: int, channels: int) -> nn.Module:
        """Return the network with random weights."""
        return build_network(self.architecture, size_px, channels).module
