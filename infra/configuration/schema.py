"""The options that a configuration dataclass defines: their keys, types, defaults and help texts."""

from collections.abc import Iterator
from dataclasses import MISSING, dataclass, fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Final, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import docstring_parser

from infra.urls import Location

C = TypeVar("C")

_TYPES: Final = {
    int: ("a whole number", "whole numbers", ("1", "2")),
    float: ("a number", "numbers", ("0.5", "0.5")),
    str: ("text", "words", ("a", "b")),
    Path: ("a path", "paths", ("a", "b")),
    Location: ("a path or a URL", "paths or URLs", ("a", "b")),
    bool: ("true or false", "values true or false", ("true", "false")),
    NoneType: ("null", "", ("", "")),
}  # singular, plural, two examples
_PLACEHOLDERS: Final = {int: "N", float: "X", str: "TEXT", Path: "PATH", Location: "PATH|URL", bool: "{true,false}"}


@dataclass(frozen=True)
class Option:
    """One key of a configuration.

    Attributes:
        key: dotted name, such as `data.fetch.limit_gb`
        type: the field's annotation
        default: the field's default, MISSING for a required option
        help: text from the `Args` section of the dataclass
        section: dotted name of the dataclass that holds the field, empty at the top
        section_help: text about that dataclass
    """

    key: str
    type: Any
    default: Any
    help: str
    section: str
    section_help: str

    @property
    def is_required(self) -> bool:
        """Whether the user must give a value."""
        return self.default is MISSING


def options_of(config_class: type) -> dict[str, Option]:
    """Return all options of a configuration by their keys, in the order of the fields."""
    title = docstring_parser.parse(config_class.__doc__ or "").short_description or config_class.__name__
    return {option.key: option for option in _options(config_class, "", title.rstrip("."))}


def _options(config_class: type, section: str, section_help: str) -> Iterator[Option]:
    types = get_type_hints(config_class)
    texts = _field_texts(config_class)
    prefix = f"{section}." if section else ""
    for field in fields(config_class):
        key, text = f"{prefix}{field.name}", texts.get(field.name, "")
        if is_dataclass(types[field.name]):
            yield from _options(types[field.name], key, text)
        else:
            default = field.default if field.default_factory is MISSING else field.default_factory()
            yield Option(key, types[field.name], default, text, section, section_help)


def _field_texts(config_class: type) -> dict[str, str]:
    """Return the help texts in the docstrings of a dataclass and of those that it extends."""
    classes = [base for base in reversed(config_class.__mro__) if is_dataclass(base)]
    docstrings = [
        docstring_parser.parse(base.__doc__ or "", docstring_parser.DocstringStyle.GOOGLE) for base in classes
    ]
    params = [param for docstring in docstrings for param in docstring.params]
    return {param.arg_name: " ".join((param.description or "").split()) for param in params}


def sections_of(config_class: type) -> set[str]:
    """Return the dotted names of the dataclasses inside a configuration."""
    parts = (option.section.split(".") for option in options_of(config_class).values() if option.section)
    return {".".join(names[: depth + 1]) for names in parts for depth in range(len(names))}


def build(config_class: type[C], values: dict[str, Any], section: str = "") -> C:
    """Build a configuration from the values of its options by key; an option without a value has its default."""
    types = get_type_hints(config_class)
    arguments = {}
    for field in fields(config_class):  # type: ignore[arg-type]  # callers pass dataclasses
        key = f"{section}.{field.name}" if section else field.name
        inner: type = types[field.name]
        if is_dataclass(inner):
            arguments[field.name] = build(inner, values, key)
        elif key in values:
            arguments[field.name] = values[key]
    return config_class(**arguments)


def type_in_words(annotation: Any) -> str:
    """Describe the values that an annotation allows, such as "a list of whole numbers, such as [1,2]"."""
    if annotation in _TYPES:
        return _TYPES[annotation][0]
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return _or(_alternatives(annotation))
    if origin in (Union, UnionType):
        return _or([words for part in inner for words in _alternatives(part)])
    if get_origin(inner[0]) is Literal:
        return f"a list of {type_in_words(inner[0])}, such as [{value_in_words(get_args(inner[0])[0])}]"
    _, plural, examples = _TYPES[inner[0]]
    start = f"a list of {plural}" if origin is list else f"{len(inner)} {plural}"
    return f"{start}, such as [{','.join(examples)}]"


def _alternatives(annotation: Any) -> list[str]:
    if get_origin(annotation) is Literal:
        return [value_in_words(value) for value in get_args(annotation)]
    return [type_in_words(annotation)]


def _or(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} or {parts[-1]}"


def placeholder(annotation: Any) -> str:
    """Return a short stand-in for a value of this type, such as `N`, `[X,X]` or `{true,false}`."""
    if annotation in _PLACEHOLDERS:
        return _PLACEHOLDERS[annotation]
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return f"{{{','.join(value_in_words(value) for value in inner)}}}"
    if origin in (Union, UnionType):
        return "|".join(placeholder(part) for part in inner if part is not NoneType)
    if origin is list:
        return f"[{placeholder(inner[0])},...]"
    return f"[{','.join(placeholder(part) for part in inner)}]"


def value_in_words(value: Any) -> str:
    """Return a value as the user types it, such as `[0.3,1.0]`, `true` or `null`."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return f"[{','.join(value_in_words(item) for item in value)}]"
    return str(value)
