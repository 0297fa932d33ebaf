"""CSV tables as upstream ships them, with errors that name the file, the line and the column."""

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path

from infra.errors import UserError


def read_table(
    path: Path, columns: Sequence[str], optional: Sequence[str] = ()
) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield (where, cells) for each row: `FILE line N`, and the stripped cells of `columns` by name.

    The cells of `optional` columns are there too, blank where the table lacks the column.

    Cells are taken by the position of their name in the header, so rows may have more cells than the header (as in
    ChestX-ray14, whose `OriginalImage[Width,Height]` is not quoted) once the needed columns come before. A byte order
    mark is dropped, blank lines are skipped. Raises UserError for a missing column, a row too short for a needed
    cell, and a file that is not UTF-8 or not CSV.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            header = [name.strip() for name in next(reader, [])]
            missing = [name for name in columns if name not in header]
            if missing:
                raise UserError(
                    f"{path} lacks the column(s) {', '.join(map(repr, missing))}; "
                    f"it has {', '.join(map(repr, header)) or 'none'}; take the table as upstream ships it"
                )
            absent = {name: "" for name in optional if name not in header}
            positions = [(name, header.index(name)) for name in (*columns, *optional) if name not in absent]
            needed = 1 + max(position for _, position in positions)
            for row in reader:
                if not row:
                    continue
                where = f"{path} line {reader.line_num}"
                if len(row) < needed:
                    raise UserError(f"{where} has {len(row)} cells where at least {needed} are needed; mend the row")
                yield where, absent | {name: row[position].strip() for name, position in positions}
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 (byte {error.start}); convert it, for example with iconv") from error
    except csv.Error as error:
        raise UserError(f"{path} line {reader.line_num} is not CSV: {error}; mend the row") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error


def require_files(root: Path, dataset: str, looked_for: Sequence[str], found: bool) -> None:
    """Raise UserError, naming the files that were looked for, unless `found`."""
    if found:
        return
    names = ", ".join(looked_for)
    if not root.is_dir():
        raise UserError(f"root={root} is not a folder; name the one of dataset {dataset!r} that holds {names}")
    raise UserError(f"root={root} is not dataset {dataset!r}: looked for {names}; name the folder that holds them")
