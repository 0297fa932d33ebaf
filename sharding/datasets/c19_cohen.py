"""The COVID-19 image data collection of Cohen et al. 2020 ("C19-Cohen" in the paper): metadata.csv and images/."""

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from infra.errors import UserError
from sharding.datasets.files import visible_files
from sharding.datasets.table import read_table, require_files
from sharding.datasets.terms import SEXES, VIEWS, age_years, normal
from sharding.format.manifest import Rejection
from sharding.format.sample import Sample, key_of_path

COLUMNS: Final = ("patientid", "offset", "sex", "age", "finding", "view", "modality", "folder", "filename")
COVID: Final = "COVID-19"
OTHER_PNEUMONIA: Final = "other pneumonia"

_TABLE: Final = "metadata.csv"
_IMAGES: Final = "images"
_UNKNOWN: Final = ("todo", "Unknown", "")
_OTHER_FINDINGS: Final = ("No Finding", "Tuberculosis")


def read(root: Path) -> Iterator[Sample | Rejection]:
    """Read the rows of X-rays in `metadata.csv`, and count what else is there.

    Findings are paths such as `Pneumonia/Viral/COVID-19`. The labels are the paper's task: COVID-19 against other
    pneumonia, both 0 for `No Finding` and `Tuberculosis`, both None for `todo` and `Unknown`. Patients go by
    `patientid`, studies by the day (`offset`). A file name that an earlier row has is rejected, so are CT slices, rows
    in another folder than `images` (CT volumes), rows without a patient, and files in `images/` without a row. A
    row without a file is rejected when it is packed; so is a file that is no image, whatever its extension. Raises
    UserError when `root` is not this dataset, and for a table from before the findings became paths (July 2020).
    """
    found = (root / _TABLE).is_file() and (root / _IMAGES).is_dir()
    require_files(root, "c19-cohen", (_TABLE, f"{_IMAGES}/"), found)
    named: set[str] = set()
    taken: set[str] = set()
    for where, cells in read_table(root / _TABLE, COLUMNS):
        named.add(cells["filename"])
        reason = _reason_against(cells, taken)
        if reason is not None:
            yield Rejection(f"{cells['folder']}/{cells['filename']}", reason)
            continue
        taken.add(cells["filename"])
        yield _sample(where, cells)
    for path in visible_files(root / _IMAGES):
        if isinstance(path, Rejection):
            yield Rejection(f"{_IMAGES}/{path.path}", path.reason)
        elif path.as_posix() not in named:
            yield Rejection(f"{_IMAGES}/{path.as_posix()}", f"no row in {_TABLE}")


def _reason_against(cells: dict[str, str], taken: set[str]) -> str | None:
    if cells["modality"] != "X-ray":
        return f"{cells['modality'] or 'unknown modality'}, not an X-ray"
    if cells["folder"] != _IMAGES:
        return f"not in {_IMAGES}/"
    if cells["filename"] in taken:
        return "file name of an earlier row"
    return None if cells["patientid"] else "no patientid"


def _sample(where: str, cells: dict[str, str]) -> Sample:
    path = Path(_IMAGES) / cells["filename"]
    return Sample(
        key=key_of_path(path),
        path=path,
        patient=cells["patientid"],
        study=cells["offset"] or None,
        view=VIEWS.get(normal(cells["view"])),
        sex=SEXES.get(normal(cells["sex"])),
        age=age_years(cells["age"]),
        labels=_labels(where, cells["finding"]),
    )


def _labels(where: str, finding: str) -> dict[str, int | None]:
    if finding in _UNKNOWN:
        return {COVID: None, OTHER_PNEUMONIA: None}
    first, *_ = path = [part.strip() for part in finding.split("/")]
    if first != "Pneumonia" and finding not in _OTHER_FINDINGS:
        raise UserError(
            f"{where}: finding {finding!r} is none of Pneumonia/..., {', '.join((*_OTHER_FINDINGS, *_UNKNOWN[:2]))}; "
            "take the table as upstream ships it since July 2020"
        )
    covid = COVID in path
    return {COVID: int(covid), OTHER_PNEUMONIA: int(first == "Pneumonia" and not covid)}
