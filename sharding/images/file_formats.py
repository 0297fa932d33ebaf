"""Markers and signatures of image files; imports no pydicom, which a base install lacks.

JPEG: ITU-T T.81, table B.1. PNG: PNG specification, 5.2 and 11.2. DICOM: PS3.10, 7.1.
"""

from typing import Final

JPEG_SIGNATURE: Final = b"\xff\xd8\xff"  # start of image, then the first byte of any marker
JPEG_END: Final = b"\xff\xd9"
# Start-of-frame markers hold the size; DHT, JPG and DAC lie in the same range and do not.
JPEG_FRAMES: Final = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
JPEG_HUFFMAN_FRAMES: Final = frozenset({0xC0, 0xC1, 0xC2})  # baseline, extended, progressive: what decoders support
JPEG_TABLES: Final = frozenset({0xC4, 0xDB, 0xDD})  # Huffman, quantization, restart interval
JPEG_SCAN: Final = 0xDA
JPEG_APP0: Final = 0xE0  # JFIF's header

PNG_SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"
PNG_HEADER: Final = PNG_SIGNATURE + b"\x00\x00\x00\rIHDR"
PNG_END: Final = b"\x00\x00\x00\x00IEND\xaeB`\x82"

SIGNATURES: Final = {"jpg": JPEG_SIGNATURE, "png": PNG_SIGNATURE}  # by the extension of a packed image

DICOM_HEAD_BYTES: Final = 132  # a preamble of 128 bytes, then the signature
_DICOM_SIGNATURE: Final = b"DICM"


def is_dicom(head: bytes) -> bool:
    """Return whether a file that starts with `head` (DICOM_HEAD_BYTES or more) is DICOM."""
    return head[DICOM_HEAD_BYTES - len(_DICOM_SIGNATURE) : DICOM_HEAD_BYTES] == _DICOM_SIGNATURE
