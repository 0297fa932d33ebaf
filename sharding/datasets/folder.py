"""Images of one's own: a tree of folders that are classes, or a table with columns of any name."""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Final

from infra.errors import UserError, require
from infra.log import say
from sharding.datasets.files import visible_files
from sharding.datasets.table import read_table, require_files
from sharding.datasets.terms import SEXES, SPLITS, VIEWS, age_years, normal
from sharding.format.manifest import Rejection
from sharding.format.sample import Sample, key_of_path

_MOST_CLASSES: Final = 100  # more are no classes: the label column is a mistaken one


@dataclass(frozen=True)
class FolderOptions:
    """A table that describes the images, and the names of its columns.

    Args:
        csv: the table, its path relative to root; without one, the folders tell: [SPLIT/]CLASS/IMAGE
        path: column of the image's path, relative to root
        patient: column of the patient; without one, every image counts as a patient of its own
        split: column of the split: train, val or test, or blank
        label: column of the class, one name an image; blank is unknown
        view: column of the view, such as PA, AP or LATERAL; blank is unknown
        sex: column of the sex, F or M; blank, O or U is unknown
        age: column of the age in years, or like 058Y, 011M, 003D; blank is unknown
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
        """Refuse columns without a table."""
        if self.csv is None:
            for field in fields(self):
                name = getattr(self, field.name)
                require(name == field.default, f"folder.{field.name}={name!r} is a column; name its table: folder.csv")


def read(root: Path, options: FolderOptions) -> Iterator[Sample | Rejection]:
    """Read `split/class/*` or `class/*`, or the rows of a table.

    Each class becomes a label, 1 for its images and 0 for those of the others. In a tree, the folders at the top are
    either all splits (train, val or valid or validation, test) or all classes; a file at another depth is rejected.
    Raises UserError for a root that is neither, a missing column, and a cell that means nothing.
    """
    if options.csv is not None:
        require_files(root, "folder", (options.csv,), (root / options.csv).is_file())
        items = _read_table(root / options.csv, options)
    else:
        items = _read_tree(root)
    yield from items
    if options.patient is None:
        say("nothing tells the patients: every image counts as a patient of its own, in splits and in intervals")


def _read_tree(root: Path) -> Iterator[Sample | Rejection]:
    paths = visible_files(root) if root.is_dir() else iter(())
    parents = {path.parent.parts for path in paths if isinstance(path, Path)}
    tops = sorted({parts[0] for parts in parents if parts})
    require_files(root, "folder", ("[SPLIT/]CLASS/IMAGE",), bool(tops))
    splits = [name for name in tops if normal(name) in SPLITS]
    if splits and splits != tops:
        other = next(name for name in tops if name not in splits)
        raise UserError(f"root={root} holds {splits[0]}/, a split, beside {other}/, which is none; move one of them")
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
                split=SPLITS[normal(path.parts[0])] if splits else None,
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
            split=_term(where, cells, options.split, SPLITS),
            view=_term(where, cells, options.view, VIEWS),
            sex=_term(where, cells, options.sex, SEXES),
            age=_age(where, cells, options.age),
            labels={name: int(name == label) if label else None for name in classes},
        )


def _columns(options: FolderOptions) -> tuple[str | None, ...]:
    return options.patient, options.split, options.label, options.view, options.sex, options.age


def _classes(table: Path, column: str | None) -> list[str]:
    """Return the classes that the label column names."""
    classes: set[str] = set()
    for where, cells in read_table(table, [column]) if column else ():
        classes.add(cells[column or ""])
        if len(classes) > _MOST_CLASSES:
            raise UserError(f"{where}: folder.label={column!r} has more than {_MOST_CLASSES} classes; name another")
    return sorted(classes - {""})


def _term(where: str, cells: dict[str, str], column: str | None, terms: dict[str, str | None]) -> str | None:
    """Return a cell in our words, None without a column; raises UserError for a word that is not among `terms`."""
    if column is None:
        return None
    if normal(cells[column]) not in terms:
        known = ", ".join(filter(None, terms))
        raise UserError(f"{where}: {column}={cells[column]!r} must be one of {known}, or blank; mend the row")
    return terms[normal(cells[column])]


def _age(where: str, cells: dict[str, str], column: str | None) -> float | None:
    age = age_years(cells[column]) if column else None
    if column and cells[column] and age is None:
        raise UserError(f"{where}: {column}={cells[column]!r} must be years, or like 058Y, or blank; mend the row")
    return age
