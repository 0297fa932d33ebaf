"""A gray image with a map in color over it, where nothing can blend them later."""

from typing import Final

import matplotlib
import numpy as np
from PIL import Image

from evaluation.pictures.radiographs import enlarged
from evaluation.results.picture_records import LONGEST_SIDE_PX
from infra.arrays import Float32, UInt8

_OPACITY: Final = 0.6  # of the color where the evidence is strongest


def overlay(pixels: Float32, cells: Float32) -> UInt8:
    """Return a gray image (size, size) from 0 to 1 with a map (h, w) in color over it, (side, side, 3).

    The side is at least 320 px. The gray image is visible where there is no evidence.
    """
    side = max(LONGEST_SIDE_PX, len(pixels))
    strength = enlarged(cells, side)[:, :, None]
    gray = np.asarray(Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC)).clip(0, 1)[:, :, None]
    color = matplotlib.colormaps["inferno"](strength[:, :, 0])[:, :, :3]
    mixed = gray * (1 - _OPACITY * strength) + color * _OPACITY * strength
    return np.rint(255 * mixed).astype(np.uint8)
