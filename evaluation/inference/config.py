"""The options of `sternum embed` and `sternum predict`, and their checks."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from evaluation.data.backbones.opened import InputOptions
from evaluation.inference.embedder import LOCAL_BATCH, ExecutorName
from evaluation.results.presets import PresetName
from infra.configuration.options import key, require_at_least, require_cluster, require_workers, setting
from infra.errors import require
from infra.urls import Location, require_no_credentials
from sharding.datasets import require_set_name
from sharding.reading.fetch import FetchConfig
from ssl_core.views.parameters import Fit

PREDICTION_SUFFIXES: Final = (".csv", ".json")
DICOM: Final = "dicom"  # the dataset as which DICOM files are packed


@dataclass(frozen=True)
class RemoteData:
    """Shards on other machines.

    Args:
        fetch: how remote shards are downloaded and cached
    """

    fetch: FetchConfig = field(default_factory=FetchConfig)


@dataclass(frozen=True)
class EmbedConfig:
    """The images to embed, the backbone, and the file to write.

    Args:
        source: folders or URLs of shards; or image files and folders of them: JPEG, PNG, TIFF, WebP, BMP or DICOM
        backbone: a run (its newest checkpoint), a checkpoint, an export, published weights in the cache such as
            torchvision/resnet50.IMAGENET1K_V2, FILE@NETWORK, or a transformers folder
        out: the file to write, .parquet, .csv or .npz; an existing one is replaced
        probe_fit: how an image that is not square becomes a square: pad repeats its border beside it, squash scales
            each side alone, square keeps the center; by default what an export says, else pad
        mirrored: average the features of an image and of its mirror image
        executor: library that decodes: dali, torchvision, or auto (DALI if it is installed)
        local_batch: images that go through the backbone at once
        workers: processes that prepare image files; 0 means one for each CPU; does not change the features
        address: Ray cluster that embeds instead of this machine, such as auto or ray://head:10001; its nodes must see
            the images under the same paths; machines of one kind give the same features
        follow_links: also read files that symbolic links reach outside of a folder
        pseudonym_key: key of the pseudonyms with which sternum shard dicom packs; DICOM files then have its keys and
            patients instead of their paths
        name: name of the set of DICOM files, as in sternum shard dicom --name; by default the dataset's, dicom
        input: images that the backbone takes, in place of what is known of it
        data: how remote shards are read
    """

    source: list[Location]
    backbone: str
    out: Path
    probe_fit: Fit | None = None
    mirrored: bool = False
    executor: ExecutorName = "auto"
    local_batch: int = LOCAL_BATCH
    workers: int = 0
    address: str | None = None
    follow_links: bool = False
    pseudonym_key: Path | None = None
    name: str | None = None
    input: InputOptions = field(default_factory=InputOptions)
    data: RemoteData = field(default_factory=RemoteData)

    def __post_init__(self) -> None:
        """Raise UserError for a value out of range, or a URL with credentials."""
        require(bool(self.source), f"{key(self, 'source')} must name shards, image files or folders of them")
        for location in self.source:
            require_no_credentials(location, key(self, "source"))
        require(
            self.name is None or self.pseudonym_key is not None,
            f"{setting(self, 'name')} is for DICOM files with pseudonyms; name their key too: "
            f"{key(self, 'pseudonym_key')}",
        )
        require_set_name(self, DICOM)
        require_at_least(self, "local_batch", 1, f"try {LOCAL_BATCH}")
        require_workers(self)
        require_cluster(self)


@dataclass(frozen=True)
class PredictConfig:
    """The images to score, the probe, and the file to write.

    Args:
        images: image files and folders of them (JPEG, PNG, TIFF, WebP, BMP or DICOM); or folders or URLs of shards
        probe: RUN:TASK, the folder of a run that was probed and the name of a task in its tables
        out: a .csv or .json file to write; by default CSV on standard output
        maps: folder for a picture of each image and question that shows where the image holds the evidence for the
            decision; a new or empty folder, or that of an earlier prediction, which is replaced
        preset: gazda2021 or rigorous; by default rigorous, if the run was probed by it
        features: name of a row in the tables, a checkpoint or a compared backbone; by default the last checkpoint
        workers: processes that prepare image files; 0 means one for each CPU; does not change the scores
        follow_links: also read files that symbolic links reach outside of a folder
        data: how remote shards are read
    """

    images: list[Location]
    probe: str
    out: Path | None = None
    maps: Path | None = None
    preset: PresetName | None = None
    features: str | None = None
    workers: int = 0
    follow_links: bool = False
    data: RemoteData = field(default_factory=RemoteData)

    def __post_init__(self) -> None:
        """Raise UserError for a value out of range, or a URL with credentials."""
        require(bool(self.images), f"{key(self, 'images')} must name image files, folders of them, or shards")
        for location in self.images:
            require_no_credentials(location, key(self, "images"))
        require(
            self.out is None or self.out.suffix in PREDICTION_SUFFIXES,
            f"{key(self, 'out')}={self.out} must end with {' or '.join(PREDICTION_SUFFIXES)}; try scores.csv",
        )
        require_workers(self)
