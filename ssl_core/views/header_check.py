"""A check of an encoded image's header and last bytes, before any pixel is decoded.

Both executors run it first, so that they decode the same images, and so that no header makes a decoder reserve
gigabytes or work for minutes.
"""

from typing import NamedTuple

from infra.arrays import UInt8
from sharding.images import jpeg, png
from sharding.images.file_formats import JPEG_SIGNATURE
from sharding.images.limits import TOO_LARGE, is_too_large


class _Header(NamedTuple):
    height: int
    width: int
    is_plain: bool  # 8-bit gray or RGB
    end: bytes  # of a complete file


def header_problem(encoded: UInt8, height: int, width: int) -> str | None:
    """Return why an image must not be decoded; None for a complete 8-bit gray or RGB JPEG or PNG of this size.

    Args:
        encoded: the file's bytes
        height: expected height in pixels
        width: expected width in pixels
    """
    content = encoded.tobytes()
    header = _header_of(content)
    if isinstance(header, str):
        return header
    if (header.height, header.width) != (height, width):
        return f"its header declares {header.width} x {header.height} px, the index {width} x {height} px"
    if is_too_large(width, height):
        return TOO_LARGE
    if header.end == jpeg.END and jpeg.has_too_many_scans(content, height * width):
        return jpeg.TOO_MANY_SCANS
    if not header.is_plain:
        return "its pixels are neither 8-bit gray nor 8-bit RGB"
    return None if content.endswith(header.end) else "its end is missing"


def _header_of(content: bytes) -> _Header | str:
    """Return what a header declares, or what is wrong with it."""
    if content.startswith(png.HEADER) and len(content) >= png.HEADER_BYTES:
        return _Header(*png.size_of(content), png.is_plain(content), png.END)
    if not content.startswith(JPEG_SIGNATURE):
        return "not a JPEG or PNG file"
    frame = jpeg.frame_of(content)
    if frame is None:
        return "its header declares no size"
    return _Header(frame.height, frame.width, frame.bits == 8 and frame.channels in (1, 3), jpeg.END)
