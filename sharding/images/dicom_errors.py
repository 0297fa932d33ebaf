"""The reasons for which a DICOM file cannot be packed, as an exception."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from PIL import Image

DAMAGED: Final = "truncated or damaged DICOM"


class DicomRejected(Exception):
    """The file is not a DICOM radiograph that can be packed; the message is the reason."""


@contextmanager
def errors_as_damage() -> Iterator[None]:
    """Turn any error into DicomRejected: pydicom raises all kinds on bytes that are not what they claim to be."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about odd values
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            yield
    except DicomRejected:
        raise
    except Exception as error:
        raise DicomRejected(DAMAGED) from error
