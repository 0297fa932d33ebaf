"""The ways in which a set's tasks are divided: by the official split or without it, alone or fitted on another set."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

from evaluation.data.external_cohort import TaskPair
from evaluation.data.joined_sets import JoinedSets
from evaluation.data.labeled_sets import LabeledSet
from evaluation.data.task_choice import missing_label, same_task
from evaluation.results.presets import Balance, Split
from evaluation.results.tasks import Task
from infra.errors import UserError, require
from infra.log import say


class Variant(NamedTuple):
    """A task of a labeled set and the way to divide it; the label names both in the tables."""

    label: str
    task: Task
    split: Split


class ExternalVariant(NamedTuple):
    """A task of two joined sets and the way to divide it; the label names both in the tables."""

    label: str
    tasks: TaskPair
    split: Split


def variants(labeled_set: LabeledSet, tasks: Sequence[Task], split: Split) -> Iterator[Variant]:
    """Yield the tasks of a labeled set, first by its official split, then, if asked for, without it."""
    labels = {task: _label(labeled_set, task, tasks) for task in tasks}
    for task, label in labels.items():
        yield Variant(label, task, "official")
    for task, label in labels.items() if split == "ignore" else ():
        if _has_official(labeled_set, task):
            yield Variant(f"{label}, split ignored", task, "ignore")
        else:
            say(f"{label}: has no official split to ignore")


def external_variants(
    sets: JoinedSets, fitted_tasks: Sequence[Task], tested_tasks: Sequence[Task], split: Split
) -> Iterator[ExternalVariant]:
    """Yield the tasks of the fitted set that the tested one answers too, first by the official split of the former.

    Raises:
        UserError: if the tested set answers none of them
    """
    pairs: dict[TaskPair, str] = {}
    for task in fitted_tasks:
        found = same_task(task, sets.tested, tested_tasks)
        fitted = _label(sets.fitted, task, fitted_tasks)
        if not found and len(fitted_tasks) > 1:
            say(f"{fitted}: {sets.tested.label} does not answer this task, so it is not tested on it")
        for other in found:
            tested = sets.tested.label if other is task else _label(sets.tested, other, found)
            pairs[TaskPair(task, other)] = f"{tested}, fitted on {fitted}"
    if not pairs:
        raise UserError(
            f"dataset {sets.tested.label!r} does not answer the task {fitted_tasks[0].name!r} of dataset "
            f"{sets.fitted.label!r}, because it {missing_label(fitted_tasks[0], sets.tested)}; if it calls labels "
            "otherwise, name a task file that says how: tasks"
        )
    for pair, label in pairs.items():
        yield ExternalVariant(label, pair, "official")
    for pair, label in pairs.items() if split == "ignore" else ():
        if _has_official(sets.fitted, pair.fitted):
            yield ExternalVariant(f"{label}, split ignored", pair, "ignore")


def rebalanced(tasks: Sequence[Task], balance: Balance | None) -> list[Task]:
    """Return the tasks with another balance, each once; unchanged if it is None.

    Raises:
        UserError: if a task has several labels, whose classes cannot be balanced together
    """
    if balance is None:
        return list(tasks)
    several = next((task for task in tasks if task.kind != "binary"), None)
    require(
        several is None or balance == "none",
        f"balance={balance} needs binary tasks, but {several.name if several else ''!r} has several labels; "
        "leave it out",
    )
    return list(dict.fromkeys(replace(task, balance=balance) for task in tasks))


def _has_official(labeled_set: LabeledSet, task: Task) -> bool:
    return bool({*task.test_splits} & {*labeled_set.samples.splits})


def _label(labeled_set: LabeledSet, task: Task, tasks: Sequence[Task]) -> str:
    """Return the set's label, the task's name unless the set has it, and what distinguishes tasks of one name."""
    own = task.name in (labeled_set.manifest.dataset, labeled_set.label)
    first = next(other for other in tasks if other.name == task.name)
    against = "" if task.labels == first.labels else f", against {task.questions[0].negative_name}"
    balanced = "" if task.balance == first.balance else f", balanced by {task.balance}"
    return labeled_set.label + ("" if own else f", {task.name}") + against + balanced
