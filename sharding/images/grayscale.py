"""The mapping of gray values of any depth to 8 bits.

Values between two ends map linearly to 0 to 255. The ends depend on the file:

- a 16-bit PNG: 0 and 65535, as the format defines;
- a DICOM file with a window or a VOI LUT: the ends of the window, or of the LUT's output;
- a DICOM file without either: the ends of the stored range if it has 8 bits or fewer, so that 8-bit pixels do not
  change. With more bits, the smallest and the largest value in the image, without padding: stored values have no unit
  that two devices share, and 12-bit values declared as 16 bits, which is common, would turn nearly black.

No percentile is cut off, since that would saturate a part of every image, usually dense bone or metal.
"""

import numpy as np

from infra.arrays import Integer, Number, UInt8


def to_8_bit(values: Number, low: float, high: float) -> UInt8:
    """Map values of any shape from [low, high] to 0 to 255, rounded and clipped; all zeros unless high > low."""
    if not high > low:
        return np.zeros(values.shape, np.uint8)
    levels = (values.astype(np.float64) - low) * (255 / (high - low))
    return np.rint(np.clip(levels, 0, 255)).astype(np.uint8)


def from_16_bit(pixels: Integer) -> UInt8:
    """Map full-range 16-bit pixels, 0 to 65535, of any shape to 8 bits."""
    return np.take(_SIXTEEN_BIT, pixels)


_SIXTEEN_BIT = to_8_bit(np.arange(65536), 0, 65535)
