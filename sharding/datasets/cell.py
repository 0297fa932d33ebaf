"""The pediatric pneumonia radiographs of Kermany et al. 2018 ("Cell" in the paper): folders of split and class."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from infra.errors import UserError
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


def read(root: Path, options: CellOptions) -> Iterator[Sample | Rejection]:
    """Read `{train,val,test}/{NORMAL,PNEUMONIA}/*` with either release's file names.

    Upstream does not say whether `person12_bacteria_34` and `person12_virus_56` show one child. By name (the lenient
    grouping) they are two patients, and no patient is in two official splits; by number (the strict one) they are
    one, and 170 patients are. `IM-0383-0001` and `NORMAL2-IM-0383-0001` are two patients either way. A file whose
    name does not identify a patient is rejected; hidden files are not part of the dataset.

    Raises:
        UserError: if `root` has none of the split folders, or one of them lacks a class
    """
    present = [split for split in SPLITS if (root / split).is_dir()]
    require_files(root, "cell", [f"{split}/{name}/" for split in SPLITS for name in CLASSES], bool(present))
    for split in present:
        for name in CLASSES:
            if not (root / split / name).is_dir():
                raise UserError(f"root={root} is not dataset 'cell': {split}/ lacks the folder {name}/; restore it")
        for path in sorted((root / split).iterdir()):
            if path.name in CLASSES:
                yield from _read_class(root, split, path.name, options)
            elif not path.name.startswith("."):
                yield Rejection(path.relative_to(root).as_posix(), f"not in a folder {' or '.join(CLASSES)}")


def _read_class(root: Path, split: str, class_name: str, options: CellOptions) -> Iterator[Sample | Rejection]:
    for file in sorted((root / split / class_name).iterdir()):
        if file.name.startswith("."):
            continue
        path = file.relative_to(root)
        match = _PATIENT.fullmatch(file.stem)
        if match is None:
            yield Rejection(path.as_posix(), "file name does not identify a patient")
            continue
        yield Sample(
            key=f"{split}_{class_name}_{file.stem}",
            path=path,
            patient=match["patient"] if options.patients == "by_name" else _PATHOGEN.sub("", match["patient"]),
            split=split,
            labels={name: int(name == class_name) for name in CLASSES},
        )
