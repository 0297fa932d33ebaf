import time
from typing import Any

import pytest
import yaml

from infra.configuration.plain_yaml import dump_yaml, load_yaml


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("7", 7),
        ("-7", -7),
        ("+7", 7),
        ("0", 0),
        ("0.5", 0.5),
        (".5", 0.5),
        ("3.", 3.0),
        ("1e-3", 0.001),
        ("1.0e+20", 1e20),
        ("true", True),
        ("False", False),
        ("null", None),
        ("~", None),
        ("", None),
        ("[1, a, ~]", [1, "a", None]),
        ("'7'", "7"),
    ],
)
def test_plain_values(text: str, value: Any) -> None:
    loaded = load_yaml(text)
    assert (loaded, type(loaded)) == (value, type(value))


NOT_NUMBERS = ["010", "-010", "00", "0x10", "0o10", "0b1", "1_000", "1:30", "010.5", ".inf", "-.inf", ".nan"]
NOT_TRUTH = ["yes", "no", "on", "off", "=", "2024-01-31", "s3://b/c", "~/x"]


@pytest.mark.parametrize("text", NOT_NUMBERS + NOT_TRUTH)
def test_everything_else_is_text(text: str) -> None:
    assert load_yaml(text) == text


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a: 1\na: 2", "'a' is there twice, first in line 1"),
        ("a: {b: 1, 'b': 2}", "'b' is there twice"),
        ("a:\n  b: 1\nc: 1\na:\n  d: 1", "'a' is there twice, first in line 1"),
        ("a: &x 1\nb: *x", r"\*x is an alias"),
        ("a: !!int 1", "tag:yaml.org,2002:int is a tag"),
        ("a: !!python/name:os.system", "tag:yaml.org,2002:python/name:os.system is a tag"),
        ("a: ! 1", "! is a tag"),
        ("? [a]\n: 1", "unhashable key"),
        ("[" * 5000, "nested too deeply"),
        ("a: [", "expected the node content"),
        ("a: \x00", "not allowed"),
    ],
)
def test_what_has_two_readings_is_an_error(text: str, problem: str) -> None:
    with pytest.raises(yaml.YAMLError, match=problem):
        load_yaml(text)


def test_nested_aliases_are_refused_at_once() -> None:
    lists = [f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 10)}]" for level in range(1, 9)]
    began_s = time.monotonic()
    with pytest.raises(yaml.YAMLError, match="is an alias"):
        load_yaml("\n".join(["a0: &a0 [1]", *lists]))
    assert time.monotonic() - began_s < 1


@pytest.mark.parametrize(
    "value",
    ["yes", "010", "1:30", "~", "null", "1e3", ".inf", "a: b", "[x]", "", "7", 7, None, True, 1e-5, 1e300, "é\n"],
)
def test_what_is_written_is_read_back_equal(value: Any) -> None:
    assert load_yaml(dump_yaml({"a": value})) == {"a": value}
