"""ChestX-ray14 (Wang et al. 2017, NIH): Data_Entry_2017.csv and one or twelve folders of PNG images."""

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from infra.errors import UserError
from sharding.datasets.patient_fields import parse_age, sex_of, view_of
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


def read(root: Path) -> Iterator[Sample | Rejection]:
    """Read the table (first or v2020 release) of ChestX-ray14, rows in any order.

    Images may be in `images/` and `images_*/images/`; a row without one is rejected when it is packed. The split is
    `train` or `test` if `train_val_list.txt` and `test_list.txt` are next to the table, otherwise None. Ages such as
    `058Y`, `011M` and `003D` become years; impossible ones become None. Each follow-up is a study.

    Raises:
        UserError: if `root` is not this dataset, lacks a column, or has a cell that upstream does not use
    """
    table = next((root / name for name in _TABLES if (root / name).is_file()), None)
    images = _images(root)
    looked_for = (" or ".join(_TABLES), "images/ or images_001/images/ ...")
    require_files(root, "chestxray14", looked_for, table is not None and images is not None)
    assert table is not None and images is not None, "require_files has raised otherwise"
    splits = _splits(root)
    for where, cells in read_table(table, COLUMNS):
        name = cells["Image Index"]
        yield Sample(
            key=Path(name).stem,
            path=images.get(name, Path("images") / name),
            patient=cells["Patient ID"].lstrip("0") or "0",
            study=cells["Follow-up #"],
            view=view_of(cells["View Position"]),
            sex=sex_of(cells["Patient Gender"]),
            age=parse_age("Patient Age", cells["Patient Age"], where),
            split=splits.get(name),
            labels=_labels(where, cells["Finding Labels"]),
        )


def _images(root: Path) -> dict[str, Path] | None:
    """Return image name -> path relative to `root`, None without a folder of images."""
    folders = [folder for folder in (root / "images", *sorted(root.glob("images_*/images"))) if folder.is_dir()]
    paths: dict[str, Path] = {}
    for folder in folders:
        for file in folder.iterdir():
            path = file.relative_to(root)
            if paths.setdefault(file.name, path) != path:
                raise UserError(f"image {file.name} exists twice, as {paths[file.name]} and {path}; remove one of them")
    return paths if folders else None


def _splits(root: Path) -> dict[str, str]:
    return {
        name: split
        for list_name, split in _LISTS.items()
        if (root / list_name).is_file()
        for name in (root / list_name).read_text(encoding="utf-8", errors="replace").split()
    }


def _labels(where: str, cell: str) -> dict[str, int | None]:
    present = cell.split("|")
    unknown = [name for name in present if name not in FINDINGS]
    if unknown:
        raise UserError(f"{where}: finding {unknown[0]!r} is not one of {', '.join(FINDINGS)}; correct the row")
    return {name: int(name in present) for name in FINDINGS}
