"""First bytes by which image files are recognized; needs no pydicom, which a base install does not have."""

from typing import Final

DICOM_HEAD_BYTES: Final = 132  # a preamble of 128 bytes, then the magic
_DICOM: Final = b"DICM"


def is_dicom(head: bytes) -> bool:
    """Return whether a file that starts with `head` (DICOM_HEAD_BYTES or more) is DICOM."""
    return head[DICOM_HEAD_BYTES - len(_DICOM) : DICOM_HEAD_BYTES] == _DICOM
