"""Configurations (frozen dataclasses), read from command lines and YAML files with one-line errors."""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar, Final, NoReturn, Protocol, TypeVar

from typing_extensions import override

from infra.configuration import options
from infra.configuration.command_line import CommandLine
from infra.configuration.plain_yaml import dump_yaml
from infra.configuration.schema import Option, build, options_of, placeholder, sections_of, value_in_words
from infra.errors import UserError
from infra.storage.files import write_atomic

_HELP: Final = ("-h", "--help")
_PRINT_CONFIG: Final = "--print_config"


_is_only_read: Final = ContextVar("is_only_read", default=False)


class _Read(BaseException):
    """Ends a command that is only read, with its configuration."""

    def __init__(self, config: Any) -> None:
        self.config = config


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
    subject: str = "",
    ignored: Sequence[str] = (),
    configs: Mapping[str, Path] | None = None,
) -> C:
    """Build a configuration from a command line.

    Options `--section.key=value` and the subject override `--config` files, in any order.

    Args:
        config_class: the dataclass to build; its docstrings become the help texts
        arguments: the words after the command
        command: the name of the command, for messages and the help
        description: the help's first paragraph
        examples: command lines for the end of the help
        subject: the field that is given without dashes; a list takes one word or more
        ignored: keys of another command, which files and command lines may contain without effect
        configs: built-in files that `--config=NAME` finds

    Raises:
        UserError: for an unknown key, a missing value, a value of the wrong type or, from the dataclass itself, out of
            range
        SystemExit: after `--help` or `--print_config`
    """
    command_line = CommandLine(
        command, options_of(config_class), sections_of(config_class), subject, ignored, configs or {}
    )
    options.register(config_class)
    if {*_HELP} & {*arguments}:
        _print_and_end(_help(command_line, description, examples))
    values = command_line.values([word for word in arguments if word != _PRINT_CONFIG])
    if _PRINT_CONFIG in arguments:
        _print_and_end(dump_yaml(_plain(_nested(command_line.options, values))))
    command_line.require_all(values)
    config = build(config_class, values)
    if _is_only_read.get():
        raise _Read(config)
    return config


def read_command(command: Callable[[Sequence[str]], object], arguments: Sequence[str]) -> Any:
    """Return the configuration that a command would use; nothing else of the command is done.

    Args:
        command: a function that begins with `parse`
        arguments: the words after the command

    Raises:
        UserError: as `parse`
        SystemExit: likewise
    """
    token = _is_only_read.set(True)
    try:
        command(arguments)
    except _Read as read:
        return read.config
    finally:
        _is_only_read.reset(token)
    raise AssertionError("the command does not begin with `parse`")


def _print_and_end(text: str) -> NoReturn:
    sys.stdout.write(text)
    sys.stdout.flush()  # now, so that the caller sees whether that is possible
    raise SystemExit(0)


def _nested(known: Mapping[str, Option], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of all options in their sections, null for a required one without a value."""
    nested: dict[str, Any] = {}
    for key, option in known.items():
        inner = nested
        for section in option.section.split(".") if option.section else ():
            inner = inner.setdefault(section, {})
        inner[key.rpartition(".")[2]] = values.get(key, None if option.is_required else option.default)
    return nested


def _help(command_line: CommandLine, description: str, examples: Sequence[str]) -> str:
    """Return the help of a command: its options by section, and examples."""
    subject = f" {command_line.subject.upper()}" if command_line.subject else ""
    parser = argparse.ArgumentParser(
        usage=f"sternum {command_line.command}{subject} [--config=FILE] [--KEY=VALUE ...]",
        description=description,
        epilog="examples:\n" + "\n".join(f"  {example}" for example in examples),
        formatter_class=_HelpFormatter,
        add_help=False,
    )
    general = parser.add_argument_group("options")
    general.add_argument(*_HELP, action="help", help="show this text and exit")
    names = f", or the name of a built-in one: {', '.join(command_line.configs)}" if command_line.configs else ""
    general.add_argument("--config", metavar="FILE", help=f"YAML file with any of the options below{names}")
    general.add_argument(_PRINT_CONFIG, action="store_true", help="print the resulting configuration as YAML and exit")
    groups: dict[str, Any] = {}
    for option in command_line.options.values():
        if option.section not in groups:
            title = (option.section, option.section_help) if option.section else (option.section_help,)
            groups[option.section] = parser.add_argument_group(*title)
        is_subject = option.key == command_line.subject
        groups[option.section].add_argument(
            option.key if is_subject else f"--{option.key}",
            metavar=option.key.upper() if is_subject else placeholder(option.type),
            help=_text(option).replace("%", "%%"),  # argparse takes % for the start of a name
        )
    return parser.format_help()


def _text(option: Option) -> str:
    """Return an option's help with its default."""
    if option.is_required:
        return f"{option.help} (required)"
    return option.help if option.default in (None, []) else f"{option.help} (default: {value_in_words(option.default)})"


class _HelpFormatter(argparse.HelpFormatter):
    """Help that wraps the description but not the examples."""

    @override
    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return text if text.startswith("examples:") else super()._fill_text(text, width, indent)


def to_yaml(config: _Dataclass) -> str:
    """Return the whole configuration as YAML, in the order of the fields."""
    return dump_yaml(_plain(asdict(config)))


def save(config: _Dataclass, path: Path) -> None:
    """Write the whole configuration to a YAML file that `--config` reads back."""
    write_atomic(path, to_yaml(config))


def load(config_class: type[C], path: Path, *, command: str) -> C:
    """Read a configuration that `command` saved.

    Raises:
        UserError: if the file is missing or does not hold a valid `config_class`
    """
    if not path.is_file():
        raise UserError(f"{path} does not exist; name a folder that `sternum {command}` wrote")
    with options.registered(config_class):
        return parse(config_class, [f"--config={path.absolute()}"], command=command, description="", examples=())


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value
