"""The formats of image files by their first bytes; imports no pydicom, which a base install lacks.

JPEG: ITU-T T.81, annex B. PNG: PNG specification, 5.2 and 11.2. TIFF: TIFF 6.0, section 2. WebP: RFC 9649, 2.4.
DICOM: PS3.10, 7.1.
"""

import re
from typing import Final, NamedTuple

JPEG_SIGNATURE: Final = b"\xff\xd8\xff"  # start of image, then the first byte of any marker
PNG_SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"
SIGNATURES: Final = {"jpg": JPEG_SIGNATURE, "png": PNG_SIGNATURE}  # by the extension of a packed image

DICOM_HEAD_BYTES: Final = 132  # a preamble of 128 bytes, then the signature; enough to tell all other formats too


class FileFormat(NamedTuple):
    """A format of image files.

    Attributes:
        name: as users know it
        signature: a pattern that the first DICOM_HEAD_BYTES of its files match
        decoder: Pillow's name of it; None if Sternum does not decode it
    """

    name: str
    signature: bytes
    decoder: str | None


# Not decoded are formats whose decoders nothing bounds (GIF's comments cost Pillow quadratic time; JPEG 2000 and AVIF
# take minutes for the largest size), and formats that Pillow does not read. Such files are named, not called damaged.
DICOM: Final = FileFormat("DICOM", rb".{128}DICM", "pydicom")
JPEG: Final = FileFormat("JPEG", rb"\xff\xd8\xff(?!\xf7)", "JPEG")
PNG: Final = FileFormat("PNG", rb"\x89PNG\r\n\x1a\n", "PNG")
TIFF: Final = FileFormat("TIFF", rb"II\*\0|MM\0\*", "TIFF")
_FORMATS: Final = (
    DICOM,
    JPEG,
    PNG,
    TIFF,
    FileFormat("WebP", rb"RIFF.{4}WEBP", "WEBP"),
    FileFormat("BMP", rb"BM.{12}[\x0c\x28\x34\x38\x40\x6c\x7c]\0{3}", "BMP"),
    FileFormat("GIF", rb"GIF8[79]a", None),
    FileFormat("JPEG 2000", rb"\0{3}\x0cjP  \r\n\x87\n|\xffO\xffQ", None),
    FileFormat("JPEG-LS", rb"\xff\xd8\xff\xf7", None),
    FileFormat("JPEG XL", rb"\0{3}\x0cJXL \r\n\x87\n|\xff\n", None),
    FileFormat("AVIF", rb".{4}ftypavi[fs]", None),
    FileFormat("HEIF", rb".{4}ftyp(?:hei[cmsx]|hev[cmsx]|mif1|msf1)", None),
    FileFormat("BigTIFF", rb"II\+\0|MM\0\+", None),
    FileFormat("NIfTI", rb"\x5c\x01\0\0|\0\0\x01\x5c", None),
    FileFormat("NRRD", rb"NRRD000", None),
    FileFormat("Netpbm", rb"P[1-7]\s", None),
)
_ANY: Final = re.compile(b"|".join(b"(%s)" % entry.signature for entry in _FORMATS), re.DOTALL)
DECODED: Final = ", ".join(entry.name for entry in _FORMATS if entry.decoder)


def format_of(head: bytes) -> FileFormat | None:
    """Return the format of a file that starts with `head` (DICOM_HEAD_BYTES, or all of it), None if none is known."""
    match = _ANY.match(head)
    return _FORMATS[match.lastindex - 1] if match and match.lastindex else None


def is_dicom(head: bytes) -> bool:
    """Return whether a file that starts with `head` (DICOM_HEAD_BYTES or more) is DICOM."""
    return format_of(head) is DICOM
