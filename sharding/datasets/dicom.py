"""DICOM files below a folder, as exported from a hospital's archive."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, Final

from infra.configuration.options import key
from infra.errors import UserError
from infra.extras import require_extra
from infra.log import say
from sharding.datasets.files import visible_files
from sharding.datasets.patient_fields import age_of, identifier_of, sex_of, view_of
from sharding.datasets.pseudonyms import MAKE_KEY, Pseudonyms, read_key
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
    "PatientIdentityRemoved",
    "StudyInstanceUID",
    "StudyDate",
    "SOPInstanceUID",
    "ViewPosition",
    "BurnedInAnnotation",
)
_PLACEHOLDER: Final = re.compile(
    r"\W*(?:anon(?:ym(?:ous|ized|ised)?)?|de-?identified|removed|redacted|unknown|none|no ?name|patient|subject|x+)?"
    r"[\W_]*\d*\W*",
    re.IGNORECASE,
)
_CODE: Final = re.compile(r"(?=\D*\d)[\w.-]+")  # one word with a digit in it


_YEARS: Final = range(1900, 2100)  # of radiographs; another one is a typing error
_MOST_MOVED_DAYS: Final = 36_525

_YES: Final = ("YES", "Y")
_NO: Final = ("NO", "N")


@dataclass(frozen=True)
class DicomOptions:
    """The pseudonyms of patients, and the handling of files that are not de-identified.

    Args:
        pseudonym_key: file with a secret key of 16 to 4096 random bytes, mode 0600; required, because patients and
            studies enter the shards as hashes keyed by it; keep it out of the shards, and use one key for all sets of
            the same patients
        allow_identifiers: also pack files whose header names the patient, says that the identity is not removed, or
            reports burned-in text; names and birth dates do not enter the shards, but burned-in text does
        days: keep how many days lie between a patient's studies: StudyDate, moved by up to 100 years, by a number of
            days that the key gives each patient; the dates do not enter the shards
    """

    pseudonym_key: Path | None = None
    allow_identifiers: bool = False
    days: bool = False

    @cached_property
    def pseudonyms(self) -> Pseudonyms:
        """The pseudonyms of the key; raises UserError if there is none."""
        option = key(self, "pseudonym_key")
        if self.pseudonym_key is None:
            raise UserError(
                f"{option} must name a file with a secret key, because a hash of a PatientID without a key can be "
                f"reversed; make one for all your sets: {MAKE_KEY.format(path='dicom.key')}, then --{option}=dicom.key"
            )
        return read_key(self.pseudonym_key, option)

    def recorded(self) -> dict[str, Any]:
        """Return what the manifest says of these options: of the key, a fingerprint."""
        values = {**asdict(self), "pseudonym_key": self.pseudonyms.fingerprint}
        return {name: value for name, value in values.items() if name != "days" or value}  # older manifests lack it


def read(root: Path, options: DicomOptions, *, follow_links: bool = False) -> Iterator[Sample | Rejection]:
    """Read the headers of all files below `root`, and reject files that are not DICOM radiographs.

    Patient, study and instance are keyed hashes of PatientID, StudyInstanceUID and SOPInstanceUID, the sample's key is
    one of the path, and the path stays out of the shards. So no identifier enters them, and nobody without the key
    finds out whom they are of; who has the key can join a table of labels later.

    A file whose PatientID is missing or a placeholder is rejected, since nothing distinguishes its patient from others.

    A file is not de-identified if one of these holds:

    - PatientName is set, and is neither a placeholder (`Anonymous`, `Patient 7`, `XXXX`) nor a code (one word with a
      digit in it, such as a UUID);
    - PatientBirthDate is set;
    - PatientIdentityRemoved is NO;
    - BurnedInAnnotation is YES. Most files do not have this element; they are counted.

    Raises:
        UserError: if `root` has no files, there is no key, or a file is not de-identified and
            `options.allow_identifiers` is off; as messages end up in logs, this one has neither the value nor the path
    """
    require_extra("dicom", "the dataset dicom")
    files = visible_files(root, follow_links=follow_links) if root.is_dir() else iter(())
    first = next(files, None)
    require_files(root, "dicom", ("DICOM files",), first is not None)
    pseudonyms = options.pseudonyms
    samples = silent = undated = 0
    for path in chain(() if first is None else (first,), files):
        if isinstance(path, Rejection):
            yield path
            continue
        header = _header(root, path)
        if isinstance(header, Rejection):
            yield header
            continue
        item = _item(root, path, header, pseudonyms, options)
        if isinstance(item, Sample):
            samples += 1
            undated += options.days and item.day is None
            silent += header["BurnedInAnnotation"].upper() not in _YES + _NO
        yield item
    if undated:
        say(f"warning: {undated} of {samples} files have no StudyDate (0008,0020) that can be, so their day is unknown")
    if silent:
        say(
            f"warning: {silent} of {samples} files do not say whether text is burned into their pixels "
            "(BurnedInAnnotation, (0028,0301)); look at them before you share the shards: sternum views"
        )


def _header(root: Path, path: Path) -> dict[str, str] | Rejection:
    from sharding.images.dicom import DicomRejected, read_header  # noqa: PLC0415 (pydicom is an extra)

    try:
        with (root / path).open("rb") as file:
            return read_header(file, _KEYWORDS)
    except DicomRejected as rejected:
        return Rejection(path.as_posix(), str(rejected))
    except OSError:
        return Rejection(path.as_posix(), "unreadable file")


def _item(
    root: Path, path: Path, header: dict[str, str], pseudonyms: Pseudonyms, options: DicomOptions
) -> Sample | Rejection:
    if (problem := modality_problem(header)) is not None:
        return Rejection(path.as_posix(), problem)
    if not options.allow_identifiers and (identifier := _identifier(header)) is not None:
        # An archive's folders have patients' names, an inode has not.
        raise UserError(
            f"a file below {root} still has {identifier}; see which: find {root} -inum {(root / path).stat().st_ino}; "
            f"de-identify the files, or pack them anyway with --{key(DicomOptions, 'allow_identifiers')}=true"
        )
    if not is_identity(header["PatientID"]):
        return Rejection(path.as_posix(), "no PatientID")
    study, instance = header["StudyInstanceUID"], header["SOPInstanceUID"]
    return Sample(
        key=key_of_file(path, pseudonyms),
        path=path,
        patient=pseudonyms.of("patient", header["PatientID"]),
        study=pseudonyms.of("study", study) if study else None,
        view=view_of(header["ViewPosition"]),
        sex=sex_of(header["PatientSex"]),
        age=age_of(header["PatientAge"]),
        path_identifies=True,
        instance=pseudonyms.of("instance", instance) if instance else None,
        day=_day(header, pseudonyms) if options.days else None,
    )


def _day(header: dict[str, str], pseudonyms: Pseudonyms) -> int | None:
    """Return the date of the study in days, moved by a number that the key gives the patient."""
    try:
        date = datetime.strptime(header["StudyDate"].strip(), "%Y%m%d")
    except ValueError:
        return None
    if date.year not in _YEARS:
        return None
    moved = int(pseudonyms.of("day", header["PatientID"]), 16) % _MOST_MOVED_DAYS
    return (date - datetime(_YEARS.start, 1, 1)).days - moved


def modality_problem(header: Mapping[str, str]) -> str | None:
    """Return why a file with this header is no radiograph; None if it is one."""
    modality = header["Modality"]
    return None if modality in RADIOGRAPHS else f"modality {modality or 'unknown'}, not {', '.join(RADIOGRAPHS)}"


def key_of_file(path: Path, pseudonyms: Pseudonyms) -> str:
    """Return a sample's key, which is a pseudonym of its path below the root."""
    return f"dicom-{pseudonyms.of('path', path.as_posix())}"


def is_identity(patient: str) -> bool:
    """Return whether a PatientID tells patients apart, which `N/A` or `ANONYMOUS` cannot."""
    has_number = re.search(r"\d", patient) is not None
    return identifier_of(patient) is not None and (has_number or not _PLACEHOLDER.fullmatch(patient))


def _identifier(header: dict[str, str]) -> str | None:
    """Name the element that identifies the patient, without its value, since messages end up in logs."""
    name = header["PatientName"]
    if not _PLACEHOLDER.fullmatch(name) and not _CODE.fullmatch(name):
        return "a PatientName (0010,0010)"
    if header["PatientBirthDate"]:
        return "a PatientBirthDate (0010,0030)"
    if header["PatientIdentityRemoved"].upper() in _NO:
        return "PatientIdentityRemoved (0012,0062) = NO"
    if header["BurnedInAnnotation"].upper() in _YES:
        return "BurnedInAnnotation (0028,0301) = YES"
    return None
