"""Values of options, converted to the types of their fields; the one place that knows what a path may look like."""

import math
import re
from contextlib import suppress
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Final, Literal, Union, get_args, get_origin

import yaml

from infra.configuration.plain_yaml import load_yaml
from infra.configuration.schema import type_in_words
from infra.urls import Location

_URL: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")  # at least two characters: C: is a disk


class Unfit(Exception):
    """A value does not fit an option; the message is the rule that it breaks, such as "must be a whole number"."""


class _WrongType(Exception):
    """A value, or a part of it, is of another type."""


def from_text(annotation: Any, text: str) -> Any:
    """Convert a word of a command line to the type of an option.

    Words and paths are taken as they are, everything else is YAML. Arguments and errors are those of `from_yaml`.
    """
    types = {*get_args(annotation)} if get_origin(annotation) in (Union, UnionType) else {annotation}
    if types <= {str, Path, NoneType}:
        return from_yaml(annotation, None if NoneType in types and text == "null" else text)
    try:
        return from_yaml(annotation, load_yaml(text))
    except yaml.YAMLError as error:
        raise Unfit(f"must be {type_in_words(annotation)}") from error


def from_yaml(annotation: Any, value: Any) -> Any:
    """Convert a value of a YAML file to the type of an option.

    A number is finite. `~` at the start of a path is the home folder. A `Path` is no URL, a `Location` may be one.

    Args:
        annotation: int, float, str, bool, Path, Location, None, a Literal, or a list, tuple or union of these
        value: what YAML describes

    Raises:
        Unfit: if the option does not take the value
    """
    try:
        return _converted(annotation, value)
    except _WrongType as error:
        raise Unfit(f"must be {type_in_words(annotation)}") from error


def _converted(annotation: Any, value: Any) -> Any:
    if annotation in (Path, Location) and isinstance(value, str):
        return _location(value) if annotation == Location else _local_path(value)
    if annotation is float and type(value) in (int, float) and math.isfinite(value):
        return float(value)
    if annotation in (int, bool, NoneType) and type(value) is annotation:
        return value
    if annotation is str and isinstance(value, str):
        return _text(value)
    return _composed(get_origin(annotation), get_args(annotation), value)


def _composed(origin: Any, inner: tuple[Any, ...], value: Any) -> Any:
    """Convert a value to a Literal, a list, a tuple or a union."""
    if origin is Literal and any(value == allowed and type(value) is type(allowed) for allowed in inner):
        return value
    if origin is list and isinstance(value, list):
        return [_converted(inner[0], item) for item in value]
    if origin is tuple and isinstance(value, list) and len(value) == len(inner):
        return tuple(_converted(part, item) for part, item in zip(inner, value, strict=True))
    if origin in (Union, UnionType):
        for part in inner:
            with suppress(_WrongType):
                return _converted(part, value)
    raise _WrongType


def _text(value: str) -> str:
    """Return a text; raise Unfit if it has characters that no message, file or path could hold."""
    try:
        is_text = b"\0" not in value.encode()
    except UnicodeEncodeError:  # from a name in another encoding
        is_text = False
    if not is_text:
        raise Unfit("must be UTF-8 text without zero bytes; rename the file or folder")
    return value


def _local_path(text: str) -> Path:
    if _URL.match(text):  # as a path, s3://bucket/x would be a folder s3: here
        raise Unfit("must be a path on this machine, not a URL")
    return Path(_location(text))


def _location(text: str) -> str:
    """Return a path with the home folder in place of `~`, which no shell expands behind a `=`; a URL has none."""
    if not _text(text):
        raise Unfit("must not be empty; check the variable that the shell put there")
    if not text.startswith("~"):
        return text
    try:
        return str(Path(text).expanduser())
    except RuntimeError as error:
        raise Unfit("is in a home folder that this machine does not know; write the whole path") from error
