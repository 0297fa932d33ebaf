"""DICOM files: their headers as text, and their pixels as the 8-bit gray that a viewer shows."""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import BinaryIO, Final

from pydicom import Dataset, dcmread
from pydicom.filereader import data_element_generator, read_dataset
from pydicom.tag import BaseTag, Tag
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian

from infra.arrays import UInt8
from sharding.images.dicom_decoding import decode, require_decodable
from sharding.images.dicom_errors import DAMAGED, DicomRejected, errors_as_damage
from sharding.images.dicom_grayscale import to_gray
from sharding.images.file_formats import DICOM_HEAD_BYTES, is_dicom
from sharding.images.limits import MAX_FILE_BYTES

__all__ = ["DicomImage", "DicomRejected", "open_image", "read_header"]

NOT_DICOM: Final = "not a DICOM file"
NO_SYNTAX: Final = "DICOM without a TransferSyntaxUID (0002,0010)"
NO_PIXELS: Final = "DICOM without an image"
NO_SIGN: Final = "DICOM without a PixelRepresentation (0028,0103)"
SEVERAL_FRAMES: Final = "DICOM of several frames"
UNSUPPORTED_BITS: Final = "DICOM pixels are neither 8-bit nor 16-bit"
TOO_LARGE_INFLATED: Final = f"deflated DICOM above {MAX_FILE_BYTES // 10**6} MB"

_GRAY: Final = ("MONOCHROME1", "MONOCHROME2")
_HEADER_BYTES: Final = 1 << 24  # of a deflated file, which is inflated this far to read its header
_PIXEL_DATA: Final = 0x7FE00010


def read_header(file: BinaryIO, keywords: Sequence[str]) -> dict[str, str]:
    """Return header elements as text by keyword, "" for an absent one, without reading the pixels.

    Raises:
        DicomRejected: if the file is not DICOM or is damaged
    """
    header, _ = _read(file, keywords)
    with errors_as_damage():
        return {keyword: _text(header, keyword) for keyword in keywords}


@dataclass(frozen=True)
class DicomImage:
    """A gray image of a DICOM file, not decoded yet.

    Attributes:
        dataset: the parsed file
        syntax: its transfer syntax, which encodes the pixels
        height: height that the header declares, in pixels
        width: width that the header declares, in pixels
    """

    dataset: Dataset
    syntax: UID
    height: int
    width: int

    def gray(self) -> UInt8:
        """Decode to 8 bits (height, width), with dark air.

        Applies the modality LUT, then the first VOI LUT or window, then inverts MONOCHROME1 (DICOM PS3.3,
        C.7.6.3.1.2, C.11.1 and C.11.2). Without a VOI LUT or window, the range is that of `grayscale`. Padding
        pixels become black.

        Raises:
            DicomRejected: if the pixels cannot be decoded
        """
        with errors_as_damage():
            return to_gray(self.dataset, *decode(self.dataset, self.syntax))


def open_image(content: bytes) -> DicomImage:
    """Read a DICOM file and leave its pixels encoded.

    Raises:
        DicomRejected: unless the file holds one gray image that can be decoded
    """
    dataset, syntax = _read(BytesIO(content))
    with errors_as_damage():
        photometric = _text(dataset, "PhotometricInterpretation")
        frames = int(_text(dataset, "NumberOfFrames") or 1)
        representation = _text(dataset, "PixelRepresentation")
        height, width, samples, allocated, bits = (
            int(_text(dataset, name) or 0)
            for name in ("Rows", "Columns", "SamplesPerPixel", "BitsAllocated", "BitsStored")
        )
    if "PixelData" not in dataset or not height or not width:
        raise DicomRejected(NO_PIXELS)
    if frames > 1:
        raise DicomRejected(SEVERAL_FRAMES)
    if photometric not in _GRAY or samples != 1:
        raise DicomRejected(
            f"DICOM is not gray ({photometric or 'no photometric interpretation'}, channels: {samples})"
        )
    if allocated not in (8, 16) or not 1 <= bits <= allocated:
        raise DicomRejected(UNSUPPORTED_BITS)
    if not representation:
        raise DicomRejected(NO_SIGN)
    require_decodable(syntax)
    return DicomImage(dataset, syntax, height, width)


def _read(file: BinaryIO, keywords: Sequence[str] | None = None) -> tuple[Dataset, UID]:
    """Parse a file, or only these elements of its header; return it with its transfer syntax."""
    if not is_dicom(file.read(DICOM_HEAD_BYTES)):
        raise DicomRejected(NOT_DICOM)
    tags: list[BaseTag | int] | None = None if keywords is None else list(map(Tag, keywords))
    with errors_as_damage():
        meta = {element.tag: element.value for element in data_element_generator(file, False, True, _after_meta)}
        if not meta:
            raise DicomRejected(DAMAGED)
        syntax = UID((meta.get(Tag("TransferSyntaxUID")) or b"").decode("ascii").rstrip(" \0"))
        if not syntax:
            raise DicomRejected(NO_SYNTAX)
        if not syntax.is_valid:
            raise DicomRejected(DAMAGED)
        if syntax == DeflatedExplicitVRLittleEndian:
            return _read_deflated(file, tags), syntax
        file.seek(0)
        return dcmread(file, stop_before_pixels=tags is not None, specific_tags=tags), syntax


def _read_deflated(file: BinaryIO, tags: list[BaseTag | int] | None) -> Dataset:
    """Parse the part of a file that follows the meta information; pydicom would inflate it to any size."""
    limit = MAX_FILE_BYTES if tags is None else _HEADER_BYTES
    decompressor = zlib.decompressobj(-zlib.MAX_WBITS)
    inflated = decompressor.decompress(file.read(), limit)
    if tags is None and not decompressor.eof:
        raise DicomRejected(TOO_LARGE_INFLATED if len(inflated) == limit else DAMAGED)
    stop_when = None if tags is None else _at_pixels
    return read_dataset(BytesIO(inflated), False, True, stop_when=stop_when, specific_tags=tags)


def _after_meta(tag: BaseTag, vr: str | None, length: int) -> bool:
    return tag.group != 2


def _at_pixels(tag: BaseTag, vr: str | None, length: int) -> bool:
    return tag >= _PIXEL_DATA


def _text(dataset: Dataset, keyword: str) -> str:
    value = dataset.get(keyword)
    return "" if value is None else "".join(filter(str.isprintable, str(value))).strip()
