"""COVIDGR-1.0 (Tabik et al. 2020): one frontal radiograph per patient, in P/ and N/, and severities of positives."""

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from infra.errors import UserError
from sharding.datasets.files import ABSENT, visible_files
from sharding.datasets.table import OddCells, read_table, require_files
from sharding.format.manifest import Rejection
from sharding.format.sample import Sample, key_of_path

SEVERITIES: Final = ("NORMAL-PCR+", "MILD", "MODERATE", "SEVERE")

_CLASSES: Final = {"N": 0, "P": 1}
_TABLE: Final = "severity.csv"


def read(root: Path, *, follow_links: bool = False) -> Iterator[Sample | Rejection]:
    """Read `P/*` (RT-PCR positive) and `N/*`, and severities from `severity.csv` (`Name,Severity`) if it is present.

    The labels are `COVID-19` and, with the table, one for each severity: all 0 for a negative, None for a positive
    without a row. Each image shows a different patient in a PA view, according to the authors. Rejected are files
    outside P/ and N/, rows of the table that name no image in P/, and P/ or N/ if it has no image.

    Raises:
        UserError: if `root` lacks P/ or N/, or a severity is not one of upstream's four
    """
    require_files(root, "covidgr", ("P/", "N/"), all((root / name).is_dir() for name in _CLASSES))
    severities = _severities(root / _TABLE)
    positives: set[str] = set()
    absent = dict.fromkeys(_CLASSES)
    for path in visible_files(root, follow_links=follow_links):
        if isinstance(path, Rejection):
            yield path
        elif len(path.parts) == 2 and path.parts[0] in _CLASSES:
            absent.pop(path.parts[0], None)
            if path.parts[0] == "P":
                positives.add(path.stem)
            yield _sample(path, severities)
        elif path != Path(_TABLE):
            yield Rejection(path.as_posix(), "not in P/ or N/")
    missing = sorted(severities.keys() - positives) if severities is not None else []
    yield from (Rejection(f"P/{name}", f"only in {_TABLE}: no such image") for name in missing)
    yield from (Rejection(name, ABSENT) for name in absent)


def _severities(table: Path) -> dict[str, str] | None:
    """Return name -> severity, None without a table."""
    if not table.is_file():
        return None
    severities: dict[str, str] = {}
    wrong = OddCells()
    for where, cells in read_table(table, ("Name", "Severity")):
        severity = cells["Severity"].upper()
        if severity not in SEVERITIES:
            wrong.add("Severity", cells["Severity"], where)
        elif severities.setdefault(cells["Name"], severity) != severity:
            raise UserError(f"{where}: {cells['Name']} has another severity in an earlier row; correct one of them")
    wrong.refuse(f"a severity is one of {', '.join(SEVERITIES)}; correct the rows")
    return severities


def _sample(path: Path, severities: dict[str, str] | None) -> Sample:
    covid = _CLASSES[path.parts[0]]
    labels: dict[str, int | None] = {"COVID-19": covid}
    if severities is not None:
        severity = severities.get(path.stem)
        known = not covid or severity is not None
        labels |= {name: int(bool(covid) and name == severity) if known else None for name in SEVERITIES}
    patient = path.with_suffix("").as_posix()
    return Sample(key_of_path(path), path, patient, view="frontal-pa", labels=labels)
