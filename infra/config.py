"""Reads configurations, frozen dataclasses, from command lines and YAML files; a mistake becomes one line.

jsonargparse converts values to their types. Its errors are plain text without the key or value in question, so keys are
checked here before it runs, and the value at fault is found by a second look, not by taking its messages apart.
"""

import argparse
import difflib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, NoReturn, Protocol, TypeVar, get_args, get_origin

import jsonargparse
import yaml
from typing_extensions import override

from infra import options
from infra.errors import UserError
from infra.files import write_atomic
from infra.schema import Option, build, options_of, placeholder, sections_of, type_in_words, value_in_words


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

    Options `--section.key=value` and the subject override `--config` files, in whatever order they come.

    Args:
        config_class: the dataclass to build; its docstrings become the help texts
        arguments: the words after the command
        command: the name of the command, for messages and the help
        description: the help's first paragraph
        examples: command lines for the end of the help
        subject: the field that is given without dashes; a list takes one word or more
        ignored: keys of another command, which may be in the file or on the line and have no effect
        configs: built-in files that `--config=NAME` finds

    Raises:
        UserError: for an unknown key, a missing value, a value of the wrong type or, from the dataclass itself, out of
            range
        SystemExit: after `--help` or `--print_config`
    """
    command_line = _CommandLine(command, options_of(config_class), sections_of(config_class), subject, ignored)
    options.register(config_class)
    parser = _parser(command_line, description, examples, configs or {})
    words = command_line.sort(arguments, configs or {})
    try:
        values = parser.parse_args(words)
    except (argparse.ArgumentError, jsonargparse.ArgumentError) as error:
        command_line.blame_a_value(error)
    return build(config_class, {key: values[key] for key in command_line.options})


@dataclass
class _CommandLine:
    """The words of one command line, split into files, options and the subject, and the checks of their keys."""

    command: str
    options: dict[str, Option]
    sections: set[str]
    subject: str
    ignored: Sequence[str]
    files: list[tuple[Path, dict[str, Any]]] = field(default_factory=list)  # with their values by key
    typed: list[tuple[str, str]] = field(default_factory=list)  # keys and values of the options
    words: list[str] = field(default_factory=list)

    def sort(self, arguments: Sequence[str], configs: Mapping[str, Path]) -> list[str]:
        """Return the words in the order in which they take effect: files, options, the subject."""
        if {"-h", "--help"} & set(arguments):
            return ["--help"]
        flags = []
        remaining = iter(arguments)
        for word in remaining:
            if not word.startswith("-") or word == "-":
                self.words.append(word)
                continue
            key, equals, value = word.lstrip("-").partition("=")
            if key == "print_config":
                flags.append(word)
                continue
            self._require_known(key.removesuffix("+"))
            if not equals:
                value = next(remaining, "")
                if not value or value.startswith("--"):
                    self._fail(f"{key} needs a value, such as --{key}={self._example(key)}")
            if key == "config":
                path = _find_config(value, configs)
                self.files.append((path, self._read(path)))
            else:
                self.typed.append((key, value))
        if not flags:
            self._require_all()
        files = [f"--config={path}" for path, _ in self.files]
        return [*files, *(f"--{key}={value}" for key, value in self.typed), *flags, *self.words]

    def _read(self, path: Path) -> dict[str, Any]:
        """Read a YAML file into values by dotted key."""
        if not path.is_file():
            raise UserError(f"{path} does not exist; --config takes a YAML file")
        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
        except UnicodeDecodeError as error:
            raise UserError(f"{path} is not UTF-8 text ({error}); save it as UTF-8") from error
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            where = f" in line {mark.line + 1}" if mark else ""
            raise UserError(f"{path} is not valid YAML{where}: {getattr(error, 'problem', error)}; fix it") from error
        if not isinstance(content, dict):
            raise UserError(f"{path} must hold keys with values, such as `seed: 1`")
        return self._flatten(content, "", path)

    def _flatten(self, content: dict[Any, Any], prefix: str, path: Path) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for name, value in content.items():
            key = f"{prefix}{name}"
            if self._is_ignored(key):
                continue
            if key in self.sections:
                if not isinstance(value, dict):
                    example = next(known for known in self.options if known.startswith(f"{key}."))
                    self._fail(f"{key} in {path} is a section; put keys such as {example} into it")
                values |= self._flatten(value, f"{key}.", path)
            elif key in self.options:
                values[key] = value
            else:
                self._fail(f"unknown key {key!r} in {path}" + self._did_you_mean(key))
        return values

    def _require_known(self, key: str) -> None:
        if key == self.subject:
            self._fail(f"{key!r} has no dashes; give its value alone: sternum {self.command} {key.upper()}")
        if key in self.sections:
            example = next(known for known in self.options if known.startswith(f"{key}."))
            self._fail(f"{key!r} is a section; give its keys one by one, such as --{example}")
        if key not in self.options and key != "config" and not self._is_ignored(key):
            self._fail(f"unknown key {key!r}" + self._did_you_mean(key))

    def _is_ignored(self, key: str) -> bool:
        return key.partition(".")[0] in self.ignored

    def _did_you_mean(self, key: str) -> str:
        last = key.rpartition(".")[2]
        near = difflib.get_close_matches(key, self.options, n=1) or [
            known for known in self.options if difflib.get_close_matches(last, [known.rpartition(".")[2]])
        ]
        return f"; did you mean {near[0]!r}?" if near else ""

    def _require_all(self) -> None:
        """Check that each required option has a value, and that each word has a meaning."""
        given = {key.removesuffix("+") for key, _ in self.typed}.union(*(values for _, values in self.files))
        if self.words and self.subject:
            given.add(self.subject)
        surplus = self.words[1:] if self.subject else self.words
        if surplus and not self.takes_many:
            self._fail(f"unexpected word {surplus[0]!r}; options look like --key=value")
        for key, option in self.options.items():
            if option.is_required and key not in given:
                if key == self.subject:
                    self._fail(f"{key} is missing: sternum {self.command} {key.upper()}")
                self._fail(f"{key} is missing; add --{key}={self._example(key)}")

    @property
    def takes_many(self) -> bool:
        return bool(self.subject) and get_origin(self.options[self.subject].type) is list

    def _example(self, key: str) -> str:
        if key not in self.options:
            return "FILE" if key == "config" else "VALUE"
        option = self.options[key]
        text = type_in_words(option.type).partition(", such as ")[2]
        return "true" if option.type is bool else text or key.rpartition(".")[2].upper()

    def blame_a_value(self, error: Exception) -> NoReturn:
        """Raise UserError about the first value that is not of its option's type, or with jsonargparse's message."""
        for path, values in self.files:
            for key, value in values.items():
                if not _is_valid(self.options[key].type, value):
                    self._fail(f"{key}={value_in_words(value)} in {path} must be {self._rule(key)}", error)
        subject = [(self.subject, word) for word in self.words if not self.takes_many]
        for key, text in [*subject, *self.typed]:
            if key in self.options and not _is_valid(self.options[key].type, text, is_text=True):
                self._fail(f"{key}={text} must be {self._rule(key)}", error)
        self._fail(" ".join(str(error).split()), error)

    def _rule(self, key: str) -> str:
        return type_in_words(self.options[key].type)

    def _fail(self, message: str, cause: Exception | None = None) -> NoReturn:
        end = "" if message.endswith("?") else ";"
        raise UserError(f"{message}{end} all options: sternum {self.command} --help") from cause


def _is_valid(annotation: Any, value: Any, *, is_text: bool = False) -> bool:
    """Tell whether jsonargparse takes a value for an option of this type."""
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--value", type=annotation)
    try:
        if is_text:
            parser.parse_args([f"--value={value}"])
        else:
            parser.parse_object({"value": value})
    except (argparse.ArgumentError, jsonargparse.ArgumentError):
        return False
    return True


def _find_config(value: str, configs: Mapping[str, Path]) -> Path:
    """Return the file that `--config` names: a built-in one unless the value has a slash or a suffix."""
    if "/" in value or "." in value:
        return Path(value)
    if value in configs:
        return configs[value]
    near = difflib.get_close_matches(value, configs, n=1)
    known = f"the built-in ones are {', '.join(configs)}" if configs else "this command has none"
    question = f"did you mean {near[0]!r}? " if near else ""
    raise UserError(f"config={value} is not a built-in configuration; {question}{known}; for a file, type ./{value}")


def _parser(
    command_line: _CommandLine, description: str, examples: Sequence[str], configs: Mapping[str, Path]
) -> jsonargparse.ArgumentParser:
    subject = f" {command_line.subject.upper()}" if command_line.subject else ""
    parser = jsonargparse.ArgumentParser(
        prog=f"sternum {command_line.command}",
        usage=f"%(prog)s{subject} [--config=FILE] [--KEY=VALUE ...]",
        description=description,
        epilog="examples:\n" + "\n".join(f"  {example}" for example in examples),
        formatter_class=_HelpFormatter,
        exit_on_error=False,
        allow_abbrev=False,  # a key cut short is an unknown key
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
            kind = (
                {"type": get_args(option.type)[0], "nargs": "+"} if command_line.takes_many else {"type": option.type}
            )
            groups[option.section].add_argument(option.key, help=option.help, metavar=option.key.upper(), **kind)
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
            return "print the configuration that these arguments make, as YAML, and exit"
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
