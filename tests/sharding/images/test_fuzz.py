"""Damaged files of every format: an image or a reason, never another error, and never for long.

Hypothesis prints the changes that fail, and repeats them at the next run.
"""

from collections.abc import Callable
from datetime import timedelta
from io import BytesIO
from typing import Final

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian

from sharding.images.encode import EncodedImage, ImageRejected, encode

_HEADER_BYTES: Final = 400


def _saved(image_format: str, **options: object) -> bytes:
    coarse = Image.fromarray(np.random.default_rng(0).integers(0, 256, (6, 7), dtype=np.uint8))
    image = coarse.resize((36, 30), Image.Resampling.BICUBIC)
    if options.pop("deep", False):
        image = Image.fromarray(np.asarray(image).astype(np.uint16) * 257)
    buffer = BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def _dicom() -> bytes:
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = UID("1.2.840.10008.5.1.4.1.1.1.1")
    meta.MediaStorageSOPInstanceUID = UID("1.2.3")
    dataset = Dataset()
    dataset.file_meta = meta
    dataset.Modality, dataset.PatientID, dataset.PhotometricInterpretation = "DX", "P1", "MONOCHROME2"
    dataset.Rows, dataset.Columns, dataset.SamplesPerPixel, dataset.PixelRepresentation = 30, 36, 1, 0
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 12, 11
    dataset.WindowCenter, dataset.WindowWidth = "2048", "4096"
    values = np.random.default_rng(0).integers(0, 4096, (30, 36), dtype=np.uint16)
    dataset.PixelData = values.tobytes()
    dataset["PixelData"].VR = "OW"
    buffer = BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


_FILES: Final[dict[str, Callable[[], bytes]]] = {
    "jpeg": lambda: _saved("JPEG"),
    "progressive": lambda: _saved("JPEG", progressive=True),
    "png": lambda: _saved("PNG"),
    "png16": lambda: _saved("PNG", deep=True),
    "tiff": lambda: _saved("TIFF"),
    "tiff16": lambda: _saved("TIFF", deep=True),
    "tiff_lzw": lambda: _saved("TIFF", compression="tiff_lzw"),
    "tiff_deflate": lambda: _saved("TIFF", compression="tiff_adobe_deflate"),
    "webp": lambda: _saved("WEBP"),
    "webp_lossless": lambda: _saved("WEBP", lossless=True),
    "bmp": lambda: _saved("BMP"),
    "dicom": _dicom,
}


@st.composite
def _damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """The file with up to six bytes changed, most of them in its header, then perhaps cut or with a part doubled."""
    damaged = bytearray(content)
    in_header = st.integers(0, min(len(content), _HEADER_BYTES) - 1)
    anywhere = st.integers(0, len(content) - 1)
    for position in draw(st.lists(st.one_of(in_header, anywhere), max_size=6)):
        damaged[position] = draw(st.one_of(st.sampled_from([0, 1, 0x7F, 0x80, 0xFE, 0xFF]), st.integers(0, 255)))
    ending = draw(st.sampled_from(["whole", "cut", "doubled"]))
    start, end = sorted((draw(anywhere), draw(anywhere)))
    if ending == "cut":
        return bytes(damaged[:end])
    return bytes(damaged[:end] + damaged[start:]) if ending == "doubled" else bytes(damaged)


def _check(name: str, data: st.DataObject) -> None:
    content = data.draw(_damaged(_FILES[name]()))
    try:
        encoded = encode(content, 16, 90, pass_through=True)
    except ImageRejected as rejected:
        assert str(rejected)
        assert "\n" not in str(rejected)
    else:
        assert isinstance(encoded, EncodedImage)


_few = settings(max_examples=60, deadline=timedelta(seconds=5))
_many = settings(max_examples=10_000, deadline=timedelta(seconds=5), suppress_health_check=list(HealthCheck))


@pytest.mark.parametrize("name", _FILES)
@_few
@given(data=st.data())
def test_a_damaged_file_gives_an_image_or_a_reason(name: str, data: st.DataObject) -> None:
    _check(name, data)


@pytest.mark.slow
@pytest.mark.parametrize("name", _FILES)
@_many
@given(data=st.data())
def test_many_damaged_files_give_an_image_or_a_reason(name: str, data: st.DataObject) -> None:
    _check(name, data)


@pytest.mark.parametrize("name", _FILES)
def test_a_whole_file_gives_an_image(name: str) -> None:
    assert encode(_FILES[name](), 16, 90).height == 16
