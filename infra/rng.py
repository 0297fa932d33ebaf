"""Random numbers as a pure function of (seed, stream, counters), vectorized over the counters.

Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3") has no state to save, draws the same
numbers on every machine, and gives any draw without computing the earlier ones. numpy's generators keep state and
do not promise the same stream in every version; this one is fixed by its published test vectors.
"""

import hashlib
from typing import Final

import numpy as np
import numpy.typing as npt

from infra.arrays import Float64, Int64, UInt32, UInt64

_MULTIPLIERS: Final = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL: Final = (0x9E3779B9, 0xBB67AE85)
_LOW: Final = np.uint64(0xFFFFFFFF)
_HALF: Final = np.uint64(32)


def philox4x32(counters: UInt32, key: tuple[int, int]) -> UInt32:
    """Apply ten rounds of Philox4x32.

    Args:
        counters: four 32-bit words for each block: (N, 4)
        key: two 32-bit words

    Returns:
        Four random words for each block: (N, 4).
    """
    c0, c1, c2, c3 = (counters[:, i].astype(np.uint64) for i in range(4))
    k0, k1 = key
    for _ in range(10):
        product0, product1 = _MULTIPLIERS[0] * c0, _MULTIPLIERS[1] * c2
        c0, c1, c2, c3 = (
            (product1 >> _HALF) ^ c1 ^ np.uint64(k0),
            product1 & _LOW,
            (product0 >> _HALF) ^ c3 ^ np.uint64(k1),
            product0 & _LOW,
        )
        k0, k1 = (k0 + _WEYL[0]) & 0xFFFFFFFF, (k1 + _WEYL[1]) & 0xFFFFFFFF
    return np.stack([c0, c1, c2, c3], axis=1).astype(np.uint32)


def _key(seed: int, stream: str) -> tuple[int, int]:
    digest = hashlib.sha256(f"{stream}:{seed}".encode()).digest()
    return int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:8], "little")


def draw_words(seed: int, stream: str, items: UInt64, epochs: npt.ArrayLike, count: int) -> UInt32:
    """Draw `count` 32-bit words for each of N items.

    Args:
        seed: the user's seed
        stream: the purpose, such as "view-0" or "window", so that two uses of one seed share nothing
        items: one counter for each item: (N,)
        epochs: a second counter below 2**32, a number or (N,)
        count: words for each item, up to 2**32

    Returns:
        The words: (N, count). A larger `count` only appends words.
    """
    items = np.asarray(items, np.uint64)
    blocks = -(-count // 4)
    counters = np.empty((len(items), blocks, 4), np.uint32)
    counters[..., 0] = (items & _LOW)[:, None]
    counters[..., 1] = (items >> _HALF)[:, None]
    counters[..., 2] = np.broadcast_to(np.asarray(epochs, np.uint32), len(items))[:, None]
    counters[..., 3] = np.arange(blocks)
    words = philox4x32(counters.reshape(-1, 4), _key(seed, stream))
    return words.reshape(len(items), blocks * 4)[:, :count]


def draw_uint64(seed: int, stream: str, items: UInt64, epochs: npt.ArrayLike, count: int = 1) -> UInt64:
    """Draw `count` 64-bit integers for each of N items: (N, count). The arguments are those of `draw_words`."""
    words = draw_words(seed, stream, items, epochs, 2 * count).astype(np.uint64)
    return (words[:, ::2] << _HALF) | words[:, 1::2]


def uniform(seed: int, stream: str, items: UInt64, epochs: npt.ArrayLike, count: int) -> Float64:
    """Draw `count` uniform numbers in (0, 1) for each of N items: (N, count). Arguments: see `draw_words`."""
    return (draw_words(seed, stream, items, epochs, count).astype(np.float64) + 0.5) / 2.0**32


def permutation(size: int, seed: int, stream: str, item: int = 0, epoch: int = 0) -> Int64:
    """Return the permutation of range(size) that (seed, stream, item, epoch) determines: (size,)."""
    keys = draw_uint64(seed, stream, np.array([item], np.uint64), epoch, size)[0]
    return np.argsort(keys, kind="stable")


def stable_hash(text: str) -> int:
    """Return 64 bits of the text's SHA-256: an identity that outlives the process, unlike `hash`."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")
