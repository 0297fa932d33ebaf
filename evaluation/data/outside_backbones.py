"""Backbones that the run did not train: its initial weights, and weights of others to compare it with."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final

import torch
from torch import Tensor, nn

from evaluation.data.feature_sources import FeatureSource
from evaluation.results.backbones import OutsideBackbone
from infra.errors import UserError, require
from infra.files import sha256_file
from ssl_core.checkpoints.checkpoint import MODEL, Checkpoint, find_checkpoints
from ssl_core.checkpoints.tensors import load_backbone
from ssl_core.export.folder import is_export, open_export
from ssl_core.model.architectures import USUAL_SIZE_PX, build_network, require_backbone
from ssl_core.model.encoder import Backbone, build_encoder
from ssl_core.model.published import Input, is_published_name, published_input, published_weights
from ssl_core.model.weights import Weights, fit, load, read_weights, stem_channels
from ssl_core.pretraining.config import PretrainConfig
from ssl_core.pretraining.initial_weights import initial_sha256, start_from

INITIAL: Final = "initial weights"


class GrayInput(nn.Module):
    """A network behind its own normalization, for gray images on the scale 0 to 1: (N, 1, H, W) -> (N, D)."""

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        """Normalize each channel of a gray image by its own mean and standard deviation, (channels,) each."""
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Return the features of a batch of images."""
        return self.network((images - self.mean) / self.std)


@dataclass(frozen=True)
class InputOptions:
    """What the user says of the input of compared weights, in place of what is known about their network.

    Attributes:
        size_px: sides of the images
        mean: of each channel, on the scale 0 to 1
        std: likewise
    """

    size_px: int | None = None
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None


def initial_source(run: Path, pretraining: PretrainConfig) -> list[FeatureSource]:
    """Return the control "initial weights" of a run that began with model.init; none for one that began at random.

    Raises:
        UserError: if these weights are no longer those that the run began with
    """
    if pretraining.model.init is None:
        return []
    began_with = find_checkpoints(run)[-1].state.config.get("model.init")
    sha256 = initial_sha256(pretraining)
    require(
        sha256 == began_with,
        f"model.init={pretraining.model.init} of {run} has the SHA-256 {sha256}, but the run began with {began_with}; "
        "put that file back, or leave the controls out",
    )

    def backbone() -> Backbone:
        encoder = build_encoder(pretraining.model, pretraining.seed, pretraining.views.size_px)
        start_from(pretraining, encoder)
        return encoder.backbone.eval()

    return [FeatureSource(INITIAL, "initial", backbone)]


class ComparedBackbone:
    """Weights of others, named on the command line as NAME=WEIGHTS or NAME=WEIGHTS@NETWORK."""

    def __init__(self, text: str, what: str, options: InputOptions) -> None:
        """Find the weights, without reading them.

        Args:
            text: the words of the user. WEIGHTS is a run, a checkpoint, an export, a file, or published weights in the
                cache; NETWORK is needed for a file
            what: the option, for messages
            options: what the user says of the input

        Raises:
            UserError: if there are no such weights, or the network is not known
        """
        self.name, equals, weights = text.partition("=")
        require(
            bool(equals and self.name and weights),
            f"{what}: {text!r} must be NAME=WEIGHTS, such as imagenet=torchvision/resnet50.IMAGENET1K_V2",
        )
        self._what = f"{what}: {text}"
        self._checkpoint: Checkpoint | None = None
        self._weights, _, self._network = weights.partition("@")
        if is_published_name(self._weights):
            published = published_weights(self._weights, self._what)
            self._path, self._network = published.path, published.network
            images = published.input
        else:
            self._path = Path(self._weights).expanduser()
            require(self._path.exists(), f"{self._what} does not exist; name a file with weights, or a run")
            if is_export(self._path):
                export = open_export(self._path, self._what)
                self._path, self._network, images = export.weights, export.network, export.input
            elif self._path.is_dir():
                self._checkpoint = _checkpoint_in(self._path, self._what)
                state = self._checkpoint.state
                self._path, self._network = self._checkpoint.path / MODEL, state.backbone
                size_px = state.size_px or int(state.config.get("views.size_px", USUAL_SIZE_PX))
                images = Input(size_px, (state.pixel_mean,), (state.pixel_std,))
            else:
                require(bool(self._network), f"{self._what} needs its network: NAME=FILE@NETWORK, such as @resnet50")
                require_backbone(self._network, self._what)
                images = published_input(self._network)
        self.size_px = options.size_px or images.size_px
        self._mean, self._std = options.mean or images.mean, options.std or images.std

    @cached_property
    def sha256(self) -> str:
        """Hash of the file with the weights."""
        return sha256_file(self._path)

    @property
    def record(self) -> OutsideBackbone:
        """What is kept in the results."""
        mean, std = list(self._mean), list(self._std)
        return OutsideBackbone(self.name, str(self._path), self._network, self.sha256, self.size_px, mean, std)

    @property
    def source(self) -> FeatureSource:
        """The weights as a source of features."""
        return FeatureSource(self.name, "compared", self._backbone, own_size_px=self.size_px)

    def _backbone(self) -> GrayInput:
        if self._checkpoint:
            return GrayInput(load_backbone(self._checkpoint), self._mean, self._std).eval()
        weights = read_weights(self._path, self._what)
        channels = stem_channels(weights, build_network(self._network, self.size_px, 3))
        network = build_network(self._network, self.size_px, channels)
        found = fit(weights, network, least_share=1.0)
        lacking = [*found.missing, *found.misshapen]
        require(not lacking, f"{self._what} lacks {', '.join(lacking[:3])}; compare a whole network")
        load(found, network.module)
        return GrayInput(network.module, *self._statistics(weights, channels)).eval()

    def _statistics(self, weights: Weights, channels: int) -> tuple[Sequence[float], Sequence[float]]:
        if channels == 1 and len(self._mean) == 3:  # the mean of a gray image in three channels
            return (sum(self._mean) / 3,), (sum(self._std) / 3,)
        require(
            len(self._mean) in (1, channels),
            f"{weights.name} takes {channels} channel(s), but its mean and standard deviation have {len(self._mean)}; "
            "give as many",
        )
        repeats = channels if len(self._mean) == 1 else 1
        return tuple(self._mean) * repeats, tuple(self._std) * repeats


def compared_backbones(texts: Sequence[str], what: str, options: InputOptions) -> list[ComparedBackbone]:
    """Find the weights that the user wants to compare; raises UserError like `ComparedBackbone`, or for equal names."""
    compared = [ComparedBackbone(text, what, options) for text in texts]
    names = [each.name for each in compared]
    for name in names:
        require(names.count(name) == 1, f"{what} has the name {name} twice; give each backbone its own")
    return compared


def _checkpoint_in(folder: Path, what: str) -> Checkpoint:
    """Return the newest checkpoint of a run, or the checkpoint whose folder this is."""
    [*checkpoints] = find_checkpoints(folder) or [
        each for each in find_checkpoints(folder.absolute().parent.parent) if each.path.name == folder.absolute().name
    ]
    if not checkpoints:
        raise UserError(f"{what} is a folder without checkpoints; name a run, a checkpoint, an export, or a file")
    return checkpoints[-1]
