"""Dataset readers: functions from a dataset's root folder to its samples.

Each reader checks the layout that upstream ships. It raises UserError for a table or folder tree that is not the
dataset or contradicts itself. Every row and every file below the root is a Sample or a Rejection, so that each is
counted; a part of the dataset that is not there at all is a Rejection with the reason ABSENT. Readers decode no images.

A reader with options takes them after the root: the frozen dataclass in OPTIONS, which the configuration holds under
the dataset's name. Every reader takes `follow_links`.
"""

from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from infra.configuration.options import setting
from infra.errors import require
from sharding.datasets import c19_cohen, cell, chestxray14, chexpert, covidgr, dicom, folder, webdataset
from sharding.datasets.cell import CellOptions
from sharding.datasets.dicom import DicomOptions
from sharding.datasets.folder import FolderOptions
from sharding.datasets.webdataset import WebdatasetOptions
from sharding.format.manifest import SET_NAME, SET_NAME_RULE, Rejection
from sharding.format.sample import Sample

READERS: Final[dict[str, Callable[..., Iterator[Sample | Rejection]]]] = {
    "chexpert": chexpert.read,
    "chestxray14": chestxray14.read,
    "cell": cell.read,
    "c19-cohen": c19_cohen.read,
    "covidgr": covidgr.read,
    "folder": folder.read,
    "dicom": dicom.read,
    "webdataset": webdataset.read,
}
ReaderOptions = CellOptions | FolderOptions | DicomOptions | WebdatasetOptions
OPTIONS: Final[dict[str, type[ReaderOptions]]] = {
    "cell": CellOptions,
    "folder": FolderOptions,
    "dicom": DicomOptions,
    "webdataset": WebdatasetOptions,
}


def root_of(dataset: str, root: Path) -> Path:
    """Return the folder that the paths of a dataset's samples are relative to: `root`, but for a part of CheXpert."""
    return chexpert.root_of(root) if dataset == "chexpert" else root


def require_set_name(config: Any, dataset: str) -> None:
    """Raise UserError unless the field `name` can name a set of this dataset; None stands for the dataset's name."""
    name = dataset if config.name is None else config.name
    require(
        SET_NAME.fullmatch(name) is not None, f"{setting(config, 'name')} must have {SET_NAME_RULE}; try hospital-a"
    )
    require(
        name == dataset or name not in READERS,
        f"{setting(config, 'name')} is the name of another dataset; try {name}-{dataset}",
    )


def recorded(options: ReaderOptions) -> dict[str, Any]:
    """Return what the manifest says of a reader's options: everything but secrets."""
    return asdict(options) if isinstance(options, CellOptions) else options.recorded()
