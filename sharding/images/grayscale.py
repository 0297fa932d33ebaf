"""Values of any depth into 8 bits: the one rule that packing, probing and export share.

A value becomes its place between two ends, in 255 equal steps. What differs is where the ends come from:

- a 16-bit PNG: 0 and 65535, since the format defines them so;
- a DICOM file with a window or a VOI LUT: the ends of the window, or of what the LUT gives;
- a DICOM file without either: the ends of the stored range if that has 8 bits or fewer, so that 8-bit pixels stay as
  they are. With more bits, the smallest and the largest value in the image, padding aside: stored values have no unit
  that two devices share, and 12-bit values declared as 16 bits, which is common, would else come out nearly black.

No percentile is cut off: that would saturate a share of every image, dense bone or metal as a rule.
"""

import numpy as np
import numpy.typing as npt

Uint8 = npt.NDArray[np.uint8]


def to_8_bit(values: npt.NDArray[np.number], low: float, high: float) -> Uint8:
    """Return the place of each value between `low` (0) and `high` (255), rounded, values beyond them clipped.

    All zeros unless high > low.
    """
    if not high > low:
        return np.zeros(values.shape, np.uint8)
    places = (values.astype(np.float64) - low) * (255 / (high - low))
    return np.rint(np.clip(places, 0, 255)).astype(np.uint8)


def from_16_bit(pixels: npt.NDArray[np.integer]) -> Uint8:
    """Return full-range 16-bit pixels, 0 to 65535, in 8 bits."""
    return np.take(_SIXTEEN_BIT, pixels)


_SIXTEEN_BIT = to_8_bit(np.arange(65536), 0, 65535)
