from io import BytesIO

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sharding.images.jpeg import Frame, frame_of, has_too_many_scans, is_plain_gray, problem
from tests.sharding.conftest import RadiographMaker


@pytest.fixture
def content(radiograph: RadiographMaker) -> bytes:
    file = BytesIO()
    radiograph(0).save(file, "JPEG", progressive=True)
    return file.getvalue()


def with_frame(content: bytes, offset: int, value: int) -> bytes:
    """The same JPEG with another byte at this offset from its frame's marker."""
    changed = bytearray(content)
    changed[content.index(b"\xff\xc2") + offset] = value
    return bytes(changed)


def test_frame_is_what_the_header_declares(content: bytes) -> None:
    assert frame_of(content) == Frame(process=2, bits=8, height=60, width=72, channels=1)
    assert problem(content) is None


def test_frames_that_no_decoder_reads_are_named_and_not_called_damaged(content: bytes) -> None:
    assert problem(with_frame(content, 4, 12)) == "JPEG of 12 bits is not supported; convert it to PNG"
    assert problem(with_frame(content, 1, 0xC3)) == "JPEG of process SOF3 is not supported; convert it to PNG"
    assert problem(with_frame(content, 9, 2)) == "JPEG of 2 channels is not supported; convert it to PNG"


def test_scans_count_as_often_as_they_pass_over_the_pixels(content: bytes) -> None:
    start = content.rindex(b"\xff\xda")
    hundred = content[:-2] + content[start:-2] * 94 + content[-2:]  # Pillow's progressive gray files have 6 scans
    assert not has_too_many_scans(content, 64_000_000)
    assert not has_too_many_scans(hundred, 10_000_000)
    assert has_too_many_scans(hundred, 11_000_000)
    assert not has_too_many_scans(b"\xff\xd8" + b"\xff\xda" * 100, 11_000_000)  # 202 bytes are 20 scans at most


@given(st.binary(max_size=300))
def test_anything_is_answered_whatever_the_bytes(content: bytes) -> None:
    content = b"\xff\xd8\xff" + content
    assert not is_plain_gray(content) or content.endswith(b"\xff\xd9")
    assert frame_of(content) is None or frame_of(content + b"\0") == frame_of(content)
    assert problem(content) is None or isinstance(problem(content), str)
