import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from sharding.images.grayscale import from_16_bit, to_8_bit

ALL_16_BIT = np.arange(65536, dtype=np.uint16)


def test_16_bit_pixels_become_8_bit_over_the_full_range() -> None:
    assert (from_16_bit(ALL_16_BIT) == np.floor(ALL_16_BIT / 257 + 0.5)).all()


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
