"""CheXpert (Irvin et al. 2019), the full and the -small release: train.csv, valid.csv and the images they name."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from infra.errors import UserError
from infra.storage.files import real_path
from sharding.datasets.files import ABSENT, REPEATED, files_without_row
from sharding.datasets.patient_fields import CellParser
from sharding.datasets.table import OddCells, read_table, require_files
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
    r"(?:[^/]+/)?((train|valid|test)/(patient\d+))/(study\d+)/((view\d+_(?:frontal|lateral))\.(?:jpg|jpeg|png))"
)
_BATCH: Final = re.compile(r"CheXpert-v1\.0 batch \d \(.+\)")
_LABELS: Final = {"": None, "1": 1, "1.0": 1, "0": 0, "0.0": 0, "-1": -1, "-1.0": -1}


def root_of(root: Path) -> Path:
    """Return the folder that the paths of samples are relative to.

    This is `root`, except that the full release is four folders beside each other: `CheXpert-v1.0 batch 1 (validate &
    csv)`, `batch 2 (train 1)` and so on. If `root` is one of them, it is their common parent.
    """
    real = real_path(root)
    return real.parent if _is_batch(real) else root


def read(root: Path, *, follow_links: bool = False) -> Iterator[Sample | Rejection]:
    """Read `train.csv` (split `train`), `valid.csv` (`val`) and, if present, the test part of a CheXpert release.

    Tables and images may be in `root`, or in the four batch folders of the full release, where patients are directly
    in a folder `batch N (train N)`; then `root` is the folder that has the four, or the one with the tables. The test
    part was published later, as `test.csv` or `test_labels.csv`: paths and observations, without sex, age and
    projection. Labels keep upstream's values: 1 present, 0 absent, -1 uncertain, None not mentioned. Age 0 and a sex
    other than Female or Male mean unknown. Rejected are rows whose path is not of CheXpert's form or repeats one, and
    files without a row.

    Raises:
        UserError: if `root` has no train.csv, or a table lacks a column or has an invalid label
    """
    given, root = root, root_of(root)
    batches = sorted(Path(path.name) for path in root.glob("CheXpert-v1.0 batch *") if _is_batch(path))
    places = (Path(), *batches)
    tables = {name: place / name for name in _TABLES for place in places if (root / place / name).is_file()}
    require_files(given, "chexpert", ("train.csv", "valid.csv"), "train.csv" in tables)
    if {"test.csv", "test_labels.csv"} <= tables.keys():
        raise UserError(
            f"root={given} has both test.csv and test_labels.csv, two tables of the same part; remove one of them"
        )
    if "valid.csv" not in tables:
        yield Rejection("valid.csv", ABSENT)
    patients = _patients_in(root, batches)
    parser, wrong_labels = CellParser(), OddCells()
    named = {path.as_posix() for path in tables.values()}
    for name, table in tables.items():
        split = _TABLES[name]
        optional = (*_DETAILS, "No Finding") if split == "test" else ()
        required = [column for column in COLUMNS if column not in optional]
        for where, cells in read_table(root / table, required, optional):
            match = _PATH.fullmatch(cells["Path"])
            if match is None:
                form = "RELEASE/{train,valid,test}/patientN/studyN/viewN_{frontal,lateral}.jpg"
                yield Rejection(cells["Path"] or where, f"path is not {form}")
                continue
            path = patients.get(match[1], Path(match[1])) / match[4] / match[5]
            if path.as_posix() in named:
                yield Rejection(where, REPEATED)
                continue
            named.add(path.as_posix())
            yield Sample(
                key=f"{match[3]}_{match[4]}_{match[6]}",
                path=path,
                patient=match[3],
                study=match[4],
                view=_view(parser, where, cells, match[6]),
                sex=parser.sex("Sex", cells["Sex"], where),
                age=parser.age("Age", cells["Age"], where) or None,
                split=split,
                labels={column: _label(wrong_labels, where, column, cells[column]) for column in OBSERVATIONS},
            )
    wrong_labels.refuse("a label is 1.0, 0.0, -1.0 or blank; correct the rows")
    parser.odd.warn()
    for folder in [Path()] if root == given else batches:
        yield from files_without_row(root, named, folder, follow_links=follow_links)


def _is_batch(folder: Path) -> bool:
    return _BATCH.fullmatch(folder.name) is not None and folder.is_dir()


def _patients_in(root: Path, batches: list[Path]) -> dict[str, Path]:
    """Return the folder of each patient in the batch folders, by the name that tables give it (`train/patientN`).

    The batches of the training part hold its patients directly, the first batch has those of the other in `valid/`.
    """
    patients: dict[str, Path] = {}
    for batch in batches:
        for split, folder in (("train", batch), ("valid", batch / "valid"), ("test", batch / "test")):
            if (root / folder).is_dir():
                names = (path.name for path in (root / folder).iterdir())
                patients |= {f"{split}/{name}": folder / name for name in names}
    return patients


def _view(parser: CellParser, where: str, cells: dict[str, str], file_name: str) -> str | None:
    side = parser.view("Frontal/Lateral", cells["Frontal/Lateral"] or file_name.rpartition("_")[2], where)
    projection = parser.view("AP/PA", cells["AP/PA"], where)
    return projection if side == "frontal" and projection in ("frontal-ap", "frontal-pa") else side


def _label(wrong: OddCells, where: str, name: str, cell: str) -> int | None:
    if cell not in _LABELS:
        wrong.add(name, cell, where)
    return _LABELS.get(cell)
