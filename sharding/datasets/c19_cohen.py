"""The COVID-19 image data collection of Cohen et al. 2020 ("C19-Cohen" in the paper): metadata.csv and images/."""

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from infra.errors import UserError
from sharding.datasets.files import visible_files
from sharding.datasets.patient_fields import age_of, sex_of, view_of
from sharding.datasets.table import read_table, require_files
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
    """Read the X-rays in `metadata.csv`, and reject everything else.

    Findings are paths such as `Pneumonia/Viral/COVID-19`. The labels are the paper's task: COVID-19 versus other
    pneumonia, both 0 for `No Finding` and `Tuberculosis`, both None for `todo` and `Unknown`. `patientid` identifies
    the patient, the day (`offset`) the study. Rejected are CT slices, rows of another folder than `images` (CT
    volumes), rows without a patient, rows that repeat a file name, and files in `images/` without a row. A missing
    file, or one that is not an image, is rejected when it is packed.

    Raises:
        UserError: if `root` is not this dataset, or its table is older than July 2020, when findings became paths
    """
    is_complete = (root / _TABLE).is_file() and (root / _IMAGES).is_dir()
    require_files(root, "c19-cohen", (_TABLE, f"{_IMAGES}/"), is_complete)
    named: set[str] = set()
    taken: set[str] = set()
    for where, cells in read_table(root / _TABLE, COLUMNS):
        named.add(cells["filename"])
        reason = _rejection_reason(cells, taken)
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


def _rejection_reason(cells: dict[str, str], taken: set[str]) -> str | None:
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
        view=view_of(cells["view"]),
        sex=sex_of(cells["sex"]),
        age=age_of(cells["age"]),
        labels=_labels(where, cells["finding"]),
    )


def _labels(where: str, finding: str) -> dict[str, int | None]:
    if finding in _UNKNOWN:
        return {COVID: None, OTHER_PNEUMONIA: None}
    first, *_ = path = [part.strip() for part in finding.split("/")]
    if first != "Pneumonia" and finding not in _OTHER_FINDINGS:
        raise UserError(
            f"{where}: finding {finding!r} is not one of Pneumonia/..., "
            f"{', '.join((*_OTHER_FINDINGS, *_UNKNOWN[:2]))}; use upstream's table of July 2020 or later"
        )
    covid = COVID in path
    return {COVID: int(covid), OTHER_PNEUMONIA: int(first == "Pneumonia" and not covid)}
