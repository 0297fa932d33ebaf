"""Your own images: a folder for each class, or a table with columns of any name."""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Final

from infra.errors import UserError, require
from infra.log import say
from infra.options import key, setting
from sharding.datasets.files import visible_files
from sharding.datasets.patient_fields import parse_age, parse_term, split_of
from sharding.datasets.table import read_table, require_files
from sharding.format.manifest import Rejection
from sharding.format.sample import Sample, key_of_path

_MOST_CLASSES: Final = 100  # more than that means that the label column holds no classes


@dataclass(frozen=True)
class FolderOptions:
    """A table that describes the images, and the names of its columns.

    Args:
        csv: path of the table, relative to root; without a table, images must be at [SPLIT/]CLASS/IMAGE
        path: column with the image's path, relative to root
        patient: column with the patient; without it, each image counts as a separate patient
        split: column with the split: train, val, test or blank
        label: column with the class, one name per image; blank if unknown
        view: column with the view, such as PA, AP or LATERAL; blank if unknown
        sex: column with the sex, F or M; blank, O or U if unknown
        age: column with the age in years, or as 058Y, 011M, 004W, 003D; blank if unknown
    """

    csv: str | None = None
    path: str = "path"
    patient: str | None = None
    split: str | None = None
    label: str | None = None
    view: str | None = None
    sex: str | None = None
    age: str | None = None

    def __post_init__(self) -> None:
        """Check that columns come with a table.

        Raises:
            UserError: if a column is set without a table
        """
        if self.csv is None:
            for field in fields(self):
                is_default = getattr(self, field.name) == field.default
                require(is_default, f"{setting(self, field.name)} is a column; name the table too: {key(self, 'csv')}")


def read(root: Path, options: FolderOptions) -> Iterator[Sample | Rejection]:
    """Read `split/class/*` or `class/*`, or the rows of a table.

    Each class becomes a label, 1 for its images and 0 for all others. Without a table, the top folders are either all
    splits (train, val or valid or validation, test) or all classes; a file at another depth is rejected.

    Raises:
        UserError: if `root` has neither layout, or the table lacks a column or has an invalid cell
    """
    if options.csv is not None:
        require_files(root, "folder", (options.csv,), (root / options.csv).is_file())
        items = _read_table(root / options.csv, options)
    else:
        items = _read_tree(root)
    yield from items
    if options.patient is None:
        say(
            "warning: the images have no patients, so each counts as a separate patient, in splits and in confidence "
            f"intervals; name the patient column: {key(options, 'patient')}"
        )


def _read_tree(root: Path) -> Iterator[Sample | Rejection]:
    paths = visible_files(root) if root.is_dir() else iter(())
    parents = {path.parent.parts for path in paths if isinstance(path, Path)}
    tops = sorted({parts[0] for parts in parents if parts})
    require_files(root, "folder", ("[SPLIT/]CLASS/IMAGE",), bool(tops))
    splits = [name for name in tops if split_of(name)]
    if splits and splits != tops:
        other = next(name for name in tops if name not in splits)
        raise UserError(f"root={root} has the split {splits[0]}/ and {other}/, which is not a split; move one of them")
    depth = 2 if splits else 1
    classes = sorted({parts[-1] for parts in parents if len(parts) == depth})
    for path in visible_files(root):
        if isinstance(path, Rejection):
            yield path
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


def _read_table(table: Path, options: FolderOptions) -> Iterator[Sample | Rejection]:
    columns = [name for name in (options.path, *_columns(options)) if name is not None]
    classes = _classes(table, options.label)
    for where, cells in read_table(table, columns):
        path, patient = Path(cells[options.path]), cells[options.patient or options.path]
        if not cells[options.path] or not patient:
            yield Rejection(where, "no path or no patient")
            continue
        label = cells[options.label] if options.label else ""
        yield Sample(
            key=key_of_path(path),
            path=path,
            patient=patient,
            split=parse_term("split", options.split, cells[options.split], where) if options.split else None,
            view=parse_term("view", options.view, cells[options.view], where) if options.view else None,
            sex=parse_term("sex", options.sex, cells[options.sex], where) if options.sex else None,
            age=parse_age(options.age, cells[options.age], where) if options.age else None,
            labels={name: int(name == label) if label else None for name in classes},
        )


def _columns(options: FolderOptions) -> tuple[str | None, ...]:
    return options.patient, options.split, options.label, options.view, options.sex, options.age


def _classes(table: Path, column: str | None) -> list[str]:
    """Return the classes in the label column, sorted."""
    classes: set[str] = set()
    for where, cells in read_table(table, [column]) if column else ():
        classes.add(cells[column or ""])
        if len(classes) > _MOST_CLASSES:
            name = key(FolderOptions, "label")
            raise UserError(f"{where}: {name}={column!r} has more than {_MOST_CLASSES} classes; name another column")
    return sorted(classes - {""})
