"""DICOM files: their headers as text, and their pixels as the 8-bit gray that a viewer shows.

Decoding is pydicom's, the mapping of values to gray is ours: pydicom's windowing inverts an image whose RescaleSlope
is negative, and its LUTs fail on 8-bit entries and on modality LUTs of 10 to 15 bits. Where both work, the tests
compare them.
"""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from typing import BinaryIO, Final

import numpy as np
from PIL import Image
from pydicom import Dataset, dcmread
from pydicom.filereader import data_element_generator
from pydicom.pixels.decoders.base import get_decoder
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian, JPEGExtended12Bit

from infra.arrays import Bool, Float64, Integer, Number, UInt8
from sharding.images.file_formats import DICOM_HEAD_BYTES, is_dicom
from sharding.images.grayscale import to_8_bit

NOT_DICOM: Final = "not a DICOM file"
DAMAGED: Final = "truncated or damaged DICOM"
NO_PIXELS: Final = "DICOM without an image"
SEVERAL_FRAMES: Final = "DICOM of several frames"
UNSUPPORTED_BITS: Final = "DICOM pixels are neither 8-bit nor 16-bit"

_GRAY: Final = ("MONOCHROME1", "MONOCHROME2")


class DicomRejected(Exception):
    """The file is not a DICOM radiograph that can be packed; the message is the reason."""


def read_header(file: BinaryIO, keywords: Sequence[str]) -> dict[str, str]:
    """Return header elements as text by keyword, "" for an absent one, without reading the pixels.

    Raises:
        DicomRejected: if the file is not DICOM or is damaged
    """
    header, _ = _read(file, keywords)
    with _errors_as_damage():
        return {keyword: _text(header, keyword) for keyword in keywords}


@dataclass(frozen=True)
class DicomImage:
    """A gray image of a DICOM file, not decoded yet.

    Attributes:
        dataset: the parsed file
        syntax: its transfer syntax, which encodes the pixels
        height: height that the header declares, in pixels
        width: width that the header declares, in pixels
        bits: bits stored per pixel
    """

    dataset: Dataset
    syntax: UID
    height: int
    width: int
    bits: int

    def gray(self) -> UInt8:
        """Decode to 8 bits (height, width), with dark air.

        Applies the modality LUT, then the first VOI LUT or window, then inverts MONOCHROME1 (DICOM PS3.3,
        C.7.6.3.1.2, C.11.1 and C.11.2). Without a VOI LUT or window, the range is that of `grayscale`. Padding
        pixels become black.

        Raises:
            DicomRejected: if the pixels cannot be decoded
        """
        with _errors_as_damage():
            pixels, _ = get_decoder(self.syntax).as_array(self.dataset, raw=True)
            if pixels.shape != (self.height, self.width):
                raise DicomRejected(DAMAGED)
            return _shown(self.dataset, pixels, self.bits)


def open_image(content: bytes) -> DicomImage:
    """Read a DICOM file and leave its pixels encoded.

    Raises:
        DicomRejected: unless the file holds one gray image that can be decoded
    """
    dataset, syntax = _read(BytesIO(content))
    with _errors_as_damage():
        photometric = _text(dataset, "PhotometricInterpretation")
        frames = int(_text(dataset, "NumberOfFrames") or 1)
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
    if not _is_decodable(syntax) or (syntax == JPEGExtended12Bit and bits != 8):
        raise DicomRejected(_cannot_decode(syntax))
    return DicomImage(dataset, syntax, height, width, bits)


def _read(file: BinaryIO, keywords: Sequence[str] | None = None) -> tuple[Dataset, UID]:
    """Parse a file, or only these elements of its header; return it with its transfer syntax."""
    if not is_dicom(file.read(DICOM_HEAD_BYTES)):
        raise DicomRejected(NOT_DICOM)
    with _errors_as_damage():
        meta = data_element_generator(file, False, True, stop_when=lambda tag, *_: tag.group != 2)
        (value,) = (element.value or b"" for element in meta if element.tag == 0x00020010)
        syntax = UID(value.decode("ascii").rstrip(" \0"))
        if not syntax.is_valid:
            raise DicomRejected(DAMAGED)
    if syntax == DeflatedExplicitVRLittleEndian:  # pydicom would inflate the whole file to any size
        raise DicomRejected(_cannot_decode(syntax))
    with _errors_as_damage():
        file.seek(0)
        tags = None if keywords is None else list(keywords)
        return dcmread(file, stop_before_pixels=tags is not None, specific_tags=tags), syntax


@contextmanager
def _errors_as_damage() -> Iterator[None]:
    """Turn any error into DicomRejected: pydicom raises all kinds on bytes that are not what they claim to be."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about odd values
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            yield
    except DicomRejected:
        raise
    except Exception as error:
        raise DicomRejected(DAMAGED) from error


def _text(dataset: Dataset, keyword: str) -> str:
    value = dataset.get(keyword)
    return "" if value is None else "".join(filter(str.isprintable, str(value))).strip()


def _is_decodable(syntax: UID) -> bool:
    try:
        return bool(get_decoder(syntax).is_available)
    except NotImplementedError:
        return False


def _cannot_decode(syntax: UID) -> str:
    return f"DICOM transfer syntax {syntax.name} ({syntax}) cannot be decoded"


def _shown(dataset: Dataset, pixels: Integer, bits: int) -> UInt8:
    """Map stored pixels to gray by a table of all values that fit their bits."""
    lowest = -(1 << (bits - 1)) if dataset.PixelRepresentation else 0
    stored = np.arange(lowest, lowest + (1 << bits))
    index = np.clip(pixels.astype(np.int32) - lowest, 0, len(stored) - 1)
    padding = _padding(dataset, stored)
    table = _to_gray(dataset, stored, (np.bincount(index.ravel(), minlength=len(stored)) > 0) & ~padding)
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        table = 255 - table
    table[padding] = 0
    return table[index]


def _padding(dataset: Dataset, stored: Integer) -> Bool:
    """Return a mask of the stored values that mark pixels outside the image."""
    value = dataset.get("PixelPaddingValue")
    if value is None:
        return np.zeros(len(stored), np.bool_)
    low, high = sorted((int(value), int(dataset.get("PixelPaddingRangeLimit", value))))
    return (low <= stored) & (stored <= high)


def _to_gray(dataset: Dataset, stored: Integer, present: Bool) -> UInt8:
    """Return the gray of each stored value, before inversion; `present` is a mask of the values in the image."""
    values = _modality(dataset, stored)
    if not np.isfinite(values).all():
        raise DicomRejected(DAMAGED)
    if dataset.get("VOILUTSequence"):
        shown = _looked_up(values, dataset.VOILUTSequence[0], dataset)
        return to_8_bit(shown, shown.min(), shown.max())
    if (window := _window(dataset)) is not None:
        function, center, width = window
        if function == "SIGMOID":
            return to_8_bit(1 / (1 + np.exp(np.clip(-4 * (values - center) / width, -700, 700))), 0, 1)
        if function == "LINEAR":
            center, width = center - 0.5, width - 1
        # pydicom's apply_windowing takes its output range from the rescaled ends of the stored range, which
        # RescaleSlope < 0 swaps: it inverts such images. Here the window alone decides.
        return to_8_bit(values, center - width / 2, center + width / 2)
    shown_values = values[present] if len(stored) > 256 and present.any() else values
    return to_8_bit(values, shown_values.min(), shown_values.max())


def _modality(dataset: Dataset, stored: Integer) -> Number:
    if dataset.get("ModalityLUTSequence"):
        return _looked_up(stored, dataset.ModalityLUTSequence[0], dataset)
    slope, intercept = dataset.get("RescaleSlope"), dataset.get("RescaleIntercept")
    if slope is None or intercept is None:
        return stored
    return stored * float(slope) + float(intercept)


def _window(dataset: Dataset) -> tuple[str, float, float] | None:
    """Return function, center and width of the first window, None if it is missing or has no width."""
    center, width = (np.atleast_1d(_numbers(dataset.get(name))) for name in ("WindowCenter", "WindowWidth"))
    function = _text(dataset, "VOILUTFunction") or "LINEAR"
    if not len(center) or not len(width) or not width[0] > (1 if function == "LINEAR" else 0):
        return None
    return function, float(center[0]), float(width[0])


def _numbers(value: object) -> Float64:
    return np.array([] if value is None or value == "" else value, np.float64)


def _looked_up(values: Number, lut: Dataset, dataset: Dataset) -> Number:
    """Apply a modality or VOI LUT; values beyond its ends get its first or its last entry."""
    count, first, data = int(lut.LUTDescriptor[0]) or 65536, int(lut.LUTDescriptor[1]), lut.LUTData
    entries: Number
    if isinstance(data, bytes):
        word = f"{'<' if dataset.original_encoding[1] else '>'}u2"
        entries = np.frombuffer(data, word if len(data) >= 2 * count else "u1")[:count]
    else:
        entries = np.atleast_1d(np.asarray(data, np.uint16))
    return np.take(entries, np.clip(np.rint(values).astype(np.int64) - first, 0, len(entries) - 1))
