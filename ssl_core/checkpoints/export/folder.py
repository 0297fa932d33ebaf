"""The folder that `sternum export` writes: its files, its records, and how to open it.

- model.safetensors: the weights of the backbone, by the names of its library
- config.json: what timm and transformers read; in the folder timm/, with weights of its own, if timm's names differ
- model.onnx: the network for onnxruntime
- preprocessing.json: how an image becomes the input (Preparation)
- README.md: the model card
- export.json: what the folder holds, with size and SHA-256 of each other file (Contents)
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

from infra.errors import UserError, require
from infra.storage.files import regular_size, sha256_file
from infra.storage.json_files import BadJson, read_json
from ssl_core.checkpoints.ancestor import Ancestor
from ssl_core.checkpoints.checkpoint import FileRecord
from ssl_core.model.architectures import Network, build_network, require_backbone
from ssl_core.model.published import Input
from ssl_core.model.weights import fit, load, read_weights
from ssl_core.views.parameters import Fit

CONTENTS: Final = "export.json"
PREPARATION: Final = "preprocessing.json"
WEIGHTS: Final = "model.safetensors"
CARD: Final = "README.md"
VERSION: Final = 1


@dataclass(frozen=True)
class Packing:
    """How `sternum shard` stored the images of a set before the network saw them.

    Attributes:
        set: name of the set
        shorter_side_px: larger images were reduced to this shorter side (Lanczos), none were enlarged
        image_format: jpeg or png
        jpeg_quality: of a JPEG
        pass_through: whether small gray JPEGs kept their bytes
    """

    set: str
    shorter_side_px: int
    image_format: Literal["jpeg", "png"]
    jpeg_quality: int
    pass_through: bool


@dataclass(frozen=True)
class Preparation:
    """How an image becomes the input of the network; the content of preprocessing.json.

    Attributes:
        size_px: width and height of the input
        channels: of the input, 1 or 3; three are the same gray image three times
        mean: pixel mean on the scale 0 to 1, the same in each channel: the input is (gray level / 255 - mean) / std
        std: pixel standard deviation, likewise
        fit: how an image that is not square becomes a square: pad (its longer side fits, its border is repeated beside
            it), squash (each side is scaled alone) or square (the longer side is cut about the center)
        mirrored: whether features are the means of those of the image and of its mirror image
        antialias: whether a side that the input would show more than 1.5 times smaller is first reduced to that, by
            a triangle as wide as the new pixels
        packing: how the images of each set were stored
        gray: how colors become gray levels from 0 to 255: Pillow's convert("L")
        interpolation: between pixel centers; outside the image, its border is repeated
    """

    size_px: int
    channels: int
    mean: float
    std: float
    fit: Fit
    mirrored: bool
    antialias: bool
    packing: list[Packing]
    gray: str = "luma (ITU-R 601-2)"
    interpolation: str = "bilinear"


@dataclass(frozen=True)
class _Version:
    version: int


@dataclass(frozen=True)
class Contents(_Version):
    """What an export holds; the content of export.json.

    Attributes:
        sternum: version that wrote it
        network: name of the network, as `build_network` takes it
        channels: of its input, 1 or 3
        feature_size: number of features of an image
        run: name of the run
        step: step of the checkpoint
        epoch: epochs done at that step
        checkpoint_sha256: hash of the checkpoint's model.safetensors
        files: size and hash of each other file, by its path in the folder
        ancestors: what the weights were trained on, and the weights that their run descends from; without the places of
            the shards, since an export is given away
    """

    sternum: str
    network: str
    channels: int
    feature_size: int
    run: str
    step: int
    epoch: float
    checkpoint_sha256: str
    files: dict[str, FileRecord] = field(default_factory=dict)
    ancestors: list[Ancestor] = field(default_factory=list)


@dataclass(frozen=True)
class Export:
    """An export on disk.

    Attributes:
        path: the folder
        contents: what it holds
        preparation: how an image becomes the input
    """

    path: Path
    contents: Contents
    preparation: Preparation

    @property
    def network(self) -> str:
        """Name of the network, as `build_network` takes it."""
        return self.contents.network

    @property
    def weights(self) -> Path:
        """The file with the weights, which `sha256` describes."""
        return self.path / WEIGHTS

    @property
    def sha256(self) -> str:
        """Hash of the file with the weights, as recorded."""
        return self.contents.files[WEIGHTS].sha256

    @property
    def input(self) -> Input:
        """The images that the network takes, as one gray channel."""
        return Input(self.preparation.size_px, (self.preparation.mean,), (self.preparation.std,))

    @property
    def trained_on(self) -> str:
        """The sets and the identity of the training data, as recorded; empty if the export does not state them."""
        sets = ", ".join(packing.set for packing in self.preparation.packing)
        ancestors = self.contents.ancestors
        if not ancestors or ancestors[0].data_identity is None:
            return ""
        began = f"; its run began with {ancestors[1].weights}" if len(ancestors) > 1 else ""
        return f"{sets or 'a set'} (SHA-256 of the data {ancestors[0].data_identity}){began}"


def is_export(folder: Path) -> bool:
    """Return whether a folder is an export."""
    return (folder / CONTENTS).is_file()


def open_export(folder: Path, what: str) -> Export:
    """Open an export, and compare its weights and their preparation with their hashes.

    Args:
        folder: a folder for which `is_export` holds
        what: the option with its value, for messages

    Raises:
        UserError: if it is damaged, belongs to another version of Sternum, or its network is not known
    """
    try:
        version = read_json(folder / CONTENTS, _Version).version
        require(
            version == VERSION,
            f"{what}: {folder} is an export in format {version} of another Sternum version, and this one reads format "
            f"{VERSION}; name {folder / WEIGHTS} with its network, or export it again",
        )
        contents = read_json(folder / CONTENTS, Contents)
        damage = next(filter(None, (_damage(folder, name, contents) for name in (WEIGHTS, PREPARATION))), None)
        require(damage is None, f"{what}: the export {folder} is damaged: {damage}; copy or export it again")
        preparation = read_json(folder / PREPARATION, Preparation)
    except (OSError, BadJson) as error:
        raise UserError(f"{what}: the export {folder} is damaged: {error}; copy or export it again") from error
    require_backbone(contents.network, what)
    return Export(folder, contents, preparation)


def _damage(folder: Path, name: str, contents: Contents) -> str | None:
    """Return how a file differs from its record, or None if it is whole."""
    record = contents.files.get(name)
    if record is None:
        return f"{CONTENTS} does not list {name}"
    size_bytes = regular_size(folder / name)
    if size_bytes != record.size_bytes:
        return f"{name} has {size_bytes} bytes instead of {record.size_bytes}"
    return None if sha256_file(folder / name) == record.sha256 else f"the SHA-256 of {name} differs"


def load_network(export: Export, what: str) -> Network:
    """Return the network of an export for images of one channel, in evaluation mode on the CPU.

    The weights of a stem for three equal channels are summed.

    Args:
        export: the export
        what: the option with its value, for messages

    Raises:
        UserError: if the weights are not those of the network
    """
    network = build_network(export.network, export.preparation.size_px)
    found = fit(read_weights(export.weights, what), network, least_share=1.0)
    lacking = [*found.missing, *found.misshapen]
    require(not lacking, f"{what}: {export.weights} lacks {', '.join(lacking[:3])}; export it again")
    load(found, network.module)
    network.module.eval()
    return network
