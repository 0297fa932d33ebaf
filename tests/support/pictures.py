"""Pictures that differ from each other as radiographs of different patients do: coarse structure, one for each seed."""

import numpy as np
from PIL import Image


def picture(seed: int, width: int = 120, height: int = 80) -> Image.Image:
    """Return a smooth gray image that no other seed gives."""
    coarse = np.random.default_rng(seed).integers(0, 256, (16, 20), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def center_square(image: Image.Image) -> Image.Image:
    """Return the largest square in the center of an image."""
    side = min(image.size)
    left, top = ((length - side) // 2 for length in image.size)
    return image.crop((left, top, left + side, top + side))
