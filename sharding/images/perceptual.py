"""Measures of whether two radiographs are the same picture: a perceptual hash finds pairs, a correlation confirms them.

Both compare the whole images, squeezed to a square, and the center squares: a derived collection may hold the center
squares of the originals. The thresholds were measured on Kermany's and NIH's radiographs (docs/design.md, "The audit").
"""

from itertools import product
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image

from infra.arrays import UInt64
from sharding.images.fingerprint import HASH_BITS

Thumbnails = npt.NDArray[np.uint8]
_Pixels = npt.NDArray[np.float32]

THUMBNAIL_PX: Final = 64
MAX_HASH_DISTANCE: Final = 40
MIN_CORRELATION: Final = 0.985

_HASH_SIDE: Final = 16
_CROPS: Final = (0.0, 0.01, 0.02)  # of a side, tried at each of the four
_FLAT: Final = 0.5  # a flat image with a single pixel one gray level off has a length of 1


def fingerprint_of(image: Image.Image) -> bytes:
    """Return the FINGERPRINT of a gray image."""
    thumbnails = [thumbnail(image)] if image.width == image.height else [thumbnail(image), center_thumbnail(image)]
    hashes = perceptual_hashes(np.stack(thumbnails)).astype("<u8")
    return bytes(hashes[0].tobytes() + hashes[-1].tobytes())


def thumbnail(image: Image.Image) -> Thumbnails:
    """Return a gray image squeezed to (THUMBNAIL_PX, THUMBNAIL_PX)."""
    return _reduced(image, (0, 0, *image.size))


def center_thumbnail(image: Image.Image) -> Thumbnails:
    """Return the largest square in the center of a gray image, reduced to (THUMBNAIL_PX, THUMBNAIL_PX)."""
    side = min(image.size)
    left, top = ((length - side) / 2 for length in image.size)
    return _reduced(image, (left, top, left + side, top + side))


def _reduced(image: Image.Image, box: tuple[float, float, float, float]) -> Thumbnails:
    """Return a part of an image as a thumbnail; averaging first takes an eighth of the time of a Lanczos filter."""
    size = (THUMBNAIL_PX, THUMBNAIL_PX)
    return np.asarray(image.resize(size, Image.Resampling.BILINEAR, box, reducing_gap=1.5))


def perceptual_hashes(thumbnails: Thumbnails) -> UInt64:
    """Return the pHash of each thumbnail (n, px, px) as (n, 4) words.

    The 16 x 16 lowest frequencies of the cosine transform, each a bit: above their median or not (Zauner 2010;
    `imagehash.phash(image, hash_size=16)` gives the same bits for the same thumbnail). Bit i is bit i % 64 of word
    i // 64.
    """
    frequencies = _COSINES @ thumbnails.astype(np.float64) @ _COSINES.T
    lowest = frequencies.round(6).reshape(-1, HASH_BITS)  # so that zeros are zeros, whatever adds up the products
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


# The lowest frequencies of the cosine transform DCT-II (16, px).
_COSINES: Final = np.cos(np.pi / THUMBNAIL_PX * np.outer(np.arange(_HASH_SIDE), np.arange(THUMBNAIL_PX) + 0.5))
_STRETCHES: Final = np.stack([_stretch(low, high) for low, high in product(_CROPS, _CROPS)])
