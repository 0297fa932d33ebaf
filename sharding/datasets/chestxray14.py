"""ChestX-ray14 (Wang et al. 2017, NIH): Data_Entry_2017.csv and one or twelve folders of PNG images."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from infra.errors import UserError
from sharding.datasets.table import read_table, require_files
from sharding.format.manifest import Rejection
from sharding.format.sample import Sample

FINDINGS: Final = (
    "Atelectasis",
    "Cardiomegaly",
    "Effusion",
    "Infiltration",
    "Mass",
    "Nodule",
    "Pneumonia",
    "Pneumothorax",
    "Consolidation",
    "Edema",
    "Emphysema",
    "Fibrosis",
    "Pleural_Thickening",
    "Hernia",
    "No Finding",
)
COLUMNS: Final = (
    "Image Index",
    "Finding Labels",
    "Follow-up #",
    "Patient ID",
    "Patient Age",
    "Patient Gender",
    "View Position",
)
_TABLES: Final = ("Data_Entry_2017.csv", "Data_Entry_2017_v2020.csv")
_LISTS: Final = {"train_val_list.txt": "train", "test_list.txt": "test"}
_AGE: Final = re.compile(r"(\d+)([YMD]?)")
_UNITS_PER_YEAR: Final = {"": 1, "Y": 1, "M": 12, "D": 365}
_OLDEST_YEARS: Final = 120  # the first table has typing errors up to 414 years


def read(root: Path) -> Iterator[Sample | Rejection]:
    """Read the table (first or v2020 release) of ChestX-ray14, rows in any order.

    Images are looked for in `images/` and `images_*/images/`; a row without one is rejected when it is packed. The
    split is `train` or `test` where `train_val_list.txt` and `test_list.txt` stand beside the table, else None. Ages
    such as `058Y`, `011M` and `003D` become years; impossible ones become None. Each follow-up is a study. Raises
    UserError when `root` is not this dataset, and for a missing column or a cell that upstream does not use.
    """
    table = next((root / name for name in _TABLES if (root / name).is_file()), None)
    images = _images(root)
    looked_for = (" or ".join(_TABLES), "images/ or images_001/images/ ...")
    require_files(root, "chestxray14", looked_for, table is not None and images is not None)
    assert table is not None and images is not None, "require_files raises otherwise"
    splits = _splits(root)
    for where, cells in read_table(table, COLUMNS):
        name = cells["Image Index"]
        yield Sample(
            key=Path(name).stem,
            path=images.get(name, Path("images") / name),
            patient=cells["Patient ID"].lstrip("0") or "0",
            study=cells["Follow-up #"],
            view={"PA": "frontal-pa", "AP": "frontal-ap"}.get(cells["View Position"]),
            sex={"M": "M", "F": "F"}.get(cells["Patient Gender"]),
            age=_age(where, cells["Patient Age"]),
            split=splits.get(name),
            labels=_labels(where, cells["Finding Labels"]),
        )


def _images(root: Path) -> dict[str, Path] | None:
    """Return image name -> path relative to `root`, or None when there is no folder of images."""
    folders = [folder for folder in (root / "images", *sorted(root.glob("images_*/images"))) if folder.is_dir()]
    found: dict[str, Path] = {}
    for folder in folders:
        for file in folder.iterdir():
            path = file.relative_to(root)
            if found.setdefault(file.name, path) != path:
                raise UserError(f"image {file.name} stands in {found[file.name]} and {path}; remove one of them")
    return found if folders else None


def _splits(root: Path) -> dict[str, str]:
    return {
        name: split
        for list_name, split in _LISTS.items()
        if (root / list_name).is_file()
        for name in (root / list_name).read_text(encoding="utf-8", errors="replace").split()
    }


def _age(where: str, cell: str) -> float | None:
    match = _AGE.fullmatch(cell)
    if match is None:
        raise UserError(f"{where}: Patient Age={cell!r} must be years, or like 058Y, 011M or 003D; mend the row")
    years = int(match[1]) / _UNITS_PER_YEAR[match[2]]
    return years if years <= _OLDEST_YEARS else None


def _labels(where: str, cell: str) -> dict[str, int | None]:
    present = cell.split("|")
    unknown = [name for name in present if name not in FINDINGS]
    if unknown:
        raise UserError(f"{where}: finding {unknown[0]!r} is not one of {', '.join(FINDINGS)}; mend the row")
    return {name: int(name in present) for name in FINDINGS}
