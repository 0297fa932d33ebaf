"""JPEG files by their markers (ITU-T T.81, annex B), without decoding."""

import re
from typing import Final, NamedTuple

import numpy as np

from sharding.images.file_formats import JPEG_SIGNATURE
from sharding.images.limits import MAX_SCANNED_PIXELS

END: Final = b"\xff\xd9"
# Start-of-frame markers hold the size; DHT, JPG and DAC lie in the same range and do not.
_FRAMES: Final = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_JPEG_LS_FRAME: Final = 0xF7  # ITU-T T.87, C.1.1; its header is that of other frames
_HUFFMAN_FRAMES: Final = frozenset({0xC0, 0xC1, 0xC2})  # baseline, extended, progressive: what all decoders support
_DECODED_PROCESSES: Final = (0, 1, 2, 9, 10)  # the same, and extended and progressive with arithmetic coding
_TABLES: Final = frozenset({0xC4, 0xDB, 0xDD})  # Huffman, quantization, restart interval
_SCAN: Final = 0xDA
_SCAN_BYTES: Final = 10  # of the shortest header of a scan (B.2.3): marker, length, one component, three parameters
_APP0: Final = 0xE0  # JFIF's header
_NEXT_MARKER: Final = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")  # after compressed data: any but a restart


TOO_MANY_SCANS: Final = f"JPEG whose scans pass over more than {MAX_SCANNED_PIXELS // 10**6} million pixels"


class Frame(NamedTuple):
    """What a JPEG's frame header declares."""

    process: int  # 0 baseline, 1 extended, 2 progressive, 3 lossless, ...: the number n of the marker SOFn
    bits: int
    height: int
    width: int
    channels: int


def frame_of(content: bytes) -> Frame | None:
    """Return the first frame header of a JPEG, None if there is none before the compressed data."""
    position = 2
    while position + 10 <= len(content) and content[position] == 0xFF:
        marker = content[position + 1]
        if marker in _FRAMES or marker == _JPEG_LS_FRAME:
            segment = content[position + 4 : position + 10]
            height, width = (int.from_bytes(segment[start : start + 2], "big") for start in (1, 3))
            return Frame(marker - 0xC0, segment[0], height, width, segment[5])
        if marker == _SCAN:
            return None
        position += 2 + int.from_bytes(content[position + 2 : position + 4], "big")
    return None


def problem(content: bytes) -> str | None:
    """Return why a JPEG is not decoded, although it may be whole; None if a decoder may try."""
    frame = frame_of(content)
    if frame is None:
        return None
    if frame.process not in _DECODED_PROCESSES:
        return f"JPEG of process SOF{frame.process} is not supported; convert it to PNG"
    if frame.bits == 12:  # 8 and 12 are the depths of the standard; any other is damage
        return "JPEG of 12 bits is not supported; convert it to PNG"
    if frame.channels == 2:
        return "JPEG of 2 channels is not supported; convert it to PNG"
    return None


def has_too_many_scans(content: bytes, pixels: int) -> bool:
    """Return whether decoding a JPEG of this many pixels passes over more of them than MAX_SCANNED_PIXELS.

    A scan of no data costs a decoder as much time as any other. So a file of 250 kB could take minutes. Every pair of
    bytes that could begin a scan counts: a decoder finds scans behind garbage too. Small files cannot hold too many,
    and a byte is counted eight times sooner than a pair.
    """
    return (
        len(content) // _SCAN_BYTES * pixels > MAX_SCANNED_PIXELS
        and int(np.count_nonzero(np.frombuffer(content, np.uint8) == _SCAN)) * pixels > MAX_SCANNED_PIXELS
        and content.count(bytes([0xFF, _SCAN])) * pixels > MAX_SCANNED_PIXELS
    )


def is_plain_gray(content: bytes) -> bool:
    """Return whether a file is a JPEG of one 8-bit channel that holds only pixels.

    It must have no EXIF (so no rotation), comment, profile or thumbnail, which may hold a patient's name, and no byte
    after the image. Only the markers are checked; the data may still be damaged.
    """
    position, gray = 2, False
    if not content.startswith(JPEG_SIGNATURE):
        return False
    while position + 2 <= len(content) and content[position] == 0xFF:
        if content[position : position + 2] == END:
            return gray and position + 2 == len(content)
        marker = content[position + 1]
        end = position + 2 + int.from_bytes(content[position + 2 : position + 4], "big")
        segment = content[position + 4 : end]
        if marker in _HUFFMAN_FRAMES:
            gray = segment[:1] == b"\x08" and segment[5:6] == b"\x01"
        elif marker == _SCAN:  # compressed data follow
            next_marker = _NEXT_MARKER.search(content, end)
            end = next_marker.start() if next_marker else len(content)
        elif not (marker in _TABLES or (marker == _APP0 and segment[:5] == b"JFIF\0" and len(segment) == 14)):
            return False
        position = end
    return False
