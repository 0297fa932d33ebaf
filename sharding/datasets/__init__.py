"""Readers: each a function from a dataset's root folder to its samples, checked against the layout upstream ships.

A table or folder tree that is not the dataset, or that contradicts itself, is a UserError; a single row or file that
names no packable image is a Rejection, so that it is counted and not lost. Readers decode no image.

A reader that has options takes them behind the root: the frozen dataclass that OPTIONS names, which the configuration
holds under the name of the dataset.
"""

from collections.abc import Callable, Iterator
from typing import Final

from sharding.datasets import c19_cohen, cell, chestxray14, chexpert, covidgr, dicom, folder
from sharding.datasets.cell import CellOptions
from sharding.datasets.dicom import DicomOptions
from sharding.datasets.folder import FolderOptions
from sharding.format.manifest import Rejection
from sharding.format.sample import Sample

# A root that holds this file was drawn by a program (sharding.simulation.datasets), whatever dataset it looks like.
SIMULATED_MARKER: Final = "SIMULATED.txt"

READERS: Final[dict[str, Callable[..., Iterator[Sample | Rejection]]]] = {
    "chexpert": chexpert.read,
    "chestxray14": chestxray14.read,
    "cell": cell.read,
    "c19-cohen": c19_cohen.read,
    "covidgr": covidgr.read,
    "folder": folder.read,
    "dicom": dicom.read,
}
ReaderOptions = CellOptions | FolderOptions | DicomOptions
OPTIONS: Final[dict[str, type[ReaderOptions]]] = {
    "cell": CellOptions,
    "folder": FolderOptions,
    "dicom": DicomOptions,
}
