"""CSV tables, read with errors that name the file, the line and the column."""

import codecs
import csv
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Final

from infra.errors import UserError
from infra.log import say

_DELIMITERS: Final = (",", ";", "\t")
# What programs write for a cell without a value: R and Excel, pandas, and databases; in lower case.
_BLANK: Final = frozenset(("na", "n/a", "#n/a", "nan", "<na>", "nat", "null"))
_UTF_16: Final = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_MOST_EXAMPLES: Final = 10
_MOST_HEADER_CHARACTERS: Final = 1 << 20
_NO_OPTIONS: Final[Mapping[str, str]] = MappingProxyType({})


class OddCells:
    """The cells of a dataset's tables that mean nothing, counted by column and text.

    Readers collect them, so that one message lists them all.
    """

    def __init__(self) -> None:
        self._counts: dict[tuple[str, str], int] = {}
        self._first: dict[tuple[str, str], str] = {}

    def add(self, column: str, text: str, where: str) -> None:
        """Count a cell.

        Args:
            column: the name of its column
            text: its content
            where: its file and line
        """
        cell = (column, text)
        self._counts[cell] = self._counts.get(cell, 0) + 1
        self._first.setdefault(cell, where)

    def warn(self) -> None:
        """Print one warning that lists the cells, if there are any."""
        if self._counts:
            say(f"warning: cells that mean nothing count as unknown ({self._total()}): {self}")

    def refuse(self, rule: str) -> None:
        """Raise UserError that lists the cells and ends with the rule, if there are any."""
        if self._counts:
            raise UserError(f"cells mean nothing ({self._total()}): {self}; {rule}")

    def _total(self) -> int:
        return sum(self._counts.values())

    def __str__(self) -> str:
        cells = [
            f"{column}={text!r} ({self._first[column, text]}{f' and {count - 1} more' if count > 1 else ''})"
            for (column, text), count in self._counts.items()
        ]
        more = len(cells) - _MOST_EXAMPLES
        return ", ".join(cells[:_MOST_EXAMPLES]) + (f", and {more} other texts" if more > 0 else "")


def read_table(
    path: Path, columns: Sequence[str], optional: Sequence[str] = (), options: Mapping[str, str] = _NO_OPTIONS
) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield each row as (`FILE line N`, stripped cells by column name).

    The table is UTF-8, or UTF-16 with a byte order mark. Its delimiter is the comma, semicolon or tab that finds most
    of the columns. A cell's column is the position of its name in the header. A cell that stands for no value, such as
    `nan` or `NULL`, is blank. Blank lines are skipped.

    A row with too few or too many cells may have shifted ones, so it is refused. More cells than the header has are
    accepted if all columns to read come before all others (as in ChestX-ray14, whose `OriginalImage[Width,Height]` is
    not quoted), or if they are blank.

    Args:
        path: the table
        columns: the columns to read
        optional: columns to read if they exist; their cells are blank if they do not
        options: for a user's own table, the option that names each column

    Raises:
        UserError: if a column is missing or occurs twice, rows do not fit the header, or the file cannot be read
    """
    line = 1
    misfits, misfit = 0, ""
    try:
        with path.open(encoding=_encoding(path), newline="") as file:
            delimiter = _delimiter(file.readline(_MOST_HEADER_CHARACTERS), columns)
            file.seek(0)
            reader = csv.reader(file, strict=True, delimiter=delimiter)
            header = [name.strip() for name in next(reader, [])]
            positions = _positions(path, header, columns, optional, options)
            absent = {name: "" for name in optional if name not in positions}
            needed = 1 + max(positions.values())
            may_be_longer = len(set(positions.values())) == needed < len(header)
            for row in reader:
                line = reader.line_num
                if not any(map(str.strip, row)):
                    continue
                is_longer = any(map(str.strip, row[len(header) :])) and not may_be_longer
                if len(row) < needed or is_longer:
                    misfits += 1
                    misfit = misfit or f"{path} line {line} has {len(row)} cells, but the header has {len(header)}"
                    continue
                cells = {name: _text(row[position]) for name, position in positions.items()}
                yield f"{path.name} line {line}", absent | cells
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not {error.encoding.upper()} (byte {error.start}); convert it, for example with "
            "iconv -f WINDOWS-1252 -t UTF-8"
        ) from error
    except csv.Error as error:
        raise UserError(f"{path} line {line} or later is not CSV: {error}; correct the row") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}; check its permissions") from error
    if misfits:
        more = f" (and {misfits - 1} more rows)" if misfits > 1 else ""
        raise UserError(f"{misfit}{more}; complete the rows, and quote cells that contain the delimiter")


def read_list(path: Path) -> list[str]:
    """Return the words of a text file, such as a list of images; raises UserError if it cannot be read."""
    try:
        return path.read_text(encoding=_encoding(path)).split()
    except UnicodeError as error:
        raise UserError(f"{path} is not a text file in UTF-8; use the list that upstream ships") from error
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


def _encoding(path: Path) -> str:
    with path.open("rb") as file:
        return "utf-16" if file.read(2) in _UTF_16 else "utf-8-sig"


def _delimiter(header: str, columns: Sequence[str]) -> str:
    """Return the delimiter under which a header has most of the columns, and if two tie, most cells."""

    def found(delimiter: str) -> tuple[int, int]:
        names = [name.strip().strip('"') for name in header.split(delimiter)]
        return len(set(names).intersection(columns)), len(names)

    return max(_DELIMITERS, key=found)


def _positions(
    path: Path, header: list[str], columns: Sequence[str], optional: Sequence[str], options: Mapping[str, str]
) -> dict[str, int]:
    """Return the position of each column that exists."""
    missing = [name for name in columns if name not in header]
    if missing:
        has = ", ".join(map(repr, header)) or "none"
        own = ", ".join(f"--{options[name]}=COLUMN" for name in missing if name in options)
        way_out = f"name the right column(s) with {own}" if own else "rename columns, or use upstream's table"
        raise UserError(f"{path} lacks the column(s) {', '.join(map(repr, missing))}; it has {has}; {way_out}")
    present = [name for name in (*columns, *optional) if name in header]
    twice = [name for name in present if header.count(name) > 1]
    if twice:
        raise UserError(f"{path} has more than one column {twice[0]!r}; rename all but one of them")
    return {name: header.index(name) for name in present}


def _text(cell: str) -> str:
    cell = cell.strip()
    return "" if cell.lower() in _BLANK else cell
