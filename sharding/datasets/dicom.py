"""DICOM files below a folder, as exported from a hospital's archive."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Final

from infra.errors import UserError
from infra.extras import require_extra
from infra.options import key
from infra.rng import stable_hash
from sharding.datasets.files import visible_files
from sharding.datasets.patient_fields import age_of, sex_of, view_of
from sharding.datasets.table import require_files
from sharding.format.manifest import Rejection
from sharding.format.sample import Sample

RADIOGRAPHS: Final = ("CR", "DX", "RG")  # computed, digital and conventional radiography
_KEYWORDS: Final = (
    "Modality",
    "PatientID",
    "PatientName",
    "PatientBirthDate",
    "PatientSex",
    "PatientAge",
    "StudyInstanceUID",
    "ViewPosition",
    "BurnedInAnnotation",
)
_PLACEHOLDER: Final = re.compile(
    r"\W*(?:anon(?:ym(?:ous|ized|ised)?)?|de-?identified|removed|redacted|unknown|none|no ?name|patient|subject|x+)?"
    r"[\W_]*\d*\W*",
    re.IGNORECASE,
)
_CODE: Final = re.compile(r"(?=\D*\d)[\w.-]+")  # one word with a digit in it


@dataclass(frozen=True)
class DicomOptions:
    """The handling of files that are not de-identified.

    Args:
        allow_identifiers: also pack files whose header names the patient or reports burned-in text; names and birth
            dates do not enter the shards, but burned-in text does
    """

    allow_identifiers: bool = False


def read(root: Path, options: DicomOptions, *, follow_links: bool = False) -> Iterator[Sample | Rejection]:
    """Read the headers of all files below `root`, and reject files that are not DICOM radiographs.

    Patient and study are 64-bit hashes of PatientID and StudyInstanceUID, and the path stays out of the shards, so no
    identifier enters them. A hash is only a pseudonym: a list of all PatientIDs reveals which of them it belongs to.
    A file whose PatientID is missing or a placeholder is rejected, since nothing distinguishes its patient from others.

    A file is not de-identified if one of these holds:

    - PatientName is set, and is neither a placeholder (`Anonymous`, `Patient 7`, `XXXX`) nor a code (one word with a
      digit in it, such as a UUID);
    - PatientBirthDate is set;
    - BurnedInAnnotation is YES.

    Raises:
        UserError: if `root` has no files, or a file is not de-identified and `options.allow_identifiers` is off
    """
    require_extra("dicom", "the dataset dicom")
    files = visible_files(root, follow_links=follow_links) if root.is_dir() else iter(())
    first = next(files, None)
    require_files(root, "dicom", ("DICOM files",), first is not None)
    for path in chain(() if first is None else (first,), files):
        yield path if isinstance(path, Rejection) else _item(root, path, options)


def _item(root: Path, path: Path, options: DicomOptions) -> Sample | Rejection:
    from sharding.images.dicom import DicomRejected, read_header  # noqa: PLC0415 (pydicom is an extra)

    try:
        with (root / path).open("rb") as file:
            header = read_header(file, _KEYWORDS)
    except DicomRejected as rejected:
        return Rejection(path.as_posix(), str(rejected))
    except OSError:
        return Rejection(path.as_posix(), "unreadable file")
    modality = header["Modality"]
    if modality not in RADIOGRAPHS:
        return Rejection(path.as_posix(), f"modality {modality or 'unknown'}, not {', '.join(RADIOGRAPHS)}")
    if not options.allow_identifiers and (identifier := _identifier(header)) is not None:
        raise UserError(
            f"{root / path} still has {identifier}; de-identify the files, or pack them anyway with "
            f"--{key(DicomOptions, 'allow_identifiers')}=true"
        )
    if _PLACEHOLDER.fullmatch(header["PatientID"]) and not re.search(r"\d", header["PatientID"]):
        return Rejection(path.as_posix(), "no PatientID")
    return Sample(
        key=f"dicom-{stable_hash(path.as_posix()):016x}",
        path=path,
        patient=_pseudonym(header["PatientID"]),
        study=_pseudonym(header["StudyInstanceUID"]) if header["StudyInstanceUID"] else None,
        view=view_of(header["ViewPosition"]),
        sex=sex_of(header["PatientSex"]),
        age=age_of(header["PatientAge"]),
        path_identifies=True,
    )


def _identifier(header: dict[str, str]) -> str | None:
    """Name the element that identifies the patient, without its value, since messages end up in logs."""
    name = header["PatientName"]
    if not _PLACEHOLDER.fullmatch(name) and not _CODE.fullmatch(name):
        return "a PatientName (0010,0010)"
    if header["PatientBirthDate"]:
        return "a PatientBirthDate (0010,0030)"
    if header["BurnedInAnnotation"].upper() == "YES":
        return "BurnedInAnnotation (0028,0301) = YES"
    return None


def _pseudonym(identifier: str) -> str:
    return f"{stable_hash(identifier):016x}"
