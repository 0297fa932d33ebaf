"""PNG files by their chunks (PNG specification, 5 and 11), without decoding."""

from typing import Final

from sharding.images.file_formats import PNG_SIGNATURE

HEADER: Final = PNG_SIGNATURE + b"\x00\x00\x00\rIHDR"
HEADER_BYTES: Final = 33  # signature and IHDR
END: Final = b"\x00\x00\x00\x00IEND\xaeB`\x82"

_GRAY: Final = 0  # the color types (11.2.1)
_RGB: Final = 2
_PIXEL_CHUNKS: Final = frozenset({b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND", b"eXIf", b"acTL"})
_OLD_EXIF: Final = b"Raw profile type exif\0"  # the text in which ImageMagick kept EXIF before eXIf existed


def size_of(content: bytes) -> tuple[int, int]:
    """Return the (height, width) that the header declares, in pixels."""
    width, height = (int.from_bytes(content[start : start + 4], "big") for start in (16, 20))
    return height, width


def is_plain(content: bytes) -> bool:
    """Return whether the pixels are 8-bit gray or RGB, without palette or alpha."""
    return content[24] == 8 and content[25] in (_GRAY, _RGB)


def is_16_bit_color(content: bytes) -> bool:
    """Return whether there are several channels of 16 bits."""
    return content.startswith(HEADER) and content[24:25] == b"\x10" and content[25:26] != bytes([_GRAY])


def only_pixels(content: bytes) -> bytes:
    """Return a PNG without the chunks that do not change its pixels, their orientation or their number.

    Pillow refuses an image for its texts and profiles: more than 1 MB of them, or damaged ones.
    """
    kept, position = [memoryview(content)[: len(PNG_SIGNATURE)]], len(PNG_SIGNATURE)
    while position + 12 <= len(content):
        kind = content[position + 4 : position + 8]
        end = position + 12 + int.from_bytes(content[position : position + 4], "big")
        if kind in _PIXEL_CHUNKS or content.startswith(_OLD_EXIF, position + 8):
            kept.append(memoryview(content)[position:end])
        position = end
    return b"".join(kept)
