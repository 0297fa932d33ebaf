"""CSV tables, read with errors that name the file, the line and the column."""

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path

from infra.errors import UserError


def read_table(
    path: Path, columns: Sequence[str], optional: Sequence[str] = ()
) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield each row as (`FILE line N`, stripped cells by column name).

    A cell's column is the position of its name in the header. So rows may have more cells than the header (as in
    ChestX-ray14, whose `OriginalImage[Width,Height]` is not quoted) if the needed columns come first. A byte order
    mark and blank lines are skipped.

    Args:
        path: the table
        columns: the columns to read
        optional: columns to read if they exist; their cells are blank if they do not

    Raises:
        UserError: if a column is missing, a row is too short, or the file is not UTF-8 or not CSV
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            header = [name.strip() for name in next(reader, [])]
            missing = [name for name in columns if name not in header]
            if missing:
                raise UserError(
                    f"{path} lacks the column(s) {', '.join(map(repr, missing))}; "
                    f"it has {', '.join(map(repr, header)) or 'none'}; use the table that upstream ships"
                )
            absent = {name: "" for name in optional if name not in header}
            positions = [(name, header.index(name)) for name in (*columns, *optional) if name not in absent]
            needed = 1 + max(position for _, position in positions)
            for row in reader:
                if not row:
                    continue
                where = f"{path} line {reader.line_num}"
                if len(row) < needed:
                    raise UserError(f"{where} has {len(row)} cells but needs at least {needed}; correct the row")
                yield where, absent | {name: row[position].strip() for name, position in positions}
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 (byte {error.start}); convert it, for example with iconv") from error
    except csv.Error as error:
        raise UserError(f"{path} line {reader.line_num} is not CSV: {error}; correct the row") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}; check its permissions") from error


def require_files(root: Path, dataset: str, expected: Sequence[str], exist: bool) -> None:
    """Raise UserError that names the expected files, unless they exist."""
    if exist:
        return
    names = ", ".join(expected)
    if not root.is_dir():
        raise UserError(f"root={root} is not a folder; name the folder of dataset {dataset!r} with {names}")
    raise UserError(f"root={root} is not dataset {dataset!r}, which has {names}; name the folder that has them")
