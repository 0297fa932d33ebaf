"""Image files that nobody has packed: single files, and folders of any layout."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from io import BytesIO
from pathlib import Path

from infra.errors import UserError, require
from sharding.datasets.dicom import is_identity, key_of_file, modality_problem
from sharding.datasets.files import IGNORED, NOT_UTF8, is_utf8, visible_files
from sharding.datasets.pseudonyms import Pseudonyms
from sharding.format.manifest import Rejection
from sharding.format.sample import key_of_path
from sharding.format.writer import patient_identity
from sharding.images.encode import TOO_MUCH_MEMORY, ImageRejected, encode, read_image_file
from sharding.images.encoding import Encoding
from sharding.images.file_formats import DICOM_HEAD_BYTES, is_dicom


@dataclass(frozen=True)
class ImageFile:
    """An image file.

    Attributes:
        path: the file
        below: its path below the folder that the user named, or as the user named it
    """

    path: Path
    below: Path


@dataclass(frozen=True)
class DicomSet:
    """A set of DICOM files, as packing hides who is on them.

    Attributes:
        name: name of the set, of which identities are made
        pseudonyms: pseudonyms of files and patients
    """

    name: str
    pseudonyms: Pseudonyms


@dataclass(frozen=True)
class PreparedImage:
    """An image file, encoded as for a shard.

    Attributes:
        key: the key that packing would give it
        path: the file as the user knows it; None if only pseudonyms may be shown
        patient: the patient's identity, as in the index of shards; None if it is unknown
        dataset: name of the set that the image would be packed in; None if it is unknown
        sha256: hash of the file
        content: the encoded image
        height: in pixels
        width: in pixels
    """

    key: str
    path: str | None
    patient: int | None
    dataset: str | None
    sha256: str
    content: bytes
    height: int
    width: int


def find_image_files(sources: Sequence[Path], *, follow_links: bool = False) -> Iterator[ImageFile | Rejection]:
    """Yield every file below the folders, and every file that is named itself; hidden and system files are left out.

    Args:
        sources: files and folders
        follow_links: whether links may lead out of a folder

    Raises:
        UserError: if a file or folder does not exist or cannot be read, or a folder is empty
    """
    for source in sources:
        require(source.exists(), f"{source} does not exist; name image files, or a folder that holds some")
        if not source.is_dir():
            yield ImageFile(source, source) if is_utf8(source) else Rejection(str(source), NOT_UTF8)
            continue
        require(is_utf8(source), f"the path {source} is not UTF-8; rename the folder")
        found = 0
        try:
            for item in visible_files(source, follow_links=follow_links):
                if isinstance(item, Path):
                    found += 1
                    yield ImageFile(source / item, item)
                elif item.reason != IGNORED:
                    yield Rejection(str(source / item.path), item.reason)
        except OSError as error:
            raise UserError(f"{error.filename} cannot be read: {error.strerror}; check its permissions") from error
        require(found > 0, f"{source} holds no file; name a folder of images")


def prepare(file: ImageFile, encoding: Encoding, dicom_set: DicomSet | None = None) -> PreparedImage | Rejection:
    """Decode, reduce and encode a file exactly as packing does.

    In a set of DICOM files, such a file gets the key and the patient that packing would give it, and its path, which
    may name the patient, is not shown.

    Args:
        file: the file
        encoding: how it is encoded
        dicom_set: the set to which DICOM files belong

    Returns:
        The image, or why it is refused.
    """
    try:
        content = read_image_file(file.path)
        is_radiograph = is_dicom(content[:DICOM_HEAD_BYTES])
        patient_id = _patient_of_radiograph(content) if is_radiograph else ""
        image = encode(content, **asdict(encoding))
    except ImageRejected as rejected:
        return Rejection(str(file.path), str(rejected))
    except MemoryError:
        return Rejection(str(file.path), TOO_MUCH_MEMORY)
    hidden = dicom_set if is_radiograph else None
    return PreparedImage(
        key=key_of_file(file.below, hidden.pseudonyms) if hidden else key_of_path(file.below),
        path=None if hidden else str(file.path),
        patient=_identity(patient_id, hidden) if hidden else None,
        dataset=hidden.name if hidden else None,
        sha256=sha256(content).hexdigest(),
        content=image.content,
        height=image.height,
        width=image.width,
    )


def _patient_of_radiograph(content: bytes) -> str:
    """Return the PatientID of a DICOM file; raises ImageRejected if it is no radiograph."""
    from sharding.images.dicom import DicomRejected, read_header  # noqa: PLC0415 (pydicom is an extra)

    try:
        header = read_header(BytesIO(content), ("Modality", "PatientID"))
    except DicomRejected as rejected:
        raise ImageRejected(str(rejected)) from rejected
    if (problem := modality_problem(header)) is not None:
        raise ImageRejected(problem)
    return header["PatientID"]


def _identity(patient_id: str, dicom_set: DicomSet) -> int | None:
    if not is_identity(patient_id):
        return None
    return patient_identity(dicom_set.name, dicom_set.pseudonyms.of("patient", patient_id))
