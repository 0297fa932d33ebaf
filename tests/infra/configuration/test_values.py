from pathlib import Path
from typing import Any, Literal

import pytest

from infra.configuration.values import Unfit, from_text, from_yaml
from infra.urls import Location

Mode = Literal["fast", 2] | list[int]


@pytest.mark.parametrize(
    ("annotation", "text", "value"),
    [
        (int, "7", 7),
        (int, str(2**63 - 1), 2**63 - 1),
        (float, "7", 7.0),
        (float, "1e-3", 0.001),
        (str, "010", "010"),
        (str, "null", "null"),
        (str | None, "null", None),
        (str | None, "[a]", "[a]"),
        (bool, "true", True),
        (int | None, "null", None),
        (list[str], "[a,b]", ["a", "b"]),
        (list[Path], "[a b,c]", [Path("a b"), Path("c")]),
        (list[Location], "[s3://b/c,~/d]", ["s3://b/c", "/home/me/d"]),
        (tuple[float, float], "[0,1.5]", (0.0, 1.5)),
        (Mode, "fast", "fast"),
        (Mode, "2", 2),
        (Mode, "[1,2]", [1, 2]),
        (Path, "~", Path("/home/me")),
        (Path, "~/x", Path("/home/me/x")),
        (Path | None, "~/x", Path("/home/me/x")),
        (Path, "./~", Path("~")),
        (Path, "exp:1", Path("exp:1")),
        (Path, "a/s3:/b", Path("a/s3:/b")),
        (Location, "s3://b/c", "s3://b/c"),
        (Location, "~/c", "/home/me/c"),
    ],
)
def test_text_becomes_a_value_of_the_type(
    monkeypatch: pytest.MonkeyPatch, annotation: Any, text: str, value: Any
) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    converted = from_text(annotation, text)
    assert (converted, type(converted)) == (value, type(value))


@pytest.mark.parametrize(
    ("annotation", "text", "rule"),
    [
        (int, "010", "must be a whole number"),
        (int, "1_000", "must be a whole number"),
        (int, "7.0", "must be a whole number"),
        (int, "true", "must be a whole number"),
        (int, "9" * 5000, "must be a whole number"),
        (int, "[", "must be a whole number"),
        (int | None, "x", "must be a whole number or null"),
        (bool, "yes", "must be true or false"),
        (bool, "1", "must be true or false"),
        (Mode, "true", "must be fast, 2 or a list of whole numbers"),
        (list[str], "a", "must be a list of words"),
        (list[str], "[1]", "must be a list of words"),
        (tuple[float, float], "[1]", "must be 2 numbers"),
        *((float, text, "must be a number") for text in (".inf", "-.inf", "inf", ".nan", "nan", "1e999", "-1e999")),
        *((float | None, text, "must be a number or null") for text in (".inf", "nan", "1e999")),
        *(
            (annotation, text, "must be a path on this machine, not a URL")
            for annotation in (Path, Path | None)
            for text in ("s3://b/c", "s3:/b/c", "https://h/x", "file:///x", "ftp://h/x")
        ),
        (list[Path], "[a,s3://b/c]", "must be a path on this machine, not a URL"),
        (Path, "", "must not be empty; check the variable"),
        (Location, "", "must not be empty; check the variable"),
        (Path, "~nobody-here/x", "is in a home folder that this machine does not know"),
        (Location, "~nobody-here/x", "is in a home folder that this machine does not know"),
        (Path, "a\0b", "must be UTF-8 text without zero bytes"),
        (str, "a\udcff", "must be UTF-8 text without zero bytes"),
        (Location, "a\udcff", "must be UTF-8 text without zero bytes"),
    ],
)
def test_a_text_that_does_not_fit_breaks_a_rule(annotation: Any, text: str, rule: str) -> None:
    with pytest.raises(Unfit) as raised:
        from_text(annotation, text)
    assert str(raised.value).startswith(rule)


def test_a_file_gives_text_only_where_text_is_meant() -> None:
    assert from_yaml(str, "7") == "7"
    for annotation in (str, Path, Location, list[str]):
        with pytest.raises(Unfit):
            from_yaml(annotation, 7)
