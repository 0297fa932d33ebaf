"""ChestX-ray14 (Wang et al. 2017, NIH): Data_Entry_2017.csv and one or twelve folders of PNG images."""

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from infra.errors import UserError
from infra.log import say
from sharding.datasets.files import ABSENT, NO_PATH, NO_PATIENT, REPEATED, files_without_row, visible_files
from sharding.datasets.patient_fields import CellParser, identifier_of
from sharding.datasets.table import OddCells, read_list, read_table, require_files
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
_IMAGES: Final = re.compile(r"images|images_[^/]*/images")
_LISTS: Final = {"train_val_list.txt": "train", "test_list.txt": "test"}


def read(root: Path, *, follow_links: bool = False) -> Iterator[Sample | Rejection]:
    """Read the table (first or v2020 release) of ChestX-ray14, rows in any order.

    Images may be in `images/` and `images_*/images/`; a row without one is rejected when it is packed. The split is
    `train` or `test` if `train_val_list.txt` and `test_list.txt` are next to the table, otherwise None. Ages such as
    `058Y`, `011M` and `003D` become years; impossible ones become None. Each follow-up is a study. Rejected are rows
    without an image or a patient or that repeat an image, files without a row, and a list that is missing beside the
    other one or names no image of the table.

    Raises:
        UserError: if `root` is not this dataset, lacks a column, or has a finding that upstream does not use; if an
            image exists twice or is in both lists, or the lists name no image of the table
    """
    table = next((root / name for name in _TABLES if (root / name).is_file()), None)
    has_images = any(folder.is_dir() for folder in (root / "images", *root.glob("images_*/images")))
    looked_for = (" or ".join(_TABLES), "images/ or images_001/images/ ...")
    require_files(root, "chestxray14", looked_for, table is not None and has_images)
    assert table is not None, "require_files has raised otherwise"
    images = _images(root, follow_links)
    splits = _splits(root)
    parser, wrong_findings = CellParser(), OddCells()
    named: set[str] = set()
    claimed = {table.name, *_present_lists(root)}
    for where, cells in read_table(table, COLUMNS):
        name = cells["Image Index"]
        path = images.get(name, Path("images") / name)
        patient = identifier_of(cells["Patient ID"].lstrip("0") or cells["Patient ID"][-1:])
        if not name or name in named:
            yield Rejection(where, REPEATED if name else NO_PATH)
            continue
        named.add(name)
        claimed.add(path.as_posix())
        if patient is None:
            yield Rejection(path.as_posix(), NO_PATIENT)
            continue
        yield Sample(
            key=Path(name).stem,
            path=path,
            patient=patient,
            study=identifier_of(cells["Follow-up #"]),
            view=parser.view("View Position", cells["View Position"], where),
            sex=parser.sex("Patient Gender", cells["Patient Gender"], where),
            age=parser.age("Patient Age", cells["Patient Age"], where),
            split=splits.get(name),
            labels=_labels(wrong_findings, where, cells["Finding Labels"]),
        )
    wrong_findings.refuse(f"a finding is one of {', '.join(FINDINGS)}; correct the rows")
    parser.odd.warn()
    yield from (Rejection(name, ABSENT) for name in _unused_lists(table, splits, named))
    yield from files_without_row(root, claimed, follow_links=follow_links)


def _images(root: Path, follow_links: bool) -> dict[str, Path]:
    """Return image name -> path relative to `root`."""
    paths: dict[str, Path] = {}
    files = (item for item in visible_files(root, follow_links=follow_links) if isinstance(item, Path))
    for path in (path for path in files if _IMAGES.fullmatch(path.parent.as_posix())):
        if paths.setdefault(path.name, path) != path:
            raise UserError(f"image {path.name} exists twice, as {paths[path.name]} and {path}; remove one of them")
    return paths


def _present_lists(root: Path) -> list[str]:
    return [name for name in _LISTS if (root / name).is_file()]


def _splits(root: Path) -> dict[str, str]:
    """Return image name -> split, empty without the lists."""
    splits: dict[str, str] = {}
    in_both: list[str] = []
    for list_name in _present_lists(root):
        names, split = read_list(root / list_name), _LISTS[list_name]
        in_both += [name for name in names if splits.get(name, split) != split]
        splits |= dict.fromkeys(names, split)
    if in_both:
        raise UserError(
            f"{len(in_both)} image(s) are in both {' and '.join(_LISTS)} of root={root}, such as {in_both[0]}; "
            "use the lists that upstream ships"
        )
    return splits


def _unused_lists(table: Path, splits: dict[str, str], named: set[str]) -> list[str]:
    """Return the lists that name no image of the table, and report names without a row and rows without a split."""
    if not splits:  # there is no list, or every one is empty
        return _present_lists(table.parent)
    present = Counter(split for name, split in splits.items() if name in named)
    without_split, without_row = len(named - splits.keys()), len(splits.keys() - named)
    if named and not present:
        raise UserError(
            f"{' and '.join(_LISTS)} name no image of {table}, but {next(iter(splits))} and others; remove the lists, "
            "or use those that upstream ships with the table"
        )
    if without_split or without_row:
        say(
            f"warning: {without_split} images of {table.name} are in neither {' nor '.join(_LISTS)}, so they have no "
            f"split; {without_row} names in the lists have no row in it"
        )
    return [name for name, split in _LISTS.items() if not present[split]]


def _labels(wrong: OddCells, where: str, cell: str) -> dict[str, int | None]:
    present = [name.strip() for name in cell.split("|") if name.strip()]
    for name in present:
        if name not in FINDINGS:
            wrong.add("Finding Labels", name, where)
    return {name: int(name in present) if present else None for name in FINDINGS}
