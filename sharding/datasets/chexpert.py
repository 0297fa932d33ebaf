"""CheXpert (Irvin et al. 2019), the full and the -small release: train.csv, valid.csv and the images they name."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from infra.errors import UserError
from sharding.datasets.patient_fields import parse_age, sex_of
from sharding.datasets.table import read_table, require_files
from sharding.format.manifest import Rejection
from sharding.format.sample import Sample

OBSERVATIONS: Final = (
    "No Finding",
    "Enlarged Cardiomediastinum",
    "Cardiomegaly",
    "Lung Opacity",
    "Lung Lesion",
    "Edema",
    "Consolidation",
    "Pneumonia",
    "Atelectasis",
    "Pneumothorax",
    "Pleural Effusion",
    "Pleural Other",
    "Fracture",
    "Support Devices",
)
_DETAILS: Final = ("Sex", "Age", "Frontal/Lateral", "AP/PA")
COLUMNS: Final = ("Path", *_DETAILS, *OBSERVATIONS)

_TABLES: Final = {"train.csv": "train", "valid.csv": "val", "test.csv": "test", "test_labels.csv": "test"}
# The first folder is the release's name (`CheXpert-v1.0`, `CheXpert-v1.0-small`), whatever the root is called now.
_PATH: Final = re.compile(
    r"(?:[^/]+/)?((?:train|valid|test)/(patient\d+)/(study\d+)/(view\d+_(?:frontal|lateral))\.(?:jpg|jpeg|png))"
)
_LABELS: Final = {"": None, "1": 1, "1.0": 1, "0": 0, "0.0": 0, "-1": -1, "-1.0": -1}


def read(root: Path) -> Iterator[Sample | Rejection]:
    """Read `train.csv` (split `train`) and, if present, `valid.csv` (`val`) and the test part of a CheXpert release.

    The test part was published later, as `test.csv` or `test_labels.csv`: paths and observations, without sex, age
    and projection. Labels keep upstream's values: 1 present, 0 absent, -1 uncertain, None not mentioned. Age 0 and a
    sex other than Female or Male mean unknown. Rows whose path is not of CheXpert's form are rejected.

    Raises:
        UserError: if `root` has no train.csv, or a table lacks a column or has an invalid label or age
    """
    require_files(root, "chexpert", ("train.csv", "valid.csv"), (root / "train.csv").is_file())
    present = {table: split for table, split in _TABLES.items() if (root / table).is_file()}
    if {"test.csv", "test_labels.csv"} <= present.keys():
        raise UserError(
            f"root={root} has both test.csv and test_labels.csv, two tables of the same part; remove one of them"
        )
    for table, split in present.items():
        optional = (*_DETAILS, "No Finding") if split == "test" else ()
        required = [name for name in COLUMNS if name not in optional]
        for where, cells in read_table(root / table, required, optional):
            yield _sample(where, cells, split)


def _sample(where: str, cells: dict[str, str], split: str) -> Sample | Rejection:
    match = _PATH.fullmatch(cells["Path"])
    if match is None:
        form = "RELEASE/{train,valid,test}/patientN/studyN/viewN_{frontal,lateral}.jpg"
        return Rejection(cells["Path"], f"path is not {form}")
    path, patient, study, view = match.groups()
    return Sample(
        key=f"{patient}_{study}_{view}",
        path=Path(path),
        patient=patient,
        study=study,
        view=_view(cells["Frontal/Lateral"] or view.rpartition("_")[2].capitalize(), cells["AP/PA"]),
        sex=sex_of(cells["Sex"]),
        age=parse_age("Age", cells["Age"], where) or None,
        split=split,
        labels={name: _label(where, name, cells[name]) for name in OBSERVATIONS},
    )


def _view(side: str, projection: str) -> str | None:
    if side == "Lateral":
        return "lateral"
    if side == "Frontal":
        return f"frontal-{projection.lower()}" if projection in ("AP", "PA") else "frontal"
    return None


def _label(where: str, name: str, cell: str) -> int | None:
    if cell not in _LABELS:
        raise UserError(f"{where}: {name}={cell!r} must be 1.0, 0.0, -1.0 or blank; correct the row")
    return _LABELS[cell]
