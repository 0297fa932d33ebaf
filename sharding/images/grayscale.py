"""The mapping of gray values of any depth to 8 bits.

Values between two ends map linearly to 0 to 255. The ends depend on the file:

- a 16-bit image file (PNG, TIFF): 0 and 65535, as the formats define, if a value needs more than 14 bits. Otherwise
  the file does not use this range: detectors give 10 to 14 bits, and many programs store such values in 16-bit files as
  they are. No correct radiograph is that dark, and nothing in the file declares the bits (PNG's sBIT describes values
  that were scaled). So the ends are those of a DICOM file with the same values and no window: see below;
- a DICOM file with a window or a VOI LUT: the ends of the window, or of the LUT's output;
- a DICOM file without either: the ends of the stored range if it has 8 bits or fewer, so that 8-bit pixels do not
  change. With more bits, the smallest and the largest value in the image, without padding: stored values have no unit
  that two devices share, and 12-bit values declared as 16 bits, which is common, would turn nearly black.

No percentile is cut off, since that would saturate a part of every image, usually dense bone or metal.
"""

from typing import Final

import numpy as np

from infra.arrays import Integer, Number, UInt8

MOST_DETECTOR_BITS: Final = 14
FEWEST_GRAY_LEVELS: Final = 8  # fewer, in an image before it is resized, are a mask, a drawing or a wrong window


def to_8_bit(values: Number, low: float, high: float) -> UInt8:
    """Map values of any shape from [low, high] to 0 to 255, rounded and clipped; all zeros unless high > low."""
    if not high > low:
        return np.zeros(values.shape, np.uint8)
    levels = (values.astype(np.float64) - low) * (255 / (high - low))
    return np.rint(np.clip(levels, 0, 255)).astype(np.uint8)


def from_16_bit(pixels: Integer) -> UInt8:
    """Map the pixels of a 16-bit image file, of any shape, to 8 bits."""
    low, high = int(pixels.min()), int(pixels.max())
    if high >= 1 << MOST_DETECTOR_BITS:
        low, high = 0, 65535
    elif high < 256:
        low, high = 0, 255
    table = to_8_bit(np.arange(65536), low, high)
    # In parts, since numpy makes an index of 8 bytes out of each pixel.
    return np.concatenate([table[part] for part in np.array_split(pixels, 1 + pixels.size // 2**20)])
