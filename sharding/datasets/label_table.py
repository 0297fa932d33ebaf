"""Labels from a table of their own, joined to the images of a set when it is packed or when it is probed."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from os.path import normpath
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Literal

from infra.configuration.options import key, require_described, setting
from infra.errors import UserError, require
from infra.log import say
from infra.words import counted
from sharding.datasets.labels import LabelParser, Labels
from sharding.datasets.pseudonyms import Pseudonyms, read_key
from sharding.datasets.table import read_table
from sharding.format.manifest import Rejection
from sharding.format.sample import Sample

Join = Literal["key", "path", "SOPInstanceUID", "StudyInstanceUID", "PatientID"]

# For each DICOM identifier, the field of a sample with its pseudonym, which is also the kind of the pseudonym.
DICOM_JOINS: Final[Mapping[str, str]] = MappingProxyType(
    {"SOPInstanceUID": "instance", "StudyInstanceUID": "study", "PatientID": "patient"}
)
_MOST_EXAMPLES: Final = 3


@dataclass(frozen=True)
class LabelOptions:
    """A table with labels, and which of its columns name the image and the labels.

    Args:
        csv: path of the table
        join: what a row is about: a sample's key, an image's path below the root, or, in sets packed from DICOM files,
            a SOPInstanceUID, StudyInstanceUID or PatientID
        join_column: column that holds it; by default the one with the name of `join`
        columns: columns with one label each: 1, 0, -1 (uncertain) or blank (unknown)
        classes: column with a class; each class becomes a label
        separator: text between the classes of one cell, such as |
    """

    csv: Path | None = None
    join: Join = "key"
    join_column: str | None = None
    columns: list[str] | None = None
    classes: str | None = None
    separator: str | None = None

    def __post_init__(self) -> None:
        """Check that the options name a table and its labels.

        Raises:
            UserError: if they do not
        """
        require_described(self, "csv", "table")
        if self.csv is None:
            return
        require(
            bool(self.columns or self.classes),
            f"{setting(self, 'csv')} has no labels unless you name them: --{key(self, 'columns')}=[a,b] for columns "
            f"with one label each, or --{key(self, 'classes')}=COLUMN for a column of classes",
        )
        require(
            self.separator is None or (self.separator.strip() != "" and self.classes is not None),
            f"{setting(self, 'separator')} is between classes; name their column too: {key(self, 'classes')}",
        )

    def recorded(self) -> dict[str, Any]:
        """Return what the manifest says of a joined table; where it was is no part of it, and its labels are packed."""
        return {name: getattr(self, name) for name in ("join", "columns", "classes", "separator")} if self.csv else {}


def pseudonyms_for(options: LabelOptions, key_file: Path | None, option: str, fingerprint: object) -> Pseudonyms | None:
    """Return the pseudonyms to join a table with a packed set by an identifier of DICOM files, None for other joins.

    Args:
        options: the table
        key_file: the key that the set was packed with
        option: the option that names it, for messages
        fingerprint: that of the set's key, from its manifest; None if the set has no pseudonyms

    Raises:
        UserError: if the set has no pseudonyms, or the key is not that of the set
    """
    if options.join not in DICOM_JOINS or fingerprint is None:
        return None
    join = setting(options, "join")
    if key_file is None:
        raise UserError(f"{join} needs the key that the set was packed with; add --{option}=FILE")
    pseudonyms = read_key(key_file, option)
    require(
        pseudonyms.fingerprint == fingerprint,
        f"{option}={key_file} is not the key that the set was packed with (its fingerprint is {fingerprint}, not "
        f"{pseudonyms.fingerprint}); name that one, or join by key",
    )
    return pseudonyms


class LabelTable:
    """The rows of a label table by what they are about, and which of them match.

    No identifier of a DICOM file leaves the table: it is compared by its pseudonym, and messages name lines instead.

    Attributes:
        names: the names of the labels
        field: the field of a sample, or of its metadata, that the rows are compared with
    """

    def __init__(self, options: LabelOptions, pseudonyms: Pseudonyms | None) -> None:
        """Read the table.

        Args:
            options: the table and its columns
            pseudonyms: those of the set, for a join by an identifier of DICOM files; None if it has none

        Raises:
            UserError: if the table cannot be read or lacks a column, a cell means nothing, two rows about the same
                image have different labels, or the set has no pseudonyms to join by
        """
        assert options.csv is not None, "without a table there is nothing to join"
        self._options, self._table = options, options.csv
        self.field = DICOM_JOINS.get(options.join, options.join)
        self._pseudonyms = pseudonyms if options.join in DICOM_JOINS else None
        require(
            options.join not in DICOM_JOINS or pseudonyms is not None,
            f"{setting(options, 'join')} is for sets that were packed from DICOM files; join by key or path",
        )
        require(self._table.is_file(), f"{setting(options, 'csv')} is not a file; name the table with the labels")
        self._rows: dict[str, tuple[Labels, str]] = {}
        self._blank: list[str] = []
        self._matched: set[str] = set()
        self._images = self._without_count = self._anonymous = 0
        self._without: list[str] = []
        self._replaced: set[str] = set()
        self._is_private = self._pseudonyms is not None  # whether messages may not show what a row is about
        self.names = self._read()

    def joined(self, present: Labels, identity: str | None, name: Callable[[], str]) -> Labels:
        """Return the labels of an image, those of the table in place of others of the same name.

        Args:
            present: the labels that it has
            identity: the value of its `field`, None if it has none
            name: returns its name for messages, which must not identify a patient
        """
        self._images += 1
        self._replaced.update(present.keys() & set(self.names))
        if identity in self._rows:
            self._matched.add(identity)
            return present | self._rows[identity][0]
        self._anonymous += identity is None
        self._without_count += 1
        if len(self._without) < _MOST_EXAMPLES:
            self._without.append(name())
        return present | dict.fromkeys(self.names)

    def label_samples(self, items: Iterator[Sample | Rejection]) -> Iterator[Sample | Rejection]:
        """Yield all items, the samples with the labels of the table; then check and say what matched."""
        for item in items:
            if isinstance(item, Rejection):
                yield item
                continue
            self._is_private |= item.path_identifies
            value = getattr(item, self.field)
            identity = value.as_posix() if isinstance(value, Path) else value
            yield replace(item, labels=self.joined(item.labels, identity, partial(self._shown, item)))
        self.finish("the dataset")

    def finish(self, images: str) -> None:
        """Say how many rows and images matched.

        Args:
            images: what the table was joined to, for messages

        Raises:
            UserError: if no row matched
        """
        if not self._images:  # whoever wants them says so
            return
        unmatched = [*self._blank, *(where for row, (_, where) in self._rows.items() if row not in self._matched)]
        join, table = self._options.join, self._table.name
        require(
            self._anonymous < self._images,
            f"{setting(self._options, 'join')}: the images of {images} have none in their shards; join by another, or "
            "pack the set again",
        )
        if not self._matched:
            examples = "" if self._is_private else self._first_of_each()
            advice = (
                "the pseudonym key, the column and leading zeros" if self._pseudonyms else "the column and the join"
            )
            raise UserError(
                f"{setting(self._options, 'csv')}: none of its {len(self._rows)} values matches the {join} of "
                f"one of the {self._images} images of {images}{examples}; check {advice}"
            )
        say(
            f"{table}: {len(self._matched)} of {len(self._rows)} values of {join} match "
            f"{self._images - self._without_count} of {self._images} images of {images}"
        )
        if unmatched:
            rows = counted(len(unmatched), "row")
            say(f"warning: {table}: {rows} without an image{_examples(unmatched, len(unmatched))}")
        if self._without_count:
            count = self._without_count
            images_without = counted(count, "image")
            say(f"warning: {table}: {images_without} without a row, so without labels{_examples(self._without, count)}")
        if self._replaced:
            say(
                f"{table}: its labels replace those of {images} with the same name: {', '.join(sorted(self._replaced))}"
            )

    def _shown(self, sample: Sample) -> str:
        return sample.key if sample.path_identifies or self.field == "key" else sample.path.as_posix()

    def _read(self) -> list[str]:
        options, column = self._options, self._options.join_column or self._options.join
        names = {column: key(options, "join_column")}
        names |= dict.fromkeys(options.columns or (), key(options, "columns"))
        names |= {options.classes: key(options, "classes")} if options.classes else {}
        parser = LabelParser(options.columns or (), options.classes, options.separator, names)
        columns = [column, *parser.columns]
        parser.find_classes(read_table(self._table, columns, options=names) if options.classes else ())
        for where, cells in read_table(self._table, columns, options=names):
            labels = parser.parse(where, cells)
            if not cells[column]:
                self._blank.append(where)
                continue
            identity = self._identity(cells[column])
            other, first = self._rows.setdefault(identity, (labels, where))
            if other != labels:
                raise UserError(f"{where} and {first} have the same {column} but different labels; correct one of them")
        parser.finish(self._table.name)
        return parser.names

    def _identity(self, cell: str) -> str:
        """Return a row's identity in the form that samples have it."""
        if self._pseudonyms is not None:
            return self._pseudonyms.of(self.field, cell)
        return Path(normpath(cell)).as_posix() if self._options.join == "path" else cell

    def _first_of_each(self) -> str:
        row = next(iter(self._rows), "")
        return f" (a row has {row!r}, an image is {self._without[0]!r})" if row and self._without else ""


def _examples(names: list[str], count: int) -> str:
    shown = names[:_MOST_EXAMPLES]
    return f": {', '.join(shown)}" + (f" and {count - len(shown)} more" if count > len(shown) else "")
