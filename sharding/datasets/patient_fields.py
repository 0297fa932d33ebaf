"""One rule for the identities, view, sex, age and split in tables and headers, for all readers."""

import re
from collections.abc import Mapping
from typing import Final

from sharding.datasets.table import OddCells

_VIEWS: Final[dict[str, str]] = {
    "PA": "frontal-pa",
    "AP": "frontal-ap",
    "AP SUPINE": "frontal-ap",
    "AP ERECT": "frontal-ap",
    "AP SEMI ERECT": "frontal-ap",
    "FRONTAL": "frontal",
    "FRONTAL PA": "frontal-pa",
    "FRONTAL AP": "frontal-ap",
    "L": "lateral",
    "LL": "lateral",
    "RL": "lateral",
    "LLAT": "lateral",
    "RLAT": "lateral",
    "LAT": "lateral",
    "LATERAL": "lateral",
}
_SEXES: Final[dict[str, str | None]] = {
    "F": "F",
    "FEMALE": "F",
    "WOMAN": "F",
    "M": "M",
    "MALE": "M",
    "MAN": "M",
    "O": None,
    "OTHER": None,
    "U": None,
}
SPLITS: Final[dict[str, str]] = {
    "TRAIN": "train",
    "TRAINING": "train",
    "VAL": "val",
    "VALID": "val",
    "VALIDATION": "val",
    "TEST": "test",
    "TESTING": "test",
}
_UNKNOWN: Final = frozenset(("", "UNKNOWN"))
_PLACEHOLDERS: Final = _UNKNOWN | {"?", "NONE", "N/A", "NOT AVAILABLE", "TODO"}

_AGE: Final = re.compile(r"(\d{1,4}(?:\.\d*)?)([YMWD]?)")  # DICOM's AS (PS3.5, 6.2), such as 058Y, or years
_UNITS_PER_YEAR: Final = {"": 1.0, "Y": 1.0, "M": 12.0, "W": 365.25 / 7, "D": 365.25}
_TOP_YEARS: Final = 90  # HIPAA's Safe Harbor, 45 CFR 164.514(b)(2)(i)(C), makes one category of all ages above 89
_DAY: Final = re.compile(r"-?\d{1,5}")  # up to 273 years; a date such as 20180115 has more digits
_OLDEST_YEARS: Final = 120  # ChestX-ray14's first table has typing errors up to 414 years


def view_of(text: str) -> str | None:
    """Return the view that a text means, None for any other text."""
    return _VIEWS.get(_normalized(text))


def sex_of(text: str) -> str | None:
    """Return F or M, None for any other text."""
    return _SEXES.get(_normalized(text))


def split_of(text: str) -> str | None:
    """Return the official split that a text means, None for any other text."""
    return SPLITS.get(_normalized(text))


def age_of(text: str) -> float | None:
    """Return an age such as `58`, `058Y`, `006M`, `004W` or `003D` in years, None for any other text.

    A year has 12 months or 365.25 days. Ages of 90 years and more become 90, because so few people are older that the
    age would identify them. Ages above 120 years are typing errors, so they are None too.
    """
    match = _AGE.fullmatch(text.strip().upper())
    years = float(match[1]) / _UNITS_PER_YEAR[match[2]] if match else None
    return min(years, _TOP_YEARS) if years is not None and years <= _OLDEST_YEARS else None


def identifier_of(text: str) -> str | None:
    """Return the patient, study or other identity that a text names, None for a blank and for placeholders.

    A placeholder (`?`, `none`, `unknown`) stands for many; as an identity it would make one patient of them.
    """
    return None if _normalized(text) in _PLACEHOLDERS else text.strip()


class CellParser:
    """Parses views, sexes and ages in tables, and collects the cells that mean nothing.

    Attributes:
        odd: these cells
    """

    def __init__(self) -> None:
        self.odd = OddCells()

    def view(self, column: str, text: str, where: str) -> str | None:
        """Return the view in the cell `text` of a column at `where`, None if it is blank or means nothing."""
        return self._term(_VIEWS, column, text, where)

    def sex(self, column: str, text: str, where: str) -> str | None:
        """Return the sex in the cell `text` of a column at `where`, None if it is unknown or means nothing."""
        return self._term(_SEXES, column, text, where)

    def age(self, column: str, text: str, where: str) -> float | None:
        """Return the age in years in the cell `text` of a column at `where`, None if it is blank or impossible."""
        age = age_of(text)
        if age is None and _normalized(text) not in _UNKNOWN:
            self.odd.add(column, text, where)
        return age

    def day(self, column: str, text: str, where: str) -> int | None:
        """Return the day in the cell `text` of a column at `where`, None if it is blank or no number of days."""
        day = _DAY.fullmatch(text.strip())
        if day is None and _normalized(text) not in _UNKNOWN:
            self.odd.add(column, text, where)
        return int(day[0]) if day else None

    def _term(self, terms: Mapping[str, str | None], column: str, text: str, where: str) -> str | None:
        term = _normalized(text)
        if term not in terms and term not in _UNKNOWN:
            self.odd.add(column, text, where)
        return terms.get(term)


def _normalized(text: str) -> str:
    """Return a term as the tables above write it: capitals, and one space between words."""
    return " ".join(re.split(r"[\s_-]+", text.upper())).strip()
