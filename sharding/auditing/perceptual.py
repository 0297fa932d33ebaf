"""Measures of whether two radiographs are the same picture: a perceptual hash finds pairs, a correlation confirms them.

The thresholds were measured on Kermany's and NIH's radiographs (docs/design.md, "The audit").
"""

from itertools import product
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy.fft import dctn

from infra.arrays import UInt64
from sharding.auditing.hamming import BITS

Thumbnails = npt.NDArray[np.uint8]
_Pixels = npt.NDArray[np.float32]

THUMBNAIL_PX: Final = 64
MAX_HASH_DISTANCE: Final = 40
MIN_CORRELATION: Final = 0.985

_HASH_SIDE: Final = 16
_CROPS: Final = (0.0, 0.01, 0.02)  # of a side, tried at each of the four
_FLAT: Final = 0.5  # a flat image with a single pixel one gray level off has a length of 1


def thumbnail(image: Image.Image) -> Thumbnails:
    """Return a gray image squeezed to (THUMBNAIL_PX, THUMBNAIL_PX)."""
    return np.asarray(image.resize((THUMBNAIL_PX, THUMBNAIL_PX), Image.Resampling.LANCZOS))


def perceptual_hashes(thumbnails: Thumbnails) -> UInt64:
    """Return the pHash of each thumbnail (n, px, px) as (n, 4) words.

    The 16 x 16 lowest frequencies of the cosine transform, each a bit: above their median or not (Zauner 2010;
    `imagehash.phash(image, hash_size=16)` gives the same bits). Bit i is bit i % 64 of word i // 64.
    """
    lowest = dctn(thumbnails.astype(np.float64), axes=(1, 2))[:, :_HASH_SIDE, :_HASH_SIDE].reshape(-1, BITS)
    bits = lowest > np.median(lowest, axis=1, keepdims=True)
    return np.packbits(bits, axis=1, bitorder="little").view("<u8").astype(np.uint64)


def correlation(first: Thumbnails, second: Thumbnails) -> float:
    """Return the largest correlation of two thumbnails (px, px) over slight crops of either.

    Each side is cropped by 0, 1 or 2 %. Without crops, a margin of 1 % would lower a copy's correlation more than the
    gap between a copy and another patient. A flat image correlates with nothing.
    """
    a, b = first.astype(np.float32), second.astype(np.float32)
    best = max(
        float((_centered(_cropped(cropped)) * _centered(whole)).sum(axis=(-2, -1)).max())
        for cropped, whole in ((a, b), (b, a))
    )
    return min(best, 1.0)


def _cropped(pixels: _Pixels) -> _Pixels:
    """Return (9, 9, px, px): each crop of the height with each crop of the width, stretched to full size."""
    rows: _Pixels = _STRETCHES @ pixels
    stretched: _Pixels = rows[:, None] @ _STRETCHES.transpose(0, 2, 1)
    return stretched


def _centered(pixels: _Pixels) -> _Pixels:
    """Shift and scale images (..., px, px) to mean 0 and sum of squares 1; flat images become 0."""
    pixels = pixels - pixels.mean(axis=(-2, -1), keepdims=True)
    length = np.sqrt((pixels * pixels).sum(axis=(-2, -1), keepdims=True))
    unit: _Pixels = np.where(length > _FLAT, pixels, 0) / np.maximum(length, _FLAT)
    return unit


def _stretch(low: float, high: float) -> _Pixels:
    """Return the matrix (px, px) that crops these shares off the ends of an axis and stretches the rest linearly."""
    centers = (np.arange(THUMBNAIL_PX) + 0.5) / THUMBNAIL_PX
    positions = np.clip(THUMBNAIL_PX * (low + centers * (1 - low - high)) - 0.5, 0, THUMBNAIL_PX - 1)
    return np.maximum(0, 1 - np.abs(positions[:, None] - np.arange(THUMBNAIL_PX))).astype(np.float32)


_STRETCHES: Final = np.stack([_stretch(low, high) for low, high in product(_CROPS, _CROPS)])
