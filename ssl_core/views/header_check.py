"""A check of an encoded image's header and last bytes, before any pixel is decoded.

Both executors run it first, so that they decode the same images, and so that no header makes a decoder reserve
gigabytes.
"""

from typing import Final, NamedTuple

from infra.arrays import UInt8

_JPEG_START: Final = b"\xff\xd8\xff"
_JPEG_END: Final = b"\xff\xd9"
# Start-of-frame markers hold the size (ITU-T T.81, table B.1); DHT, JPG and DAC share their range but do not.
_JPEG_FRAMES: Final = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_JPEG_SCAN: Final = 0xDA
_PNG_START: Final = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR"
_PNG_END: Final = b"\x00\x00\x00\x00IEND\xaeB`\x82"
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
    if bytes(content[:3]) == _JPEG_START:
        frame, end = _jpeg_frame(content), _JPEG_END
    elif len(content) >= 33 and bytes(content[:16]) == _PNG_START:
        frame, end = _png_frame(content), _PNG_END
    else:
        return "not a JPEG or PNG file"
    if frame is None:
        return "its header declares no size"
    if (frame.height, frame.width) != (height, width):
        return f"its header declares {frame.width} x {frame.height} px, the index {width} x {height} px"
    if not frame.is_plain:
        return "its pixels are neither 8-bit gray nor 8-bit RGB"
    if bytes(content[-len(end) :]) != end:
        return "its end is missing"
    return None


def _jpeg_frame(content: memoryview) -> _Frame | None:
    position = 2
    while position + 10 <= len(content) and content[position] == 0xFF:
        marker = content[position + 1]
        if marker in _JPEG_FRAMES:
            is_plain = content[position + 4] == 8 and content[position + 9] in (1, 3)
            return _Frame(_number(content, position + 5, 2), _number(content, position + 7, 2), is_plain)
        if marker == _JPEG_SCAN:
            return None
        position += 2 + _number(content, position + 2, 2)
    return None


def _png_frame(content: memoryview) -> _Frame:
    is_plain = content[24] == 8 and content[25] in _PNG_PLAIN
    return _Frame(_number(content, 20, 4), _number(content, 16, 4), is_plain)


def _number(content: memoryview, start: int, size: int) -> int:
    return int.from_bytes(content[start : start + size], "big")
