"""A check of an encoded image's header and last bytes, before any pixel is decoded.

Both executors run it first, so that they decode the same images, and so that no header makes a decoder reserve more
than an image may have that Sternum packs.
"""

from typing import Final, NamedTuple

from infra.arrays import UInt8
from sharding.images.encode import MAX_PIXELS, MAX_SIDE_PX, TOO_LARGE
from sharding.images.file_formats import JPEG_END, JPEG_FRAMES, JPEG_SCAN, JPEG_SIGNATURE, PNG_END, PNG_HEADER

_PNG_PLAIN: Final = (0, 2)  # the color types gray and RGB, without palette or alpha (PNG specification, 11.2.1)


class _Frame(NamedTuple):
    height: int
    width: int
    is_plain: bool  # 8-bit gray or RGB


def header_problem(encoded: UInt8, height: int, width: int) -> str | None:
    """Return why an image must not be decoded; None for a complete 8-bit gray or RGB JPEG or PNG of this size.

    Args:
        encoded: the file's bytes
        height: expected height in pixels
        width: expected width in pixels
    """
    content = encoded.data
    if bytes(content[:3]) == JPEG_SIGNATURE:
        frame, end = _jpeg_frame(content), JPEG_END
    elif len(content) >= 33 and bytes(content[:16]) == PNG_HEADER:
        frame, end = _png_frame(content), PNG_END
    else:
        return "not a JPEG or PNG file"
    problem = _frame_problem(frame, height, width)
    if problem is None and bytes(content[-len(end) :]) != end:
        return "its end is missing"
    return problem


def _frame_problem(frame: _Frame | None, height: int, width: int) -> str | None:
    if frame is None:
        return "its header declares no size"
    if (frame.height, frame.width) != (height, width):
        return f"its header declares {frame.width} x {frame.height} px, the index {width} x {height} px"
    if height * width > MAX_PIXELS or max(height, width) > MAX_SIDE_PX:
        return TOO_LARGE
    return None if frame.is_plain else "its pixels are neither 8-bit gray nor 8-bit RGB"


def _jpeg_frame(content: memoryview) -> _Frame | None:
    position = 2
    while position + 10 <= len(content) and content[position] == 0xFF:
        marker = content[position + 1]
        if marker in JPEG_FRAMES:
            is_plain = content[position + 4] == 8 and content[position + 9] in (1, 3)
            return _Frame(_number(content, position + 5, 2), _number(content, position + 7, 2), is_plain)
        if marker == JPEG_SCAN:
            return None
        position += 2 + _number(content, position + 2, 2)
    return None


def _png_frame(content: memoryview) -> _Frame:
    is_plain = content[24] == 8 and content[25] in _PNG_PLAIN
    return _Frame(_number(content, 20, 4), _number(content, 16, 4), is_plain)


def _number(content: memoryview, start: int, size: int) -> int:
    return int.from_bytes(content[start : start + size], "big")
