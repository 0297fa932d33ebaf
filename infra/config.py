"""Command lines and YAML files into frozen dataclasses, by jsonargparse; mistakes become one line each."""

import argparse
import difflib
import re
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar, get_args, get_origin

import jsonargparse
import yaml

from infra import options
from infra.errors import UserError
from infra.files import write_atomic


class _Dataclass(Protocol):
    __dataclass_fields__: ClassVar[dict[str, Any]]


C = TypeVar("C", bound=_Dataclass)


def parse(
    config_class: type[C],
    arguments: Sequence[str],
    *,
    command: str,
    description: str,
    examples: Sequence[str],
    positional: Sequence[str] = (),
    ignored: Sequence[str] = (),
) -> C:
    """Build `config_class` from a command line: `--config FILE` first, `--section.key=value` on top.

    Fields named in `positional` are taken by position, a list as one word or more. Keys named in `ignored` may stand
    in the file too, for another command, and are left alone. Raises UserError for an unknown key,
    a value of the wrong type and a missing value; the dataclasses' own `__post_init__` raises it for values out of
    range.
    """
    parser = jsonargparse.ArgumentParser(
        prog=f"sternum {command}",
        description=description,
        epilog="examples:\n" + "\n".join(f"  {example}" for example in examples),
        formatter_class=_HelpFormatter,
        exit_on_error=False,
        allow_abbrev=False,  # a key cut short is an unknown key
    )
    parser.add_argument("--config", action="config", help="YAML file with any of the options below")
    annotations = {field.name: field.type for field in fields(config_class)}
    for name in positional:
        parser.add_argument(name, **_positional(annotations[name]))
    parser.add_class_arguments(config_class, skip=set(positional), fail_untyped=True)
    for name in ignored:
        parser.add_argument(f"--{name}", type=Any, help=argparse.SUPPRESS)
    options.register(config_class)
    try:
        values = parser.instantiate(parser.parse_args(list(arguments)))
    except (argparse.ArgumentError, jsonargparse.ArgumentError) as error:
        raise UserError(_one_line(str(error), _keys(parser), command)) from error
    except UnicodeDecodeError as error:
        raise UserError(f"the configuration file is not UTF-8 text: {error}; save it as UTF-8") from error
    return config_class(**{name: values[name] for name in annotations})


def _positional(annotation: Any) -> dict[str, Any]:
    """Return how a positional field is parsed: a list takes one word or more."""
    if get_origin(annotation) is list:
        return {"type": get_args(annotation)[0], "nargs": "+"}
    return {"type": annotation}


class _HelpFormatter(jsonargparse.DefaultHelpFormatter, argparse.RawDescriptionHelpFormatter):
    pass


def _keys(parser: jsonargparse.ArgumentParser) -> list[str]:
    return [action.dest for action in parser._actions]


def _one_line(message: str, keys: list[str], command: str) -> str:
    """Shorten jsonargparse's message to one line, with the nearest known key or the way to the help as a way out."""
    text = re.sub(r"\s*\n\s*", " ", message).strip()
    text = re.sub(r"Parser key \"([^\"]+)\":", r"\1:", text)
    unknown = re.search(r"unrecognized arguments: --?([^\s=]+)|option '([^']+)'", text)
    if unknown:
        key = unknown.group(1) or unknown.group(2)
        near = difflib.get_close_matches(key, keys, n=1) or [
            full for full in keys if difflib.get_close_matches(key, [full.rpartition(".")[2]])
        ]
        if key in near:
            return f"{key!r} has no dashes: give its value alone; see sternum {command} --help"
        text = f"unknown key {key!r}: {text}" + (f"; did you mean {near[0]!r}?" if near else "")
    return f"{text}; all options: sternum {command} --help"


def to_yaml(config: _Dataclass) -> str:
    """Return the whole configuration as YAML, in the order of the fields."""
    return yaml.safe_dump(_plain(asdict(config)), sort_keys=False)


def save(config: _Dataclass, path: Path) -> None:
    """Write the whole configuration to a YAML file that `--config` reads back."""
    write_atomic(path, to_yaml(config))


def load(config_class: type[C], path: Path) -> C:
    """Read a saved configuration; raises UserError when it is not one of `config_class`."""
    if not path.is_file():
        raise UserError(f"{path} does not exist; name a folder that `sternum pretrain` wrote")
    with options.registered(config_class):
        return parse(config_class, [f"--config={path}"], command="pretrain", description="", examples=())


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value
