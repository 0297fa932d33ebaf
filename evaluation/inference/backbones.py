"""A backbone as the user names it, ready for new images."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from torch import nn

from evaluation.data.backbones.opened import InputOptions, OpenedBackbone, open_backbone
from evaluation.data.backbones.origins import OfCheckpoint
from evaluation.data.features import Preprocessing
from infra.configuration import config as configuration
from infra.errors import RunFailed, UserError
from infra.log import say
from sharding.images.encoding import Encoding, encoding_of
from sharding.reading.fetch import FetchConfig
from sharding.reading.manifests import read_manifest
from ssl_core.checkpoints.export.folder import Preparation, is_export, open_export
from ssl_core.checkpoints.tensors import load_backbone
from ssl_core.pretraining.config import PretrainConfig
from ssl_core.views.parameters import Fit

_PACKED_TO_INPUT: Final = 1.5  # packed images should be this much larger than the input (docs/commands.md)


@dataclass(frozen=True)
class NamedBackbone:
    """A network with its preprocessing.

    Attributes:
        network: maps images (n, 1, size, size) to features (n, D)
        preprocessing: its input, with no executor yet
        encoding: how image files are prepared for it
        about: what is said of it beside its features
    """

    network: nn.Module
    preprocessing: Preprocessing
    encoding: Encoding
    about: dict[str, Any]


def name_backbone(
    text: str, what: str, options: InputOptions, fit: Fit | None, *, mirrored: bool, fetch: FetchConfig
) -> NamedBackbone:
    """Open a backbone from anywhere for new images.

    Args:
        text: the words of the user, as `open_backbone` takes them
        what: the option with its value, for messages
        options: what the user says of its input
        fit: how an image that is not square becomes a square; None for what an export says, else pad
        mirrored: whether to average the features of an image and of its mirror image
        fetch: how the manifests of a run's shards are downloaded

    Raises:
        UserError: if there are no such weights
        RunFailed: if a checkpoint is damaged
    """
    opened, folder = open_backbone(text, what, options), Path(text).expanduser()
    said = open_export(folder, what).preparation if is_export(folder) else None
    network, mean, std = _with_normalization(opened)
    preprocessing = Preprocessing(
        opened.input.size_px,
        mean,
        std,
        "",
        fit or (said.fit if said else "pad"),
        mirrored or (said is not None and said.mirrored),
        opened.antialias,
    )
    about = {"backbone": opened.origin.architecture, "weights": str(opened.origin.path), "sha256": opened.sha256}
    return NamedBackbone(network, preprocessing, _encoding(opened, said, fetch), about)


def _with_normalization(opened: OpenedBackbone) -> tuple[nn.Module, float, float]:
    """Return the network with the mean and the deviation of its input; a run's features must be those of its probe."""
    if isinstance(opened.origin, OfCheckpoint):
        [mean], [std] = opened.input.mean, opened.input.std
        return load_backbone(opened.origin.checkpoint), mean, std
    return opened.load(), 0.0, 1.0


def _encoding(opened: OpenedBackbone, said: Preparation | None, fetch: FetchConfig) -> Encoding:
    """Return how the first set of a pretraining was packed; without one that is known, what suits the input."""
    usual = Encoding(round(_PACKED_TO_INPUT * opened.input.size_px), image_format="png")
    if said is not None and said.packing:
        return encoding_of(asdict(said.packing[0]))
    if not isinstance(opened.origin, OfCheckpoint):
        return usual
    try:
        run = opened.origin.checkpoint.path.parent.parent
        pretraining = configuration.load(PretrainConfig, run / "config.yaml", command="pretrain")
        return encoding_of(read_manifest(pretraining.data.shards[0], fetch).options)
    except (UserError, RunFailed, KeyError) as error:
        say(f"warning: the packing of the run's shards is unknown ({error}); image files are prepared as {usual}")
        return usual
