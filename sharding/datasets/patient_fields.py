"""Parsers that turn the view, sex, age and split of tables and headers into the terms of `Sample`."""

import re
from typing import Final

from infra.errors import UserError

_VIEWS: Final[dict[str, str | None]] = {
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
    "LATERAL": "lateral",
    "": None,
}
_SEXES: Final[dict[str, str | None]] = {"F": "F", "FEMALE": "F", "M": "M", "MALE": "M", "O": None, "U": None, "": None}
_SPLITS: Final[dict[str, str | None]] = {
    "TRAIN": "train",
    "VAL": "val",
    "VALID": "val",
    "VALIDATION": "val",
    "TEST": "test",
    "": None,
}
_TERMS: Final = {"view": _VIEWS, "sex": _SEXES, "split": _SPLITS}

_AGE: Final = re.compile(r"(\d{1,4}(?:\.\d*)?)([YMWD]?)")  # DICOM's AS (PS3.5, 6.2), such as 058Y, or years
_UNITS_PER_YEAR: Final = {"": 1.0, "Y": 1.0, "M": 12.0, "W": 365.25 / 7, "D": 365.25}
_OLDEST_YEARS: Final = 120  # ChestX-ray14's first table has typing errors up to 414 years


def view_of(text: str) -> str | None:
    """Return the view that a text means, None for any other text."""
    return _VIEWS.get(_normalized(text))


def sex_of(text: str) -> str | None:
    """Return F or M, None for any other text."""
    return _SEXES.get(_normalized(text))


def split_of(text: str) -> str | None:
    """Return the official split that a text means, None for any other text."""
    return _SPLITS.get(_normalized(text))


def age_of(text: str) -> float | None:
    """Return an age such as `58`, `058Y`, `006M`, `004W` or `003D` in years, None for any other text.

    A year has 12 months or 365.25 days. Ages above 120 years are typing errors, so they are None too.
    """
    match = _AGE.fullmatch(text.strip())
    years = float(match[1]) / _UNITS_PER_YEAR[match[2]] if match else None
    return years if years is not None and years <= _OLDEST_YEARS else None


def parse_term(field: str, column: str, text: str, where: str) -> str | None:
    """Return the view, sex or split in a table's cell, None for a blank.

    Args:
        field: "view", "sex" or "split"
        column: the name of the cell's column
        text: the cell
        where: the cell's file and line

    Raises:
        UserError: if the text is not a known term
    """
    terms = _TERMS[field]
    if _normalized(text) not in terms:
        known = ", ".join(filter(None, terms))
        raise UserError(f"{where}: {column}={text!r} must be one of {known}, or blank; correct the row")
    return terms[_normalized(text)]


def parse_age(column: str, text: str, where: str) -> float | None:
    """Return the age in a table's cell in years, None for a blank and for ages above 120 years.

    Args:
        column: the name of the cell's column
        text: the cell
        where: the cell's file and line

    Raises:
        UserError: if the text is not an age
    """
    if text.strip() and _AGE.fullmatch(text.strip()) is None:
        raise UserError(
            f"{where}: {column}={text!r} must be years, or as 058Y, 011M, 004W or 003D, or blank; correct the row"
        )
    return age_of(text)


def _normalized(text: str) -> str:
    """Return a term as the tables above write it: capitals, and one space between words."""
    return " ".join(re.split(r"[\s_-]+", text.strip().upper()))
