"""Command lines: words sorted into files, options and the subject, with checks of their keys and values."""

import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NoReturn, get_args, get_origin

import yaml

from infra.configuration.plain_yaml import load_yaml
from infra.configuration.schema import Option, type_in_words, value_in_words
from infra.configuration.values import Unfit, from_text, from_yaml
from infra.errors import MissingHere, UserError

_MOST_BYTES: Final = 1_000_000  # of a YAML file; PyYAML needs seconds for as many


@dataclass(frozen=True)
class CommandLine:
    """The words that a command takes.

    Attributes:
        command: name of the command, for messages
        options: all options of the command by key
        sections: dotted names of the sections
        subject: key of the option that is given without dashes, if any
        ignored: keys of another command, which have no effect
        configs: built-in files that `--config=NAME` finds
    """

    command: str
    options: dict[str, Option]
    sections: set[str]
    subject: str
    ignored: Sequence[str]
    configs: Mapping[str, Path]

    @property
    def takes_many(self) -> bool:
        """Whether the subject is a list."""
        return bool(self.subject) and get_origin(self.options[self.subject].type) is list

    def values(self, arguments: Sequence[str]) -> dict[str, Any]:
        """Return the values that words give to options, by key.

        Options and the subject override `--config` files, in any order. Of two files, the later one counts.

        Raises:
            UserError: for an unknown key, a value that does not fit, or a file that cannot be read
        """
        in_files: dict[str, Any] = {}
        typed: dict[str, Any] = {}
        words = []
        for key, text in self._sorted(arguments):
            if not key:
                words.append(text)
            elif key == "config":
                in_files |= self._read(_find_config(text, self.configs))
            elif not self._is_ignored(key):
                typed[key] = self._fitting(key, text, from_text)
        return in_files | typed | self._subject_value(words)

    def require_all(self, values: Mapping[str, Any]) -> None:
        """Check that each required option has a value.

        Raises:
            UserError: for the first one that has none
        """
        for key, option in self.options.items():
            if option.is_required and key not in values:
                if key == self.subject:
                    self._fail(f"{key} is missing: sternum {self.command} {key.upper()}")
                self._fail(f"{key} is missing; add --{key}={self._example(key)}")

    def _sorted(self, arguments: Sequence[str]) -> Iterator[tuple[str, str]]:
        """Yield the key and the text of each option, and each word without dashes with an empty key."""
        remaining = iter(arguments)
        for word in remaining:
            if not word.startswith("-") or word == "-":
                yield "", word
                continue
            if word == "--":
                self._fail("unexpected argument '--'; options look like --key=value")
            key, equals, text = word.lstrip("-").partition("=")
            self._require_known(key)
            if not equals or (key == "config" and not text):
                text = "" if equals else next(remaining, "")
                if not text or text.startswith("--"):
                    self._fail(f"{key} needs a value, such as --{key}={self._example(key)}")
            yield key, text

    def _subject_value(self, words: Sequence[str]) -> dict[str, Any]:
        """Return the value of the subject by its key."""
        if "" in words:
            self._fail(f"{self.subject or 'a word'} is empty; check the variable that the shell put there")
        surplus = words[1:] if self.subject else words
        if surplus and not self.takes_many:
            self._fail(f"unexpected argument {surplus[0]!r}; options look like --key=value")
        if not words:
            return {}
        if not self.takes_many:
            return {self.subject: self._fitting(self.subject, words[0], from_text)}
        (item,) = get_args(self.options[self.subject].type)
        return {
            self.subject: [self._fitting(self.subject, word, lambda _, text: from_text(item, text)) for word in words]
        }

    def _fitting(self, key: str, value: Any, convert: Callable[[Any, Any], Any], where: str = "") -> Any:
        """Convert a value to the type of an option, or name the rule that it breaks."""
        option = self.options[key]
        if isinstance(option.default, Path) and value == str(option.default):
            return option.default  # even if its home folder is unknown, which matters only where the path is used
        try:
            return convert(option.type, value)
        except Unfit as error:
            self._fail(f"{key}={value_in_words(value)}{where} {error}", error)

    def _read(self, path: Path) -> dict[str, Any]:
        """Read a YAML file into values by dotted key."""
        try:
            with path.open("rb") as file:
                raw = file.read(_MOST_BYTES + 1)
            if len(raw) > _MOST_BYTES:
                raise UserError(f"{path} has more than {_MOST_BYTES:,} bytes; --config takes a short YAML file")
            content = load_yaml(raw.decode())
        except FileNotFoundError as error:
            raise MissingHere(f"{path} does not exist; --config takes a YAML file") from error
        except IsADirectoryError as error:
            hint = f"--config takes a YAML file, such as {path / 'config.yaml'}"
            raise UserError(f"{path} is a folder; {hint}") from error
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

    def _flatten(self, content: Mapping[Any, Any], prefix: str, path: Path) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for name, value in content.items():
            key = f"{prefix}{name}"
            if self._is_ignored(key):
                continue
            if key in self.sections:
                inner = self._flatten(self._section(key, value, path), f"{key}.", path)
            elif key in self.options:
                inner = {key: self._fitting(key, value, from_yaml, f" in {path}")}
            else:
                self._fail(f"unknown key {key!r} in {path}" + self._did_you_mean(key))
            for repeated in values.keys() & inner.keys():
                self._fail(f"{repeated} is in {path} twice; keep one")
            values |= inner
        return values

    def _section(self, key: str, value: Any, path: Path) -> Mapping[Any, Any]:
        if value is None:  # all of its keys are comments
            return {}
        if not isinstance(value, dict):
            self._fail(f"{key} in {path} is a section; give it keys, such as {self._first_key(key)}")
        return value

    def _require_known(self, key: str) -> None:
        if key == self.subject:
            self._fail(f"{key!r} takes no dashes; type only its value: sternum {self.command} {key.upper()}")
        if key in self.sections:
            self._fail(f"{key!r} is a section; set its keys one at a time, such as --{self._first_key(key)}")
        if key not in self.options and key != "config" and not self._is_ignored(key):
            self._fail(f"unknown key {key!r}" + self._did_you_mean(key))

    def _first_key(self, section: str) -> str:
        return next(key for key in self.options if key.startswith(f"{section}."))

    def _is_ignored(self, key: str) -> bool:
        return key.partition(".")[0] in self.ignored

    def _did_you_mean(self, key: str) -> str:
        last = key.rpartition(".")[2]
        near = difflib.get_close_matches(key, self.options, n=1) or [
            known for known in self.options if difflib.get_close_matches(last, [known.rpartition(".")[2]])
        ]
        return f"; did you mean {near[0]!r}?" if near else ""

    def _example(self, key: str) -> str:
        if key not in self.options:
            return "FILE" if key == "config" else "VALUE"
        option = self.options[key]
        text = type_in_words(option.type).partition(", such as ")[2]
        by_type = {bool: "true", int: "1", float: "1.0"}
        return by_type.get(option.type) or text or key.rpartition(".")[2].upper()

    def _fail(self, message: str, cause: Exception | None = None) -> NoReturn:
        end = "" if message.endswith("?") else ";"
        raise UserError(f"{message}{end} all options: sternum {self.command} --help") from cause


def _find_config(value: str, configs: Mapping[str, Path]) -> Path:
    """Return the file that `--config` names: a built-in one unless the value has a slash or a suffix."""
    if "/" in value or "." in value:
        try:
            return from_text(Path, value)
        except Unfit as error:
            raise UserError(f"config={value} {error}") from error
    if value in configs:
        return configs[value]
    near = difflib.get_close_matches(value, configs, n=1)
    known = f"the built-in ones are {', '.join(configs)}" if configs else "this command has none"
    question = f"did you mean {near[0]!r}? " if near else ""
    raise UserError(f"config={value} is not a built-in configuration; {question}{known}; for a file, type ./{value}")
