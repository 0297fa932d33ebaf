"""Your own images: a folder for each class, or a table with columns of any name."""

import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from infra.configuration.options import key, require_described, setting
from infra.errors import UserError, require
from infra.log import say
from infra.storage.files import real_path
from sharding.datasets.files import (
    LINK_OUT,
    LINK_TO_FOLDER,
    NO_PATH,
    NO_PATIENT,
    NO_ROW,
    REPEATED,
    UNUSED_TABLE,
    files_without_row,
    visible_files,
)
from sharding.datasets.labels import LabelParser, Labels
from sharding.datasets.patient_fields import SPLITS, CellParser, identifier_of, split_of
from sharding.datasets.table import OddCells, read_table, require_files
from sharding.format.manifest import Rejection
from sharding.format.sample import Sample, key_of_path

_COLUMNS: Final = ("path", "patient", "split", "view", "sex", "age", "study", "day")


@dataclass(frozen=True)
class FolderOptions:
    """A table that describes the images, and the names of its columns.

    Args:
        csv: path of the table, relative to root unless it begins with / or ~; without a table, images must be at
            [SPLIT/]CLASS/IMAGE
        path: column with the image's path, relative to root
        patient: column with the patient; without it, each image counts as a separate patient
        split: column with the split: train, val, test or blank
        label: column with the class, one name per image; blank if unknown
        view: column with the view, such as PA, AP or LATERAL; blank if unknown
        sex: column with the sex, F or M; blank, O or U if unknown
        age: column with the age in years, or as 058Y, 011M, 004W, 003D; blank if unknown
        study: column with the examination, unique within a patient; blank if unknown
        day: column with the day of the examination, a number of days from any start that is the patient's own, such as
            the first examination; no dates, since shards hold none
        label_separator: text between the names in the label column if an image may have several, such as |
        labels: columns with one label each: 1, 0, -1 (uncertain) or blank (unknown)
    """

    csv: Path | None = None
    path: str = "path"
    patient: str | None = None
    split: str | None = None
    label: str | None = None
    view: str | None = None
    sex: str | None = None
    age: str | None = None
    study: str | None = None
    day: str | None = None
    label_separator: str | None = None
    labels: list[str] | None = None

    def __post_init__(self) -> None:
        """Check that columns come with a table, and a separator with a column.

        Raises:
            UserError: if they do not
        """
        require_described(self, "csv", "table")
        require(
            self.label_separator is None or (self.label_separator.strip() != "" and self.label is not None),
            f"{setting(self, 'label_separator')} is between classes; name their column too: {key(self, 'label')}",
        )

    def recorded(self) -> dict[str, Any]:
        """Return what the manifest says of these options."""
        return asdict(self) | {"csv": None if self.csv is None else str(self.csv)}


def read(root: Path, options: FolderOptions, *, follow_links: bool = False) -> Iterator[Sample | Rejection]:
    """Read `split/class/*` or `class/*`, or the rows of a table.

    Each class becomes a label, 1 for its images and 0 for all others; a table may also have columns with one label each
    (`sharding.datasets.labels`). Without a table, the top folders are either all splits (train or training, val or
    valid or validation, test or testing) or all classes; a file at another depth is rejected. With a table, rows
    without a path or a patient, rows that repeat a path, and files without a row are rejected. Tables that are not used
    are named as such. A view, sex or age that means nothing is unknown; one warning lists all of them.

    Raises:
        UserError: if `root` has neither layout, or the table lacks a column or has a split that means nothing
    """
    if options.csv is not None:
        require_files(root, "folder", (str(options.csv),), (root / options.csv).is_file())
        items = _read_table(root, root / options.csv, options, follow_links)
    else:
        items = _read_tree(root, follow_links)
    yield from items
    if options.patient is None:
        table = "" if options.csv else f"a table of the images, {key(options, 'csv')}, with "
        say(
            "warning: the images have no patients, so each counts as a separate patient, in splits and in confidence "
            f"intervals; name {table}the patient column: {key(options, 'patient')}"
        )


def _read_tree(root: Path, follow_links: bool) -> Iterator[Sample | Rejection]:
    parents: set[tuple[str, ...]] = set()
    link: str | None = None
    for item in visible_files(root, follow_links=follow_links) if root.is_dir() else ():
        if isinstance(item, Path):
            parents.add(item.parent.parts)
        elif item.reason in (LINK_OUT, LINK_TO_FOLDER):
            link = link or item.path
    tops = sorted({parts[0] for parts in parents if parts})
    if link and not tops:
        raise UserError(f"root={root} has no folder of images, but links such as {link}; name the real folder")
    require_files(root, "folder", ("[SPLIT/]CLASS/IMAGE",), bool(tops))
    splits = [name for name in tops if split_of(name)]
    if splits and splits != tops:
        other = next(name for name in tops if name not in splits)
        raise UserError(f"root={root} has the split {splits[0]}/ and {other}/, which is not a split; move one of them")
    depth = 2 if splits else 1
    classes = sorted({parts[-1] for parts in parents if len(parts) == depth})
    for path in visible_files(root, follow_links=follow_links):
        if isinstance(path, Rejection):
            yield path
        elif _is_table(path):
            yield Rejection(path.as_posix(), UNUSED_TABLE)
        elif len(path.parent.parts) != depth:
            yield Rejection(path.as_posix(), f"not at {'SPLIT/CLASS/IMAGE' if splits else 'CLASS/IMAGE'}")
        else:
            yield Sample(
                key=key_of_path(path),
                path=path,
                patient=path.as_posix(),
                split=split_of(path.parts[0]) if splits else None,
                labels={name: int(name == path.parent.name) for name in classes},
            )


def _read_table(root: Path, table: Path, options: FolderOptions, follow_links: bool) -> Iterator[Sample | Rejection]:
    columns = {name: getattr(options, name) for name in _COLUMNS if getattr(options, name) is not None}
    option_keys = {column: key(options, name) for name, column in columns.items()}
    label_keys = dict.fromkeys(options.labels or (), key(options, "labels"))
    label_keys |= {options.label: key(options, "label")} if options.label else {}
    label_parser = LabelParser(options.labels or (), options.label, options.label_separator, label_keys)
    read, read_keys = [*option_keys, *label_keys], option_keys | label_keys
    label_parser.find_classes(read_table(table, read, options=read_keys) if options.label else ())
    parser, odd_splits = CellParser(), OddCells()
    named: dict[str, Labels | None] = {_below(root, str(table.absolute())).as_posix(): None}
    for where, by_column in read_table(table, read, options=read_keys):
        cells = dict.fromkeys(_COLUMNS, "") | {name: by_column[column] for name, column in columns.items()}
        path = _below(root, cells["path"])
        patient = identifier_of(cells["patient"]) if options.patient else path.as_posix()
        if not cells["path"]:
            yield Rejection(where, NO_PATH)
            continue
        labels = label_parser.parse(where, by_column)
        if path.as_posix() in named:
            require(
                named[path.as_posix()] in (None, labels),
                f"{where}: {path} has other labels in an earlier row; an image has one row, with "
                f"{key(options, 'label_separator')} between several classes",
            )
            yield Rejection(where, REPEATED)
            continue
        named[path.as_posix()] = labels
        if patient is None:
            yield Rejection(path.as_posix(), NO_PATIENT)
            continue
        if cells["split"] and split_of(cells["split"]) is None:
            odd_splits.add(str(options.split), cells["split"], where)
        yield Sample(
            key=key_of_path(path),
            path=path,
            patient=patient,
            study=identifier_of(cells["study"]),
            view=parser.view(str(options.view), cells["view"], where),
            sex=parser.sex(str(options.sex), cells["sex"], where),
            age=parser.age(str(options.age), cells["age"], where),
            day=parser.day(str(options.day), cells["day"], where),
            split=split_of(cells["split"]),
            labels=labels,
        )
    odd_splits.refuse(f"a split is one of {', '.join(SPLITS)}, or blank; correct the rows")
    label_parser.finish(table.name)
    parser.odd.warn()
    for rejection in files_without_row(root, named, follow_links=follow_links):
        unused = rejection.reason == NO_ROW and _is_table(Path(rejection.path))
        yield Rejection(rejection.path, UNUSED_TABLE) if unused else rejection


def _is_table(path: Path) -> bool:
    return path.suffix.lower() in (".csv", ".tsv")


def _below(root: Path, text: str) -> Path:
    """Return a path in a table relative to `root`; one that leads out of it remains absolute or begins with `..`."""
    path = Path(os.path.normpath(text))
    for folder in (root.absolute(), real_path(root)):
        if path.is_relative_to(folder):
            return path.relative_to(folder)
    return path
