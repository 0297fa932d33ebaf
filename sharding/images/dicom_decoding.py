"""The stored values of a DICOM image: which decoder takes which transfer syntax, and which bits hold a value.

pydicom decodes native, deflated and RLE pixels, imagecodecs all others: it wraps libjpeg-turbo (JPEG of 8 and 12 bits,
JPEG Lossless), CharLS (JPEG-LS) and OpenJPEG (JPEG 2000, HTJ2K). All have permissive licences. GDCM, which pydicom
would take, ends its process with many a damaged JPEG.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import imagecodecs
import numpy as np
from pydicom import Dataset
from pydicom.encaps import get_frame
from pydicom.pixels.decoders.base import get_decoder
from pydicom.uid import (
    HTJ2K,
    JPEG2000,
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)

from infra.arrays import Bool, Int64, Integer
from sharding.images import jpeg
from sharding.images.codestream import declared
from sharding.images.dicom_errors import DAMAGED, DicomRejected

_BY_PYDICOM: Final = (
    ImplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    DeflatedExplicitVRLittleEndian,
    RLELossless,
)
_DECODERS: Final[dict[UID, Callable[[bytes], Integer]]] = {
    JPEGBaseline8Bit: imagecodecs.jpeg8_decode,
    JPEGExtended12Bit: imagecodecs.jpeg8_decode,
    JPEGLossless: imagecodecs.jpeg8_decode,
    JPEGLosslessSV1: imagecodecs.jpeg8_decode,
    JPEGLSLossless: imagecodecs.jpegls_decode,
    JPEGLSNearLossless: imagecodecs.jpegls_decode,
    JPEG2000Lossless: imagecodecs.jpeg2k_decode,
    JPEG2000: imagecodecs.jpeg2k_decode,
    HTJ2KLossless: imagecodecs.jpeg2k_decode,
    HTJ2KLosslessRPCL: imagecodecs.jpeg2k_decode,
    HTJ2K: imagecodecs.jpeg2k_decode,
}
_LOSSY_JPEG: Final = (JPEGBaseline8Bit, JPEGExtended12Bit)
_OVERSHOOTING: Final = (JPEG2000, HTJ2K, JPEGLSNearLossless)


@dataclass(frozen=True)
class PixelCell:
    """The bits of a cell that hold a pixel's value (DICOM PS3.5, 8.1.1).

    Attributes:
        allocated: bits of the cell, 8 or 16
        stored: bits of the value
        shift: bits below the value
        is_signed: whether the value is a two's complement
        overlays: mask of the bits that hold overlays, which the header declares
    """

    allocated: int
    stored: int
    shift: int
    is_signed: bool
    overlays: int

    @property
    def lowest(self) -> int:
        """The lowest value that the stored bits can hold."""
        return -(1 << (self.stored - 1)) if self.is_signed else 0

    def values(self) -> Int64:
        """Return the value in each word that fits the cell (2^allocated,)."""
        values = (np.arange(1 << self.allocated) >> self.shift) & ((1 << self.stored) - 1)
        return values - ((values >> (self.stored - 1)) << self.stored) if self.is_signed else values

    def strays(self) -> Bool:
        """Return a mask of the words (2^allocated,) with a bit set that no value, sign or overlay accounts for."""
        value_bits = ((1 << self.stored) - 1) << self.shift
        free = ((1 << self.allocated) - 1) & ~value_bits & ~self.overlays
        above = free & -(1 << (self.shift + self.stored))
        outside = np.arange(1 << self.allocated) & free
        is_extended = (self.values() < 0) & (outside == above)
        return (outside != 0) & ~is_extended


def require_decodable(syntax: UID) -> None:
    """Raise DicomRejected unless this transfer syntax can be decoded."""
    if syntax not in _DECODERS and syntax not in _BY_PYDICOM:
        raise DicomRejected(f"DICOM transfer syntax {syntax.name} ({syntax}) cannot be decoded; export it uncompressed")


def decode(dataset: Dataset, syntax: UID) -> tuple[Integer, PixelCell]:
    """Return the words of a gray image of one frame (height, width), unsigned, and where they hold the values.

    The header of an encoded image is compared with the DICOM header before it is decoded, so a small file cannot claim
    much memory.

    Raises:
        DicomRejected: if both headers contradict each other, or the pixels cannot be decoded
    """
    height, width, allocated, stored, high_bit = (
        int(dataset[name].value) for name in ("Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit")
    )
    if not stored - 1 <= high_bit < allocated:
        raise DicomRejected(f"DICOM HighBit {high_bit} does not fit {stored} stored of {allocated} allocated bits")
    if syntax in _BY_PYDICOM:
        options: Any = {"correct_unused_bits": False}  # pydicom's types are wrong
        cells, _ = get_decoder(syntax).as_array(dataset, raw=True, **options)
        precision = allocated
    else:
        encoded = get_frame(dataset.PixelData, 0, number_of_frames=1, extended_offsets=_extended_offsets(dataset))
        precision = _precision(encoded, syntax, height, width, allocated, stored)
        cells = _DECODERS[syntax](encoded)
    # A decoder gives values at the lowest bits, unless the encoder took the whole cell for the value.
    shift = high_bit + 1 - stored if precision == allocated else 0
    cell = PixelCell(allocated, stored, shift, bool(dataset.PixelRepresentation), _overlays(dataset))
    has_sign_of_header = (cells.dtype.kind == "i") == cell.is_signed
    if syntax in _OVERSHOOTING and shift == 0 and has_sign_of_header:  # white may become more than the highest value
        cells = np.clip(cells, cell.lowest, cell.lowest + (1 << stored) - 1)
    return cells.astype(f"u{allocated // 8}", copy=False).reshape(height, width), cell


def _precision(encoded: bytes, syntax: UID, height: int, width: int, allocated: int, stored: int) -> int:
    """Return the bits that an encoded image declares; raises DicomRejected if it contradicts the DICOM header."""
    codestream = declared(encoded)
    if codestream is None:
        raise DicomRejected(DAMAGED)
    if (codestream.height, codestream.width) != (height, width):
        size = f"{codestream.width} x {codestream.height}"
        raise DicomRejected(f"DICOM of {width} x {height} px, but its encoded image has {size} px")
    if codestream.channels != 1:
        raise DicomRejected(f"DICOM of 1 channel, but its encoded image has {codestream.channels}")
    # Values that an encoder scaled to 8 bits are no longer those that the header's window means.
    is_scaled = syntax in _LOSSY_JPEG and codestream.bits <= 8 < stored
    if is_scaled or codestream.bits > allocated:
        raise DicomRejected(f"DICOM of {stored} bits, but its encoded image has {codestream.bits}")
    if syntax in _LOSSY_JPEG and jpeg.has_too_many_scans(encoded, width * height):
        raise DicomRejected(jpeg.TOO_MANY_SCANS)
    return codestream.bits


def _extended_offsets(dataset: Dataset) -> tuple[bytes, bytes] | None:
    if "ExtendedOffsetTable" not in dataset:
        return None
    return dataset.ExtendedOffsetTable, dataset.ExtendedOffsetTableLengths


def _overlays(dataset: Dataset) -> int:
    """Return a mask of the bits of a cell that hold overlays (retired, DICOM PS3.3 2004, C.9.2)."""
    planes = range(0x6000, 0x6100, 2)
    positions = [dataset[group, 0x0102].value for group in planes if _holds_overlay(dataset, group)]
    return sum({1 << int(position) for position in positions})


def _holds_overlay(dataset: Dataset, group: int) -> bool:
    """Return whether an overlay is within the pixels; others have an element for their data."""
    return (group, 0x0102) in dataset and (group, 0x3000) not in dataset
