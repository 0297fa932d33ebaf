"""The gray that a viewer shows for each stored value of a DICOM image.

pydicom's windowing inverts an image whose RescaleSlope is negative, and its LUTs fail on 8-bit entries and on modality
LUTs of 10 to 15 bits. Where both work, the tests compare them.
"""

from typing import Final

import numpy as np
from pydicom import Dataset

from infra.arrays import Bool, Float64, Int64, Integer, Number, UInt8
from sharding.images.dicom_decoding import PixelCell
from sharding.images.dicom_errors import DAMAGED, DicomRejected
from sharding.images.grayscale import to_8_bit

STRAY_BITS: Final = "DICOM pixels have bits set above or below BitsStored that are no overlay"
NO_SLOPE: Final = "DICOM RescaleSlope is 0, so all pixels are equal"


def to_gray(dataset: Dataset, words: Integer, cell: PixelCell) -> UInt8:
    """Map the words of an image to gray (height, width), by a table of all words that fit a cell.

    Raises:
        DicomRejected: if a word holds more than a value, or the header gives no gray
    """
    present = np.bincount(words.ravel(), minlength=1 << cell.allocated) > 0
    values = cell.values()
    padding = _padding(dataset, values, cell)
    if (present & cell.strays() & ~padding).any():
        raise DicomRejected(STRAY_BITS)
    shown = np.zeros(1 << cell.stored, np.bool_)
    shown[values[present & ~padding] - cell.lowest] = True
    stored = np.arange(len(shown)) + cell.lowest
    table = _gray_of(dataset, stored, shown)
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        table = 255 - table
    gray = table[values - cell.lowest]
    gray[padding] = 0
    return gray[words]


def _padding(dataset: Dataset, values: Int64, cell: PixelCell) -> Bool:
    """Return a mask of the words that mark pixels outside the image.

    A padding value may be a word that is no stored value. Some files write it with the other sign, as 63536 for -2000.
    """
    value = dataset.get("PixelPaddingValue")
    if value is None:
        return np.zeros(len(values), np.bool_)
    ends = np.array([int(value), int(dataset.get("PixelPaddingRangeLimit", value))])
    low, high = sorted(ends.astype(np.int16 if cell.is_signed else np.uint16).tolist())
    whole = np.arange(len(values))
    whole -= (whole >> (cell.allocated - 1) << cell.allocated) * cell.is_signed
    return ((low <= values) & (values <= high)) | ((low <= whole) & (whole <= high))


def _gray_of(dataset: Dataset, stored: Int64, present: Bool) -> UInt8:
    """Return the gray of each stored value, before inversion; `present` is a mask of the values in the image."""
    values = _modality(dataset, stored)
    if not np.isfinite(values).all():
        raise DicomRejected(DAMAGED)
    if dataset.get("VOILUTSequence"):
        looked_up = _looked_up(values, dataset.VOILUTSequence[0], dataset)
        return to_8_bit(looked_up, looked_up.min(), looked_up.max())
    if (window := _window(dataset)) is not None:
        function, center, width = window
        if function == "SIGMOID":
            return to_8_bit(1 / (1 + np.exp(np.clip(-4 * (values - center) / width, -700, 700))), 0, 1)
        if function == "LINEAR":
            center, width = center - 0.5, width - 1
        # pydicom's apply_windowing takes its output range from the rescaled ends of the stored range, which
        # RescaleSlope < 0 swaps: it inverts such images. Here the window alone decides.
        return to_8_bit(values, center - width / 2, center + width / 2)
    shown = values[present] if len(stored) > 256 and present.any() else values
    return to_8_bit(values, shown.min(), shown.max())


def _modality(dataset: Dataset, stored: Int64) -> Number:
    if dataset.get("ModalityLUTSequence"):
        return _looked_up(stored, dataset.ModalityLUTSequence[0], dataset)
    slope, intercept = dataset.get("RescaleSlope"), dataset.get("RescaleIntercept")
    if slope is None or intercept is None:
        return stored
    if float(slope) == 0:
        raise DicomRejected(NO_SLOPE)
    return stored * float(slope) + float(intercept)


def _window(dataset: Dataset) -> tuple[str, float, float] | None:
    """Return function, center and width of the first window, None if it is missing or has no width."""
    center, width = (np.atleast_1d(_numbers(dataset.get(name))) for name in ("WindowCenter", "WindowWidth"))
    function = str(dataset.get("VOILUTFunction") or "LINEAR")
    if not len(center) or not len(width) or not width[0] > (1 if function == "LINEAR" else 0):
        return None
    return function, float(center[0]), float(width[0])


def _numbers(value: object) -> Float64:
    return np.array([] if value is None or value == "" else value, np.float64)


def _looked_up(values: Number, lut: Dataset, dataset: Dataset) -> Number:
    """Apply a modality or VOI LUT; values beyond its ends get its first or its last entry."""
    count, first, data = int(lut.LUTDescriptor[0]) or 65536, int(lut.LUTDescriptor[1]), lut.LUTData
    if first >= 1 << 15 and values.min() < 0:
        first -= 1 << 16  # a negative first value, written as unsigned
    entries: Number
    if isinstance(data, bytes):
        word = f"{'<' if dataset.original_encoding[1] else '>'}u2"
        entries = np.frombuffer(data, word if len(data) >= 2 * count else "u1")[:count]
    else:
        entries = np.atleast_1d(np.asarray(data, np.uint16))
    return np.take(entries, np.clip(np.rint(values).astype(np.int64) - first, 0, len(entries) - 1))
