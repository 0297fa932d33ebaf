"""The COVID-19 image data collection of Cohen et al. 2020 ("C19-Cohen" in the paper): metadata.csv and images/."""

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from sharding.datasets.files import NO_PATH, NO_PATIENT, REPEATED, files_without_row
from sharding.datasets.patient_fields import CellParser, identifier_of
from sharding.datasets.table import OddCells, read_table, require_files
from sharding.format.manifest import Rejection
from sharding.format.sample import Sample, key_of_path

COLUMNS: Final = ("patientid", "offset", "sex", "age", "finding", "view", "modality", "filename")
COVID: Final = "COVID-19"
OTHER_PNEUMONIA: Final = "other pneumonia"

_TABLE: Final = "metadata.csv"
_IMAGES: Final = "images"
_UNKNOWN: Final = ("todo", "unknown", "")
_NO_PNEUMONIA: Final = ("no finding", "tuberculosis", "spinal tuberculosis")
# The findings of tables before July 2020, when they became paths such as `Pneumonia/Viral/SARS`. These are the ones
# that upstream mapped to pneumonia; of the others (such as `Unusual Interstitial Pneumonia`) it kept no path.
_FLAT_PNEUMONIAS: Final = frozenset(
    (
        "allergic bronchopulmonary aspergillosis",
        "ards",
        "aspiration pneumonia",
        "bacterial",
        "chlamydophila",
        "e.coli",
        "herpes pneumonia",
        "herpes pneumonia, ards",
        "influenza",
        "invasive aspergillosis",
        "klebsiella",
        "legionella",
        "lipoid",
        "lobar pneumonia",
        "mers",
        "mers-cov",
        "mrsa",
        "multilobar pneumonia",
        "mycoplasma bacterial pneumonia",
        "nocardia",
        "pneumocystis",
        "round pneumonia",
        "sars",
        "streptococcus",
        "swine-origin influenza a (h1n1) viral pneumonia",
        "varicella",
    )
)


def read(root: Path, *, follow_links: bool = False) -> Iterator[Sample | Rejection]:
    """Read the X-rays in `metadata.csv`, and reject everything else.

    Findings are paths such as `Pneumonia/Viral/COVID-19`, or single names (`COVID-19, ARDS`, `SARS`) in tables from
    before July 2020. The labels are the paper's task: COVID-19 versus other pneumonia, both 0 for no finding and
    tuberculosis, both None for `todo`, `Unknown` and findings that are neither. `patientid` identifies the patient, the
    day (`offset`) the study. Rejected are CT slices, rows of another folder than `images` (CT volumes), rows without a
    patient, rows that repeat a file name, and files without a row. A missing file, or one that is not an image, is
    rejected when it is packed.

    Raises:
        UserError: if `root` is not this dataset
    """
    is_complete = (root / _TABLE).is_file() and (root / _IMAGES).is_dir()
    require_files(root, "c19-cohen", (_TABLE, f"{_IMAGES}/"), is_complete)
    parser, odd_findings = CellParser(), OddCells()
    named = {_TABLE}
    taken: set[str] = set()
    for where, cells in read_table(root / _TABLE, COLUMNS, optional=("folder",)):
        path = Path(cells["folder"] or _IMAGES) / cells["filename"]
        patient = identifier_of(cells["patientid"])
        reason = _rejection_reason(cells, taken)
        named.add(path.as_posix())
        if reason is not None or patient is None:
            yield Rejection(where if reason in (NO_PATH, REPEATED) else path.as_posix(), reason or NO_PATIENT)
            continue
        taken.add(cells["filename"])
        yield Sample(
            key=key_of_path(path),
            path=path,
            patient=patient,
            study=identifier_of(cells["offset"]),
            view=parser.view("view", cells["view"], where),
            sex=parser.sex("sex", cells["sex"], where),
            age=parser.age("age", cells["age"], where),
            labels=_labels(odd_findings, where, cells["finding"]),
        )
    odd_findings.warn()
    parser.odd.warn()
    yield from files_without_row(root, named, follow_links=follow_links)


def _rejection_reason(cells: dict[str, str], taken: set[str]) -> str | None:
    if cells["modality"] != "X-ray":
        return f"{cells['modality'] or 'unknown modality'}, not an X-ray"
    if cells["folder"] not in (_IMAGES, ""):
        return f"not in {_IMAGES}/"
    if not cells["filename"]:
        return NO_PATH
    return REPEATED if cells["filename"] in taken else None


def _labels(odd: OddCells, where: str, finding: str) -> dict[str, int | None]:
    parts = [part.strip().lower() for part in finding.split("/")]
    covid = any(COVID.lower() in part.split(", ") for part in parts)
    if covid or parts[0] == "pneumonia" or finding.strip().lower() in _FLAT_PNEUMONIAS:
        return {COVID: int(covid), OTHER_PNEUMONIA: int(not covid)}
    if parts[0] in _NO_PNEUMONIA:
        return {COVID: 0, OTHER_PNEUMONIA: 0}
    if parts[0] not in _UNKNOWN:
        odd.add("finding", finding, where)
    return {COVID: None, OTHER_PNEUMONIA: None}
