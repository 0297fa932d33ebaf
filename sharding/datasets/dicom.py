"""DICOM files below a folder, as a hospital's archive exports them."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Final

from infra.errors import UserError
from infra.extras import require_extra
from infra.rng import stable_hash
from sharding.datasets.files import visible_files
from sharding.datasets.table import require_files
from sharding.datasets.terms import SEXES, VIEWS, age_years, normal
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
    """What may be packed.

    Args:
        allow_identifiers: pack files too whose header names the patient or says that text is burned into the pixels;
            no name or birth date enters the shards, but what is burned in does
    """

    allow_identifiers: bool = False


def read(root: Path, options: DicomOptions) -> Iterator[Sample | Rejection]:
    """Read the headers of all files below `root`; those that are no DICOM radiograph are rejected.

    Patient and study are 64-bit hashes of PatientID and StudyInstanceUID, and the path stays out of the shards, so no
    identifier enters them. A hash is a pseudonym: who has a list of all PatientIDs can tell which of them is meant.
    A file without a PatientID, or with a placeholder for one, is rejected, since its patient could not be kept apart.
    Raises UserError, unless `options.allow_identifiers`, for a file that is not de-identified:

    - PatientName is set, and neither a placeholder (`Anonymous`, `Patient 7`, `XXXX`) nor a code (one word with a
      digit in it, as an UUID has);
    - PatientBirthDate is set;
    - BurnedInAnnotation is YES.
    """
    require_extra("dicom", "the dataset dicom")
    files = visible_files(root) if root.is_dir() else iter(())
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
            f"{root / path} still has {identifier}; de-identify the files, or pack them all the same with "
            "--dicom.allow_identifiers=true"
        )
    if _PLACEHOLDER.fullmatch(header["PatientID"]) and not re.search(r"\d", header["PatientID"]):
        return Rejection(path.as_posix(), "no PatientID")
    return Sample(
        key=f"dicom-{stable_hash(path.as_posix()):016x}",
        path=path,
        patient=_pseudonym(header["PatientID"]),
        study=_pseudonym(header["StudyInstanceUID"]) if header["StudyInstanceUID"] else None,
        view=VIEWS.get(normal(header["ViewPosition"])),
        sex=SEXES.get(normal(header["PatientSex"])),
        age=age_years(header["PatientAge"]),
        path_identifies=True,
    )


def _identifier(header: dict[str, str]) -> str | None:
    """Name the element that identifies the patient, but not its value: messages end up in logs."""
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
