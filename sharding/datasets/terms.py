"""Views, sexes, ages and splits as tables and headers write them, in the words of `sharding.format.sample.Sample`."""

import re
from typing import Final

VIEWS: Final[dict[str, str | None]] = {
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
SEXES: Final[dict[str, str | None]] = {"F": "F", "FEMALE": "F", "M": "M", "MALE": "M", "O": None, "U": None, "": None}
SPLITS: Final[dict[str, str | None]] = {
    "TRAIN": "train",
    "VAL": "val",
    "VALID": "val",
    "VALIDATION": "val",
    "TEST": "test",
    "": None,
}
_AGE: Final = re.compile(r"(\d{1,4}(?:\.\d*)?)([YMWD]?)")  # DICOM's AS, `058Y`, or a number of years
_UNITS_PER_YEAR: Final = {"": 1.0, "Y": 1.0, "M": 12.0, "W": 365.25 / 7, "D": 365.25}
_OLDEST_YEARS: Final = 120


def normal(text: str) -> str:
    """Return a term in the form in which the tables above hold it: capitals, words parted by one space."""
    return " ".join(re.split(r"[\s_-]+", text.strip().upper()))


def age_years(text: str) -> float | None:
    """Return an age such as `58`, `058Y` or `006M` in years; None where the text is none, or none of a human being."""
    match = _AGE.fullmatch(text.strip())
    years = float(match[1]) / _UNITS_PER_YEAR[match[2]] if match else None
    return years if years is not None and years <= _OLDEST_YEARS else None
