"""The record that is kept of an image, to find the same picture again without reading the image."""

from typing import Final

import numpy as np

HASH_BITS: Final = 256
HASH_WORDS: Final = HASH_BITS // 64

# The perceptual hashes of the whole image and of its center square (sharding.images.perceptual).
FINGERPRINT: Final = np.dtype([("whole", "<u8", (HASH_WORDS,)), ("center", "<u8", (HASH_WORDS,))])
