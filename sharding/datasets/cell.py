"""The pediatric pneumonia radiographs of Kermany et al. 2018 ("Cell" in the paper): folders of split and class."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from sharding.datasets.files import ABSENT, visible_files
from sharding.datasets.table import require_files
from sharding.format.manifest import Rejection
from sharding.format.sample import Sample

SPLITS: Final = ("train", "val", "test")
CLASSES: Final = ("NORMAL", "PNEUMONIA")

# `person1_bacteria_2`, `IM-0115-0001`, `NORMAL2-IM-1440-0001-0002`, and the later release's `BACTERIA-1008087-0001`.
_PATIENT: Final = re.compile(
    r"(?P<patient>person\d+_(?:bacteria|virus)|(?:NORMAL2-)?IM-\d+|(?:BACTERIA|VIRUS|NORMAL)-\d+)(?:[_-]\d+)+"
)
_PATHOGEN: Final = re.compile(r"_(?:bacteria|virus)$|^(?:BACTERIA|VIRUS)-")


@dataclass(frozen=True)
class CellOptions:
    """The grouping of images into patients.

    Args:
        patients: whether person12_bacteria_34 and person12_virus_56 count as two patients (by_name) or as one
            (by_number; 170 patients are then in both train and test); upstream does not say
    """

    patients: Literal["by_name", "by_number"] = "by_name"


def read(root: Path, options: CellOptions, *, follow_links: bool = False) -> Iterator[Sample | Rejection]:
    """Read `{train,val,test}/{NORMAL,PNEUMONIA}/*` with either release's file names.

    Upstream does not say whether `person12_bacteria_34` and `person12_virus_56` show one child. By name (the lenient
    grouping) they are two patients, and no patient is in two official splits; by number (the strict one) they are
    one, and 170 patients are. `IM-0383-0001` and `NORMAL2-IM-0383-0001` are two patients either way. Rejected are files
    whose name does not identify a patient or that are elsewhere, and each class of a split that has no image.

    Raises:
        UserError: if `root` has none of the split folders
    """
    classes = {f"{split}/{name}": name for split in SPLITS for name in CLASSES}
    is_any = any((root / split).is_dir() for split in SPLITS)
    require_files(root, "cell", [f"{folder}/" for folder in classes], is_any)
    absent = dict.fromkeys(classes)
    for path in visible_files(root, follow_links=follow_links):
        if isinstance(path, Rejection):
            yield path
        elif (folder := path.parent.as_posix()) not in classes:
            yield Rejection(path.as_posix(), f"not in a folder {'/'.join(SPLITS)} and then {'/'.join(CLASSES)}")
        elif (match := _PATIENT.fullmatch(path.stem)) is None:
            yield Rejection(path.as_posix(), "file name does not identify a patient")
        else:
            absent.pop(folder, None)
            yield Sample(
                key=f"{folder.replace('/', '_')}_{path.stem}",
                path=path,
                patient=match["patient"] if options.patients == "by_name" else _PATHOGEN.sub("", match["patient"]),
                split=path.parts[0],
                labels={name: int(name == classes[folder]) for name in CLASSES},
            )
    yield from (Rejection(folder, ABSENT) for folder in absent)
