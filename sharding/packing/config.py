"""The options of packing, and their checks."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

from infra.configuration.options import (
    key,
    require_at_least,
    require_between,
    require_cluster,
    require_positive,
    require_seed,
    require_workers,
    setting,
)
from infra.errors import require
from infra.urls import Location, require_no_credentials, scheme_of, shown
from sharding.datasets import OPTIONS, READERS, require_set_name
from sharding.datasets.cell import CellOptions
from sharding.datasets.dicom import DicomOptions
from sharding.datasets.folder import FolderOptions
from sharding.datasets.label_table import DICOM_JOINS, LabelOptions
from sharding.datasets.webdataset import WebdatasetOptions

_MAX_SIDE_PX: Final = 8192
_SCHEMES: Final = ("http", "https", "s3", "gs")  # of tars that are downloaded


@dataclass(frozen=True)
class PackConfig:
    """A dataset to pack, its destination, and the encoding.

    Args:
        dataset: name of the dataset: chexpert, chestxray14, cell, c19-cohen, covidgr, folder, dicom or webdataset
        root: folder with the dataset as published; Sternum never writes to it; for webdataset also a URL: a folder in
            an object store, or tars such as https://SERVER/{00000..00009}.tar
        out: folder for the shards, or the URL of one in an object store, such as s3://BUCKET/FOLDER; new, empty,
            or from an earlier start of the same command, which then resumes
        shorter_side_px: shorter side of the packed images in pixels, 16 to 8192; images are reduced, never enlarged
        image_format: jpeg, or png, which is lossless and takes three to five times the space
        jpeg_quality: JPEG quality, 1 to 100
        pass_through: copy gray 8-bit JPEGs unchanged if they are small enough and hold only pixels
        shard_size_mb: largest size of a shard in 10^6 bytes; a larger sample gets a shard of its own
        shard_samples: largest number of samples in a shard; null for as many as shard_size_mb allows
        seed: determines the order of the samples, and the patients in the fractions of 1 % and 10 %
        name: name of the set, by default the dataset's; give the images of each hospital their own, because equal file
            names and patient numbers mean the same image and patient only in sets of one name
        exclude: audit.json of an audit of this set; of images that show the same picture, only the one that the audit
            lets stay is packed
        workers: number of encoding processes; 0 means one for each CPU; does not change the shards
        address: Ray cluster that encodes instead of this machine, such as auto or ray://head:10001; its nodes must see
            root under the same path; does not change the shards
        follow_links: also pack files that symbolic links reach outside of root; they are rejected by default, since an
            archive from elsewhere may link to any of your files
        allow_missing: also pack a dataset of which a split, a class or more than 1 % of the files are missing
        labels: labels from a table of their own, for any dataset
        cell: for dataset cell only: how images are grouped into patients
        folder: for dataset folder only: a table that describes the images, and its column names
        dicom: for dataset dicom only: the key of the pseudonyms, and what to do with files that are not de-identified
        webdataset: for dataset webdataset only: which members and JSON fields are the image, patient, split and labels
    """

    dataset: str
    root: Location
    out: Location
    shorter_side_px: int = 320
    image_format: Literal["jpeg", "png"] = "jpeg"
    jpeg_quality: int = 90
    pass_through: bool = False
    shard_size_mb: float = 256
    shard_samples: int | None = None
    seed: int = 0
    name: str | None = None
    exclude: Path | None = None
    workers: int = 0
    address: str | None = None
    follow_links: bool = False
    allow_missing: bool = False
    labels: LabelOptions = field(default_factory=LabelOptions)
    cell: CellOptions = field(default_factory=CellOptions)
    folder: FolderOptions = field(default_factory=FolderOptions)
    dicom: DicomOptions = field(default_factory=DicomOptions)
    webdataset: WebdatasetOptions = field(default_factory=WebdatasetOptions)

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            UserError: if a value is out of range, or two values exclude each other
        """
        require(self.dataset in READERS, f"{setting(self, 'dataset')} is unknown; use one of {', '.join(READERS)}")
        require_set_name(self, self.dataset)
        self._check_root()
        require_between(self, "shorter_side_px", 16, _MAX_SIDE_PX, "try 320")
        require_between(self, "jpeg_quality", 1, 100, "try 90")
        require(
            not (self.pass_through and self.image_format == "png"),
            f"{key(self, 'pass_through')}=true copies JPEGs, so it excludes {setting(self, 'image_format')}; "
            "leave out one of the two",
        )
        require_positive(self, "shard_size_mb", "try 256")
        require_at_least(self, "shard_samples", 1, "or use null")
        require_seed(self)
        require_workers(self)
        require_cluster(self)
        require(
            self.dataset == "dicom" or self.labels.join not in DICOM_JOINS,
            f"{setting(self.labels, 'join')} is for dataset dicom, not {self.dataset}; join by key or path",
        )
        for name, options in OPTIONS.items():
            is_unused = self.dataset != name and getattr(self, name) != options()
            require(
                not is_unused,
                f"{key(self, name)}.* are options of dataset {name}, not of {self.dataset}; leave them out",
            )

    def _check_root(self) -> None:
        """Raise UserError unless the root is a folder, or a URL that can be downloaded."""
        download = self.webdataset.download
        if not self.is_remote:
            require(
                download is None, f"{setting(self.webdataset, 'download')} is for a {key(self, 'root')} that is a URL"
            )
            return
        require_no_credentials(self.root, key(self, "root"))
        require(
            self.dataset == "webdataset" and scheme_of(self.root) in _SCHEMES,
            f"{key(self, 'root')}={shown(self.root)} must be a path on this machine, not a URL, except for dataset "
            f"webdataset, whose tars may be at {', '.join(_SCHEMES[:-1])} or {_SCHEMES[-1]}",
        )
        require(
            download is not None,
            f"{key(self, 'root')}={shown(self.root)} is a URL, so its tars are downloaded first; name a folder that "
            f"keeps them: --{key(self.webdataset, 'download')}=FOLDER",
        )

    @property
    def is_remote(self) -> bool:
        """Whether the root is a URL."""
        return scheme_of(self.root) is not None

    @property
    def source(self) -> Path:
        """The local folder with the dataset: the root, or where its tars are downloaded to."""
        return self.webdataset.download or Path(self.root)

    @property
    def set_name(self) -> str:
        """The name of the set, of which identities and shard names are made."""
        return self.dataset if self.name is None else self.name
