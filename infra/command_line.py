"""Command lines: words sorted into files, options and the subject, with checks of their keys and values."""

import argparse
import difflib
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import NoneType
from typing import Any, NoReturn, get_args, get_origin

import jsonargparse
import yaml
from typing_extensions import override

from infra.errors import UserError
from infra.schema import Option, type_in_words, value_in_words
from infra.urls import scrub


@dataclass
class CommandLine:
    """The words of one command line.

    Attributes:
        command: name of the command, for messages
        options: all options of the command by key
        sections: dotted names of the sections
        subject: key of the option that is given without dashes, if any
        ignored: keys of another command, which have no effect
        files: the `--config` files, each with its values by key
        typed: keys and texts of the options
        words: the words without dashes
    """

    command: str
    options: dict[str, Option]
    sections: set[str]
    subject: str
    ignored: Sequence[str]
    files: list[tuple[Path, dict[str, Any]]] = field(default_factory=list)
    typed: list[tuple[str, str]] = field(default_factory=list)
    words: list[str] = field(default_factory=list)

    def sort(self, arguments: Sequence[str], configs: Mapping[str, Path]) -> list[str]:
        """Check all keys, and return the words in the order in which they take effect: files, options, the subject.

        Raises:
            UserError: for an unknown key, a missing value, or a file that cannot be read
        """
        if {"-h", "--help"} & set(arguments):
            return ["--help"]
        flags = []
        remaining = iter(arguments)
        for word in remaining:
            if not word.startswith("-") or word == "-":
                self.words.append(word)
                continue
            if word == "--":
                self._fail("unexpected argument '--'; options look like --key=value")
            key, equals, value = word.lstrip("-").partition("=")
            if key == "print_config":
                flags.append(word)
                continue
            self._require_known(key.removesuffix("+"))
            if not equals or (key == "config" and not value):
                value = "" if equals else next(remaining, "")
                if not value or value.startswith("--"):
                    self._fail(f"{key} needs a value, such as --{key}={self._example(key)}")
            if key == "config":
                path = _find_config(value, configs)
                self.files.append((path, self._read(path)))
            else:
                self.typed.append((key, value))
        if not flags:
            self._require_all()
        self._require_no_urls()
        files = [f"--config={path}" for path, _ in self.files]
        return [*files, *(f"--{key}={value}" for key, value in self.typed), *flags, *self.words]

    def _read(self, path: Path) -> dict[str, Any]:
        """Read a YAML file into values by dotted key."""
        if path.is_dir():
            raise UserError(f"{path} is a folder; --config takes a YAML file, such as {path / 'config.yaml'}")
        if not path.is_file():
            raise UserError(f"{path} does not exist; --config takes a YAML file")
        try:
            content = yaml.load(path.read_text(encoding="utf-8"), _UniqueKeyLoader)  # a safe loader
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror}; check its permissions") from error
        except UnicodeDecodeError as error:
            raise UserError(f"{path} is not UTF-8 text ({error}); save it as UTF-8") from error
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            where = f" in line {mark.line + 1}" if mark else ""
            raise UserError(f"{path} is not valid YAML{where}: {getattr(error, 'problem', error)}; fix it") from error
        if not isinstance(content, dict):
            raise UserError(f"{path} must contain keys with values, such as `seed: 1`")
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
                    self._fail(f"{key} in {path} is a section; give it keys, such as {example}")
                inner = self._flatten(value, f"{key}.", path)
            elif key in self.options:
                inner = {key: value}
            else:
                self._fail(f"unknown key {key!r} in {path}" + self._did_you_mean(key))
            for repeated in values.keys() & inner.keys():
                self._fail(f"{repeated} is in {path} twice; keep one")
            values |= inner
        return values

    def _require_known(self, key: str) -> None:
        if key == self.subject:
            self._fail(f"{key!r} takes no dashes; type only its value: sternum {self.command} {key.upper()}")
        if key in self.sections:
            example = next(known for known in self.options if known.startswith(f"{key}."))
            self._fail(f"{key!r} is a section; set its keys one at a time, such as --{example}")
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
        if "" in self.words:
            self._fail(f"{self.subject or 'a word'} is empty; check the variable that the shell put there")
        given = {key.removesuffix("+") for key, _ in self.typed}.union(*(values for _, values in self.files))
        if self.words and self.subject:
            given.add(self.subject)
        surplus = self.words[1:] if self.subject else self.words
        if surplus and not self.takes_many:
            self._fail(f"unexpected argument {surplus[0]!r}; options look like --key=value")
        for key, option in self.options.items():
            if option.is_required and key not in given:
                if key == self.subject:
                    self._fail(f"{key} is missing: sternum {self.command} {key.upper()}")
                self._fail(f"{key} is missing; add --{key}={self._example(key)}")

    def _require_no_urls(self) -> None:
        """Check that options that take a path hold no URL: as a path, s3://x is a local folder s3:/x."""
        subject = [(self.subject, word) for word in self.words if self.subject]
        in_files = [(key, item) for _, values in self.files for key, item in values.items()]
        typed = [(key.removesuffix("+"), text) for key, text in self.typed]
        for key, value in [*in_files, *typed, *subject]:
            if key in self.options and _takes_only_paths(self.options[key].type):
                for item in value if isinstance(value, list) else [value]:
                    if "://" in str(item):
                        self._fail(f"{key}={scrub(str(item))} must be a path on this machine, not a URL")

    @property
    def takes_many(self) -> bool:
        """Whether the subject is a list."""
        return bool(self.subject) and get_origin(self.options[self.subject].type) is list

    def _example(self, key: str) -> str:
        if key not in self.options:
            return "FILE" if key == "config" else "VALUE"
        option = self.options[key]
        text = type_in_words(option.type).partition(", such as ")[2]
        by_type = {bool: "true", int: "1", float: "1.0"}
        return by_type.get(option.type) or text or key.rpartition(".")[2].upper()

    def report_wrong_value(self, error: Exception) -> NoReturn:
        """Raise an error that names the first value of a wrong type.

        Raises:
            UserError: about that value, or with the message of `error` if all types are right
        """
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


def _takes_only_paths(annotation: Any) -> bool:
    return annotation is Path or (
        bool(inner := get_args(annotation)) and Path in inner and {*inner} <= {Path, NoneType}
    )


class _UniqueKeyLoader(yaml.SafeLoader):
    """A YAML loader that refuses a key that is in a mapping twice; yaml.SafeLoader silently keeps the last."""

    @override
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        first: dict[str, yaml.Node] = {}
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in first:
                problem = f"{key.value!r} is there twice, first in line {first[key.value].start_mark.line + 1}"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            if isinstance(key, yaml.ScalarNode) and key.value != "<<":
                first[key.value] = key
        return super().construct_mapping(node, deep)


def _is_valid(annotation: Any, value: Any, *, is_text: bool = False) -> bool:
    """Return whether jsonargparse accepts a value for an option of this type."""
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
