"""Configurations (frozen dataclasses), read from command lines and YAML files with one-line errors.

jsonargparse converts values to their types. Its errors do not name the key or the value in a form that a program can
read, so keys are checked here before it runs, and after an error each value is checked again to find the wrong one.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar, get_args

import jsonargparse
import yaml
from typing_extensions import override

from infra import options
from infra.command_line import CommandLine
from infra.errors import UserError
from infra.files import write_atomic
from infra.schema import Option, build, options_of, placeholder, sections_of, value_in_words


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
    command_line = CommandLine(command, options_of(config_class), sections_of(config_class), subject, ignored)
    options.register(config_class)
    parser = _parser(command_line, description, examples, configs or {})
    words = command_line.sort(arguments, configs or {})
    try:
        values = parser.parse_args(words)
    except (argparse.ArgumentError, jsonargparse.ArgumentError) as error:
        command_line.report_wrong_value(error)
    return build(config_class, {key: values[key] for key in command_line.options})


def _parser(
    command_line: CommandLine, description: str, examples: Sequence[str], configs: Mapping[str, Path]
) -> jsonargparse.ArgumentParser:
    subject = f" {command_line.subject.upper()}" if command_line.subject else ""
    parser = jsonargparse.ArgumentParser(
        prog=f"sternum {command_line.command}",
        usage=f"%(prog)s{subject} [--config=FILE] [--KEY=VALUE ...]",
        description=description,
        epilog="examples:\n" + "\n".join(f"  {example}" for example in examples),
        formatter_class=_HelpFormatter,
        exit_on_error=False,
        allow_abbrev=False,  # an abbreviated key is an unknown key
    )
    names = f", or the name of a built-in one: {', '.join(configs)}" if configs else ""
    parser.add_argument(
        "--config", action="config", metavar="FILE", help=f"YAML file with any of the options below{names}"
    )
    groups: dict[str, Any] = {}
    for option in command_line.options.values():
        if option.section not in groups:
            title = (option.section, option.section_help) if option.section else (option.section_help,)
            groups[option.section] = parser.add_argument_group(*title)
        if option.key == command_line.subject:
            positional = (
                {"type": get_args(option.type)[0], "nargs": "+"} if command_line.takes_many else {"type": option.type}
            )
            groups[option.section].add_argument(option.key, help=option.help, metavar=option.key.upper(), **positional)
        else:
            default = {"required": True} if option.is_required else {"default": option.default}
            groups[option.section].add_argument(
                f"--{option.key}", type=option.type, help=_help(option), metavar=placeholder(option.type), **default
            )
    for name in command_line.ignored:
        parser.add_argument(f"--{name}", type=Any, help=argparse.SUPPRESS)
    return parser


def _help(option: Option) -> str:
    """Return an option's help with its default."""
    if option.is_required:
        return f"{option.help} (required)"
    return option.help if option.default in (None, []) else f"{option.help} (default: {value_in_words(option.default)})"


class _HelpFormatter(jsonargparse.DefaultHelpFormatter):
    """Help that shows no Python types, and that wraps the description but not the examples."""

    @override
    def _fill_text(self, text: str, width: int, indent: str) -> str:
        if text.startswith("examples:"):
            return text
        return super()._fill_text(text, width, indent)

    @override
    def _get_help_string(self, action: argparse.Action) -> str:
        if "--print_config" in action.option_strings:
            return "print the resulting configuration as YAML and exit"
        return action.help or ""

    @override
    def _format_action_invocation(self, action: argparse.Action) -> str:
        appending = f"{action.option_strings[0]}+" if action.option_strings else ""
        return super()._format_action_invocation(action).partition(f", {appending}")[0]


def to_yaml(config: _Dataclass) -> str:
    """Return the whole configuration as YAML, in the order of the fields."""
    return yaml.safe_dump(_plain(asdict(config)), sort_keys=False)


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
