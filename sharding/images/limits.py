"""Limits of the files that are decoded: the same for packing, verifying, pretraining and probing.

They depend only on the file, never on time or on the machine, so what is packed is a function of the dataset. Together
they bound what one file costs, whoever made it: some ten seconds and half a gigabyte.
"""

from typing import Final

MAX_PIXELS: Final = 64_000_000  # eight times the largest originals of CheXpert and ChestX-ray14
MAX_SIDE_PX: Final = 65_500  # the largest side of a JPEG
MAX_FILE_BYTES: Final = 2 * MAX_PIXELS + 1_000_000  # 16-bit gray pixels, not compressed, and a header
# A JPEG decoder passes over all pixels in each scan; usual progressive files have up to 10 scans.
MAX_SCANNED_PIXELS: Final = 16 * MAX_PIXELS

TOO_LARGE: Final = f"declared size above {MAX_PIXELS // 10**6} megapixels or {MAX_SIDE_PX} px a side"


def is_too_large(width: int, height: int) -> bool:
    """Return whether an image of this size in pixels is above the limits."""
    return width * height > MAX_PIXELS or max(width, height) > MAX_SIDE_PX
