"""Tasks in YAML files."""

import difflib
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, get_type_hints

import yaml

from evaluation.results.presets import Uncertain
from evaluation.results.tasks import Kind, Question, Task, Unmentioned
from infra.configuration.plain_yaml import load_yaml
from infra.configuration.values import Unfit, from_yaml
from infra.errors import UserError
from infra.storage.files import read_small

SUFFIXES: Final = (".yaml", ".yml")


@dataclass(frozen=True)
class TaskFile:
    """The keys of a task file.

    Attributes:
        kind: binary, multiclass or multilabel
        labels: the labels of a multilabel task, or the classes of a multiclass task
        positive: the positive label of a binary task
        negative: its negative label; the absence of `positive` if it is left out
        uncertain: meaning of an uncertain (-1) label: ignore, zeros or ones
        zeros: labels whose uncertain values count as absent, whatever `uncertain` says
        ones: labels whose uncertain values count as present, whatever `uncertain` says
        unmentioned: meaning of a blank label: ignore or absent
        test: official splits that can be the test part; the first that a set has is
        names: groups of names that mean one label, which sets call otherwise; the first is a label of the task
    """

    kind: Kind
    labels: list[str] | None = None
    positive: str | None = None
    negative: str | None = None
    uncertain: Uncertain = "ignore"
    zeros: list[str] | None = None
    ones: list[str] | None = None
    unmentioned: Unmentioned = "ignore"
    test: list[str] | None = None
    names: list[list[str]] | None = None


def read_task(path: Path) -> Task:
    """Read a task from a YAML file; the name of the file is that of the task.

    Raises:
        UserError: if the file cannot be read, or does not describe a task.
    """
    try:
        content = load_yaml(read_small(path).decode())
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist; a task is a built-in name or a YAML file") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as text ({error}); give a YAML file") from error
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not valid YAML: {getattr(error, 'problem', error)}; fix it") from error
    try:
        return _task(path.stem, _checked(content))
    except Unfit as error:
        raise UserError(f"task file {path}: {error}") from error


def _checked(content: Any) -> TaskFile:
    """Return the content of a file if its keys and the types of their values are right."""
    types = get_type_hints(TaskFile)
    if not isinstance(content, dict) or "kind" not in content:
        raise Unfit("kind is missing; begin with kind: binary, kind: multiclass or kind: multilabel")
    values = {}
    for key, value in content.items():
        if key not in types:
            raise Unfit(f"unknown key {key!r}{near(str(key), list(types))}; the keys are {', '.join(types)}")
        try:
            values[key] = from_yaml(types[key], value)
        except Unfit as error:
            raise Unfit(f"{key}={value} {error}") from error
    return TaskFile(**values)


def _task(name: str, file: TaskFile) -> Task:
    pairs = _binary_pair(file) if file.kind == "binary" else _one_pair_for_each_label(file)
    named = {label for pair in pairs for label in pair if label}
    zeros, ones = file.zeros or [], file.ones or []
    for label in (*zeros, *ones):
        _demand(label in named, f"zeros or ones names {label!r}, which is no label of the task{near(label, named)}")
        _demand(not (label in zeros and label in ones), f"both zeros and ones name {label!r}; name it in one of them")
    policies: dict[str, Uncertain] = {}
    policies.update(dict.fromkeys(zeros, "zeros"))
    policies.update(dict.fromkeys(ones, "ones"))
    questions = tuple(
        Question(positive, negative, policies.get(positive, file.uncertain), file.unmentioned)
        for positive, negative in pairs
    )
    splits = tuple(file.test or ("test",))
    return Task(name, file.kind, questions, test_splits=splits, names=_names(file.names or [], named))


def _names(groups: list[list[str]], labels: Collection[str]) -> tuple[tuple[str, ...], ...]:
    """Return the groups of names if each begins with a label of its own and no name means two labels."""
    every = [name for group in groups for name in group]
    for group in groups:
        _demand(len(group) > 1, f"names has the group {group}; give a label and its names in other sets")
        _demand(
            group[0] in labels, f"names begins a group with {group[0]!r}, no label of the task{near(group[0], labels)}"
        )
    for name in every:
        _demand(every.count(name) == 1, f"names has {name!r} twice; a name means one label")
    for name in (name for group in groups for name in group[1:]):
        _demand(name not in labels, f"names makes {name!r} mean another label, but it is a label of the task; drop one")
    return tuple(map(tuple, groups))


def _binary_pair(file: TaskFile) -> list[tuple[str, str | None]]:
    _demand(file.labels is None, "labels belongs to multilabel and multiclass tasks; name positive and negative")
    _demand(file.positive is not None, "positive is missing; a binary task names its positive label")
    _demand(file.positive != file.negative, f"the classes overlap: both are {file.positive!r}; name another label")
    return [(str(file.positive), file.negative)]


def _one_pair_for_each_label(file: TaskFile) -> list[tuple[str, str | None]]:
    unused = file.positive or file.negative
    _demand(unused is None, f"positive and negative belong to binary tasks; list {unused!r} in labels")
    labels = file.labels or []
    _demand(bool(labels), f"labels is missing; a {file.kind} task lists its labels")
    _demand(len(labels) > 1, f"labels names only {labels[:1]}; one label is a binary task: kind: binary, positive")
    twice = next((label for label in labels if labels.count(label) > 1), None)
    _demand(twice is None, f"the classes overlap: labels names {twice!r} twice; name each once")
    return [(label, None) for label in labels]


def _demand(condition: bool, rule: str) -> None:
    if not condition:
        raise Unfit(rule)


def near(name: str, known: Iterable[str]) -> str:
    """Return a question that proposes the most similar known name, as the end of a message; empty without one."""
    folded = {other.casefold(): other for other in known}
    found = difflib.get_close_matches(name.casefold(), folded, n=1, cutoff=0.5)
    return f" (did you mean {folded[found[0]]!r}?)" if found else ""
