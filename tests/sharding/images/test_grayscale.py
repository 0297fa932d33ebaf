import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sharding.images.grayscale import from_16_bit, to_8_bit

ALL_16_BIT = np.arange(65536, dtype=np.uint16)


def test_16_bit_pixels_become_8_bit_over_the_full_range() -> None:
    assert (from_16_bit(ALL_16_BIT) == np.floor(ALL_16_BIT / 257 + 0.5)).all()


@pytest.mark.parametrize("bits", [10, 12, 14])
def test_16_bit_files_show_the_values_of_a_detector_from_the_smallest_to_the_largest(bits: int) -> None:
    """As cv2.imwrite saves the pixel array of a DICOM file."""
    values = ALL_16_BIT[100 : 1 << bits]
    gray = from_16_bit(values)
    assert (gray == to_8_bit(values, 100, (1 << bits) - 1)).all()
    assert len(np.unique(gray)) == 256


def test_16_bit_files_show_their_full_range_when_a_value_needs_more_bits_than_a_detector_gives() -> None:
    assert from_16_bit(np.array([300, 1 << 14], np.uint16)).tolist() == [1, 64]


def test_16_bit_files_keep_8_bit_values_as_they_are() -> None:
    assert from_16_bit(ALL_16_BIT[20:200]).tolist() == list(range(20, 200))


def test_8_bit_pixels_stay_as_they_are_when_the_ends_are_those_of_8_bits() -> None:
    assert (to_8_bit(ALL_16_BIT[:256], 0, 255) == np.arange(256)).all()


@given(st.integers(-(2**15), 2**16), st.integers(1, 2**16))
def test_gray_rises_from_0_to_255_between_the_ends_and_stays_there_beyond(low: float, width: float) -> None:
    gray = to_8_bit(np.arange(low - 5, low + width + 6), low, low + width).astype(int)
    assert (gray[:6] == 0).all()
    assert (gray[-6:] == 255).all()
    assert (np.diff(gray) >= 0).all()


def test_gray_is_black_when_the_ends_meet() -> None:
    assert (to_8_bit(np.full((2, 3), 7), 7, 7) == np.zeros((2, 3))).all()
