import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sharding.datasets.patient_fields import age_of
from sharding.format.sample import Sample, key_of_path

names = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="/\0"), min_size=1, max_size=200)


@given(names, names)
def test_key_of_a_path_is_a_key_whatever_the_name_and_differs_with_the_folder(folder: str, name: str) -> None:
    here, there = (key_of_path(Path(part) / name) for part in (f"a{folder}", f"b{folder}"))
    assert re.fullmatch(r"[A-Za-z0-9_-]{1,90}", here)
    assert here != there


def test_metadata_leaves_out_a_path_that_identifies() -> None:
    sample = Sample("key", Path("DOE/1.dcm"), "1", path_identifies=True)
    assert sample.metadata()["path"] is None
    assert sample.metadata().keys() == Sample("key", Path("1.png"), "1").metadata().keys()
    assert Sample("key", Path("a/1.png"), "1").metadata()["path"] == "a/1.png"


@pytest.mark.parametrize(
    ("text", "years"),
    [("58", 58), ("058Y", 58), ("006M", 0.5), ("62.5", 62.5), ("", None), ("sixty", None), ("414", None), ("-3", None)],
)
def test_age_is_in_years_or_unknown(text: str, years: float | None) -> None:
    assert age_of(text) == years
