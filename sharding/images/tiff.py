"""TIFF files by their first directory (TIFF 6.0, section 2), without decoding."""

import struct
from typing import Final, NamedTuple

from sharding.images.limits import MAX_PIXELS, MAX_SIDE_PX

_COMPRESSIONS: Final = {  # lossless, and bounded by the number of pixels
    1: "none",
    5: "LZW",
    8: "Deflate",
    32773: "PackBits",
    32946: "Deflate",
}
_OTHERS: Final = {2: "CCITT", 3: "CCITT", 4: "CCITT", 6: "JPEG", 7: "JPEG", 34712: "JPEG 2000", 50000: "Zstandard"}
_WORDS: Final = {1: "B", 3: "H", 4: "I"}  # BYTE, SHORT and LONG, by the number of the type
_UNSIGNED: Final = 1  # SampleFormat


UNSUPPORTED: Final = "pixels are neither 8-bit nor 16-bit unsigned integers; convert the file to PNG"


class Directory(NamedTuple):
    """The elements of the first image that decide whether it is decoded."""

    bits: int
    channels: int
    compression: int
    sample_format: int
    tile_pixels: int
    blocks: int
    has_other_pages: bool


def directory_of(content: bytes) -> Directory:
    """Return the first directory.

    Raises:
        struct.error: if it is not inside the file
    """
    order = "<" if content.startswith(b"I") else ">"
    (start,) = struct.unpack_from(f"{order}I", content, 4)
    (entries,) = struct.unpack_from(f"{order}H", content, start)
    firsts: dict[int, int] = {}
    counts: dict[int, int] = {}
    for number in range(entries):
        position = start + 2 + 12 * number
        tag, kind, count = struct.unpack_from(f"{order}HHI", content, position)
        word = _WORDS.get(kind)
        if word is None or tag in counts:
            continue
        at = position + 8
        if count * struct.calcsize(word) > 4:
            (at,) = struct.unpack_from(f"{order}I", content, at)
        (firsts[tag],) = struct.unpack_from(order + word, content, at)
        counts[tag] = count
    (following,) = struct.unpack_from(f"{order}I", content, start + 2 + 12 * entries)
    return Directory(
        bits=firsts.get(258, 1),
        channels=firsts.get(277, 1),
        compression=firsts.get(259, 1),
        sample_format=firsts.get(339, _UNSIGNED),
        tile_pixels=firsts.get(322, 0) * firsts.get(323, 0),
        blocks=max(counts.get(273, 0), counts.get(324, 0)),
        has_other_pages=following != 0,
    )


def problem(directory: Directory) -> str | None:
    """Return why a TIFF is not decoded, although it may be whole; None if a decoder may try."""
    if directory.has_other_pages:
        return "TIFF of several pages"
    if directory.compression not in _COMPRESSIONS:
        name = _OTHERS.get(directory.compression, f"number {directory.compression}")
        return f"TIFF with compression {name} is not supported; convert it to PNG"
    if directory.sample_format != _UNSIGNED or directory.bits > 16:
        return UNSUPPORTED
    if directory.tile_pixels > MAX_PIXELS or directory.blocks > 4 * MAX_SIDE_PX:
        return "TIFF of too large or too many tiles"
    return None
