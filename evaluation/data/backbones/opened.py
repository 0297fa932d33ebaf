"""A backbone from anywhere, as its user names it, ready to map gray images to features."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from typing_extensions import override

from evaluation.data.backbones.origins import Loaded, OfCheckpoint, Origin, StateDict
from evaluation.data.backbones.transformers_folder import TransformersFolder, is_transformers_folder
from evaluation.results.backbones import OutsideBackbone
from infra.configuration.options import key, require_between, setting
from infra.errors import UserError, require
from infra.storage.files import sha256_file
from ssl_core.checkpoints.ancestor import Ancestor
from ssl_core.checkpoints.checkpoint import Checkpoint, find_checkpoints
from ssl_core.checkpoints.export.folder import is_export, open_export
from ssl_core.model.architectures import require_backbone
from ssl_core.model.published import Input, is_published_name, published_input, published_weights
from ssl_core.views.spec import SIZES_PX


@dataclass(frozen=True)
class InputOptions:
    """What the user says of the images that backbones take, in place of what is known of each.

    Args:
        size_px: width and height; by default what the weights were trained on. A convolutional network may give better
            features at a larger size
        mean: mean of each channel on the scale 0 to 1; by default what the weights were trained on
        std: standard deviation of each channel, likewise
    """

    size_px: int | None = None
    mean: list[float] | None = None
    std: list[float] | None = None

    def __post_init__(self) -> None:
        """Raise UserError for a value out of range."""
        require_between(self, "size_px", *SIZES_PX, "try 224")
        require(
            self.std is None or min(self.std, default=0.0) > 0,
            f"{setting(self, 'std')} must be positive; divide values from 0 to 255 by 255",
        )


class GrayInput(nn.Module):
    """A network behind its own normalization, for gray images on the scale 0 to 1: (N, 1, H, W) -> (N, D)."""

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, name: str, mean: Sequence[float], std: Sequence[float]) -> None:
        """Normalize each channel of a gray image by its own mean and standard deviation, (channels,) each."""
        super().__init__()
        self.network = network
        self.name = name
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Return the features of a batch of images."""
        features: Tensor = self.network((images - self.mean) / self.std)
        return features

    @override
    def extra_repr(self) -> str:
        """Name the network: the text identifies stored features, and its layers do not show the number of heads."""
        return self.name


@dataclass(frozen=True)
class OpenedBackbone:
    """A backbone whose weights were read and checked once; it is small, and another process can load it again.

    Attributes:
        origin: where the weights are
        sha256: hash of the file with the weights
        input: the images, with a mean and a standard deviation for each channel
        summary: what the file gave to the network, in one line
    """

    origin: Origin
    sha256: str
    input: Input
    summary: str

    @property
    def antialias(self) -> bool:
        """Whether images are reduced without aliasing, as when the weights were trained."""
        return self.origin.antialias

    def load(self) -> GrayInput:
        """Return the backbone for gray images (N, 1, size, size) on the scale 0 to 1, in evaluation mode."""
        return _gray_input(self.origin, _load(self.origin, self.input.size_px).network, self.input)

    def untrained(self, seed: int) -> GrayInput:
        """Return the same with the random weights that a seed determines."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = self.origin.random(self.input.size_px, len(self.input.mean))
        return _gray_input(self.origin, network, self.input)

    @property
    def trainings(self) -> list[Ancestor]:
        """What a checkpoint of Sternum was trained on, the latest first; nothing is known of other weights."""
        if not isinstance(self.origin, OfCheckpoint):
            return []
        return self.origin.checkpoint.state.lineage(str(self.origin.path), self.sha256)

    def record(self, name: str) -> OutsideBackbone:
        """Return what the results keep of the backbone under its name."""
        size_px, mean, std = self.input
        return OutsideBackbone(
            name=name,
            file=str(self.origin.path),
            network=self.origin.architecture,
            sha256=self.sha256,
            size_px=size_px,
            mean=list(mean),
            std=list(std),
            summary=self.summary,
            antialias=self.antialias,
            trained_on=self.origin.trained_on if isinstance(self.origin, StateDict) else "",
        )


def open_backbone(weights: str, what: str, options: InputOptions) -> OpenedBackbone:
    """Find, read and check a backbone.

    Args:
        weights: FILE@NETWORK, published weights in the cache, a run, a checkpoint, an export, or a transformers
            folder
        what: the option with its value, for messages
        options: what the user says of the input

    Raises:
        UserError: if there are no such weights, they do not fit their network, or the network does not take such images
        RunFailed: if a checkpoint is damaged
    """
    origin = _origin(weights, what)
    known = origin.input
    if known is None:
        require(
            None not in (options.size_px, options.mean, options.std),
            f"{what} does not say which images it takes; give {', '.join(_keys())}",
        )
        known = Input(0, (), ())
    size_px = options.size_px or known.size_px
    loaded = _load(origin, size_px)
    mean, std = (
        _of_channels(values, loaded.channels, what) for values in (options.mean or known.mean, options.std or known.std)
    )
    images = Input(size_px, mean, std)
    require_features(_gray_input(origin, loaded.network, images), size_px, what)
    return OpenedBackbone(origin, sha256_file(origin.path), images, loaded.summary)


def named_backbones(texts: Sequence[str], what: str, options: InputOptions) -> Mapping[str, OpenedBackbone]:
    """Open backbones that are given as NAME=WEIGHTS.

    Args:
        texts: the words of the user
        what: the option, for messages
        options: what the user says of their input

    Returns:
        The backbones by name, in order.

    Raises:
        UserError: as `open_backbone`, or for a word without a name, or two of one name
    """
    opened: dict[str, OpenedBackbone] = {}
    for text in texts:
        name, _, weights = text.partition("=")
        require(
            bool(name and weights),
            f"{what}: {text!r} must be NAME=WEIGHTS, such as imagenet=torchvision/resnet50.IMAGENET1K_V2",
        )
        require(name not in opened, f"{what} has the name {name} twice; give each backbone its own")
        opened[name] = open_backbone(weights, f"{what}: {text}", options)
    return opened


def _load(origin: Origin, size_px: int) -> Loaded:
    """Read the weights without changing the global random state, from which networks are built first."""
    with torch.random.fork_rng(devices=[]):
        return origin.load(size_px)


def _gray_input(origin: Origin, network: nn.Module, images: Input) -> GrayInput:
    return GrayInput(network, origin.architecture, images.mean, images.std).eval()


def _keys() -> list[str]:
    return [f"--{key(InputOptions, name)}" for name in ("size_px", "mean", "std")]


def _origin(weights: str, what: str) -> Origin:
    name, _, network = weights.partition("@")
    if is_published_name(name):
        published = published_weights(name, what)
        return StateDict(published.path, published.network, published.input, what, is_published=True)
    path = Path(name).expanduser()
    require(path.exists(), f"{what} does not exist; name a file with weights, or a folder that holds them")
    if path.is_dir():
        return _origin_in(path, what)
    require(bool(network), f"{what} needs its network: add @NETWORK at its end, such as @resnet50")
    require_backbone(network, what)
    return StateDict(path, network, published_input(network), what)


def _origin_in(folder: Path, what: str) -> Origin:
    if is_export(folder):
        export = open_export(folder, what)
        antialias = export.preparation.antialias
        return StateDict(
            export.weights, export.network, export.input, what, antialias=antialias, trained_on=export.trained_on
        )
    if is_transformers_folder(folder):
        return TransformersFolder(folder, what)
    checkpoint = _checkpoint_in(folder)
    if checkpoint is None:
        raise UserError(
            f"{what} is a folder without checkpoints or config.json; name a run, a checkpoint, an export, a "
            "transformers folder, or a file"
        )
    return OfCheckpoint(checkpoint)


def _checkpoint_in(folder: Path) -> Checkpoint | None:
    """Return the newest checkpoint of a run, or the checkpoint whose folder this is; None if it is neither."""
    [*checkpoints] = find_checkpoints(folder) or [
        each for each in find_checkpoints(folder.absolute().parent.parent) if each.path.name == folder.absolute().name
    ]
    return checkpoints[-1] if checkpoints else None


def _of_channels(values: Sequence[float], channels: int, what: str) -> tuple[float, ...]:
    """Return a value for each channel: one value counts for all, and of three the mean for a gray image."""
    if channels == 1 and len(values) == 3:
        return (sum(values) / 3,)
    require(
        len(values) in (1, channels),
        f"{what} takes {channels} channel(s), but its mean or standard deviation has {len(values)}; give as many",
    )
    return tuple(values) * (channels if len(values) == 1 else 1)


@torch.inference_mode()
def require_features(backbone: nn.Module, size_px: int, what: str) -> None:
    """Raise UserError unless a backbone gives one vector for an image of this size, and always the same one."""
    image = torch.linspace(0, 1, size_px**2).view(1, 1, size_px, size_px)
    try:
        first, second = backbone(image), backbone(image)
    except Exception as error:  # each network has its own way to fail
        reason = " ".join(str(error).split())
        raise UserError(
            f"{what} does not take images of {size_px} px ({reason}); give another --{key(InputOptions, 'size_px')}"
        ) from error
    require(first.dim() == 2, f"{what} gives no vector for an image; choose another network")
    require(
        torch.allclose(first, second, rtol=1e-3),
        f"{what} gives other features each time, as one that masks patches at random does; choose another network",
    )
