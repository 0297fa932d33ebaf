"""The size and depth that an encoded image declares: JPEG, JPEG Lossless, JPEG-LS, JPEG 2000 and HTJ2K.

JPEG: ITU-T T.81, B.2.2; JPEG-LS uses the same frame header (ITU-T T.87, C.2.2). JPEG 2000 and HTJ2K: ITU-T T.800,
A.5.1.
"""

import struct
from typing import Final, NamedTuple

from sharding.images.file_formats import JPEG_FRAMES, JPEG_SCAN, JPEG_SIGNATURE

_JPEG_LS_FRAME: Final = 0xF7
_JPEG_2000_START: Final = b"\xff\x4f\xff\x51"  # start of codestream, then the SIZ segment
_JP2_SIGNATURE: Final = b"\x00\x00\x00\x0cjP  "


class Codestream(NamedTuple):
    """What the header of an encoded image declares.

    Attributes:
        height: in pixels
        width: in pixels
        bits: bits per pixel and channel
        channels: number of channels
    """

    height: int
    width: int
    bits: int
    channels: int


def declared(encoded: bytes) -> Codestream | None:
    """Return what an encoded image declares, None if its header is not found."""
    try:
        if encoded.startswith(JPEG_SIGNATURE):
            return _jpeg(encoded)
        start = encoded.find(_JPEG_2000_START) if encoded.startswith(_JP2_SIGNATURE) else 0
        return _jpeg_2000(encoded, start) if encoded.startswith(_JPEG_2000_START, max(start, 0)) else None
    except (struct.error, IndexError):  # the file ends within the header
        return None


def _jpeg(encoded: bytes) -> Codestream | None:
    position = 2
    while encoded[position] == 0xFF:
        marker = encoded[position + 1]
        if marker == 0xFF:  # a fill byte
            position += 1
            continue
        if marker in JPEG_FRAMES or marker == _JPEG_LS_FRAME:
            bits, height, width, channels = struct.unpack_from(">BHHB", encoded, position + 4)
            return Codestream(height, width, bits, channels)
        if marker == JPEG_SCAN:
            return None
        position += 2 + int.from_bytes(encoded[position + 2 : position + 4], "big")
    return None


def _jpeg_2000(encoded: bytes, start: int) -> Codestream:
    right, bottom, left, top = struct.unpack_from(">4I", encoded, start + 8)
    channels, depth = struct.unpack_from(">HB", encoded, start + 40)
    return Codestream(bottom - top, right - left, (depth & 0x7F) + 1, channels)
