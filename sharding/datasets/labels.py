"""The labels that the cells of a user's table state: one rule for every table.

A table states labels in two ways. A column with one label has 1 (present), 0 (absent), -1 (uncertain) or a blank
(unknown) in each row; usual words mean the same. A column of classes has the class's name, or several names with a
separator between them; each class becomes a label, present for the rows that name it and absent for all others.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from infra.errors import UserError
from infra.log import say
from sharding.datasets.table import OddCells

Labels = dict[str, int | None]
Cells = Mapping[str, str | list[str]]  # by column; a list of names may stand in a column of classes

_MEANINGS: Final[dict[int, tuple[str, ...]]] = {
    1: ("1", "1.0", "yes", "true", "positive", "present"),
    0: ("0", "0.0", "no", "false", "negative", "absent"),
    -1: ("-1", "-1.0", "uncertain"),
}
_VALUES: Final = {text: value for value, texts in _MEANINGS.items() for text in texts}
_WORDS: Final = {1: "present", 0: "absent", -1: "uncertain"}
_RULE: Final = (
    "a label is 1, yes, true, positive or present; 0, no, false, negative or absent; -1 or uncertain; or blank, which "
    "means unknown"
)
_MOST_CLASSES: Final = 100  # more than that means that the column holds no classes


class LabelParser:
    """Parses the labels of one table, and says at its end what the cells meant.

    Attributes:
        columns: the columns that it reads
        names: the names of the labels: the columns of one label each, then the classes
    """

    def __init__(self, labels: Sequence[str], classes: str | None, separator: str | None, options: Mapping[str, str]):
        """Name the columns.

        Args:
            labels: columns with one label each
            classes: column of classes
            separator: text between the names of several classes; None if a cell names one
            options: the option that names each column, for messages
        """
        self._labels, self._classes, self._separator, self._options = tuple(labels), classes, separator, options
        self.columns = (*self._labels, *([classes] if classes else []))
        self.names = list(self._labels)
        self._class_names: list[str] = []
        self._cells: Counter[tuple[int, str]] = Counter()
        self._class_cells: Counter[str] = Counter()
        self._blank = 0
        self._odd = OddCells()

    def find_classes(self, rows: Iterable[tuple[str, Cells]]) -> None:
        """Find the names of the classes in all rows, each (place, cells by column), before the first `parse`.

        Raises:
            UserError: if there are too many, or one has the name of another label
        """
        if self._classes is None:
            return
        found: set[str] = set()
        for where, cells in rows:
            found.update(self._named(cells[self._classes]))
            if len(found) > _MOST_CLASSES:
                option = self._options[self._classes]
                raise UserError(
                    f"{where}: {option}={self._classes!r} has more than {_MOST_CLASSES} classes; name another column, "
                    "or a separator if cells name several classes"
                )
        self._class_names = sorted(found)
        if twice := found.intersection(self._labels):
            raise UserError(
                f"{min(twice)!r} is a label column and a class in {self._options[self._classes]}={self._classes!r}; "
                "leave one of them out"
            )
        self.names = [*self._labels, *self._class_names]

    def parse(self, where: str, cells: Cells) -> Labels:
        """Return the labels of a row: name -> 1 present, 0 absent, -1 uncertain, None unknown.

        Args:
            where: the row's place, for messages
            cells: its cells by column
        """
        labels = {column: self._value(column, cells[column], where) for column in self._labels}
        if self._classes is None:
            return labels
        named = self._named(cells[self._classes])
        self._class_cells.update(named)
        self._blank += not named
        return labels | {name: int(name in named) if named else None for name in self._class_names}

    def finish(self, table: str) -> None:
        """Say what the cells of the table meant.

        Raises:
            UserError: if cells meant nothing
        """
        self._odd.refuse(f"{_RULE}; correct the rows, or name a column of classes as such")
        if meanings := [
            f"{text!r} means {_WORDS[value]} ({count})" for (value, text), count in sorted(self._cells.items())[::-1]
        ]:
            say(f"{table}: in {', '.join(self._labels)}, {', '.join(meanings)}, a blank unknown")
        if self._classes is not None:
            classes = ", ".join(f"{name} ({self._class_cells[name]})" for name in self._class_names)
            blank = f"; {self._blank} blank cells mean unknown" if self._blank else ""
            say(f"{table}: {self._classes} has the classes {classes}, each absent where another is named{blank}")

    def _value(self, column: str, cell: str | list[str], where: str) -> int | None:
        text = str(cell)
        value = _VALUES.get(text.lower())
        if value is not None:
            self._cells[value, text] += 1
        elif text:
            self._odd.add(column, text, where)
        return value

    def _named(self, cell: str | list[str]) -> list[str]:
        names = cell if isinstance(cell, list) else cell.split(self._separator) if self._separator else [cell]
        return list(dict.fromkeys(name.strip() for name in names if name.strip()))
