"""What the header of an encoded image declares: JPEG, JPEG Lossless, JPEG-LS, JPEG 2000 and HTJ2K.

JPEG 2000 and HTJ2K: ITU-T T.800, A.5.1; in a JP2 file, annex I.
"""

import struct
from typing import Final, NamedTuple

from sharding.images import jpeg
from sharding.images.file_formats import JPEG_SIGNATURE

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
    if encoded.startswith(JPEG_SIGNATURE):
        frame = jpeg.frame_of(encoded)
        return None if frame is None else Codestream(frame.height, frame.width, frame.bits, frame.channels)
    start = encoded.find(_JPEG_2000_START) if encoded.startswith(_JP2_SIGNATURE) else 0
    if start < 0 or not encoded.startswith(_JPEG_2000_START, start):
        return None
    try:
        right, bottom, left, top = struct.unpack_from(">4I", encoded, start + 8)
        channels, depth = struct.unpack_from(">HB", encoded, start + 40)
    except struct.error:  # the file ends within the header
        return None
    return Codestream(bottom - top, right - left, (depth & 0x7F) + 1, channels)
