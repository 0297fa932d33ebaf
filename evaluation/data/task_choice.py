"""The tasks of each labeled set: those that the user named, its dataset's own, or the one that its labels imply."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from evaluation.data.labeled_sets import LabeledSet, ProbeLabels
from evaluation.results.task_file import SUFFIXES, near, read_task
from evaluation.results.tasks import BUILT_IN, Question, Task, multilabel
from infra.configuration.options import key
from infra.errors import UserError, require
from infra.log import say

# Names of a class that is the absence of a disease, in lower case.
_HEALTHY: Final = frozenset(("normal", "no finding", "healthy", "negative", "control", "none", "benign", "no", "0"))


def choose_tasks(
    labeled_sets: Sequence[LabeledSet], names: Sequence[str], positive: str | None = None
) -> list[list[Task]]:
    """Return the tasks of each set.

    Without names, a set has the tasks of its dataset, or else the one that its labels imply. A named task is probed on
    every set that has all of its labels.

    Args:
        labeled_sets: the sets
        names: names of built-in tasks, or paths of task files
        positive: the positive class where the labels imply a binary task

    Raises:
        UserError: if a task fits no set, a set fits no task, a set has no labels, or `positive` is no such class.
    """
    for labeled_set in labeled_sets:
        require(
            bool(_labels_of(labeled_set)),
            f"dataset {labeled_set.label!r} has no labels to probe; name a table of them: "
            f"--{key(ProbeLabels, 'csv')}=FILE, pack the set again with its labels, or name another set",
        )
    if names:
        require(positive is None, f"positive={positive} is for sets without a task, but tasks names some; keep one")
        return _named_tasks(labeled_sets, [task for name in names for task in _find(name)])
    implied = {
        labeled_set.label: implied_task(labeled_set, positive)
        for labeled_set in labeled_sets
        if labeled_set.manifest.dataset not in BUILT_IN
    }
    classes = {label for task in implied.values() if task.kind == "binary" for label in task.labels}
    require(
        positive is None or positive in classes,
        f"positive={positive} is no class of a set with two classes and no task of its own"
        f"{near(positive or '', classes)}; leave it out, or name a task: tasks",
    )
    return [
        [implied[labeled_set.label]] if labeled_set.label in implied else list(BUILT_IN[labeled_set.manifest.dataset])
        for labeled_set in labeled_sets
    ]


def _find(name: str) -> tuple[Task, ...]:
    """Return the built-in tasks of this name, or the one in a file: a path has a slash or a suffix."""
    if name in BUILT_IN:
        return BUILT_IN[name]
    if "/" in name or name.endswith(SUFFIXES):
        return (read_task(Path(name).expanduser()),)
    raise UserError(
        f"tasks names {name!r}, which is no built-in task{near(name, BUILT_IN)}; these are {', '.join(BUILT_IN)}; "
        f"name a file as ./{name}.yaml"
    )


def _named_tasks(labeled_sets: Sequence[LabeledSet], tasks: Sequence[Task]) -> list[list[Task]]:
    labels = [_labels_of(labeled_set) for labeled_set in labeled_sets]
    for task in tasks:
        if all(task.missing_in(known) for known in labels):
            labeled_set = min(labeled_sets, key=lambda item: len(task.missing_in(_labels_of(item))))
            raise UserError(f"task {task.name!r}: dataset {labeled_set.label!r} {missing_label(task, labeled_set)}")
    chosen = [[task for task in tasks if not task.missing_in(known)] for known in labels]
    for labeled_set, of_set in zip(labeled_sets, chosen, strict=True):
        require(
            bool(of_set),
            f"dataset {labeled_set.label!r} has the labels of none of the tasks "
            f"{', '.join(task.name for task in tasks)}; add a task for it, or leave the dataset out",
        )
    return chosen


def same_task(task: Task, labeled_set: LabeledSet, own: Sequence[Task]) -> list[Task]:
    """Return the ways in which a set answers a task that classifiers of another set are fitted to.

    It answers the task as it is if it has all of its labels. Otherwise its own tasks of the same kind answer it whose
    positive labels have the same names, in capitals or not, with their own negative labels.

    Args:
        task: the task of the other set
        labeled_set: the set
        own: its own tasks

    Returns:
        The answering tasks, with their questions in the order of the task's; none if the set does not answer it.
    """
    if not task.missing_in(_labels_of(labeled_set)):
        return [task]
    wanted = [question.positive.casefold() for question in task.questions]
    found = []
    for other in own:
        questions = {question.positive.casefold(): question for question in other.questions}
        if other.kind == task.kind and questions.keys() == set(wanted):
            found.append(replace(other, questions=tuple(questions[name] for name in wanted)))
    return found


def missing_label(task: Task, labeled_set: LabeledSet) -> str:
    """Return which label of a task a set lacks, and which it has, as the end of a message."""
    known = _labels_of(labeled_set)
    missing = task.missing_in(known)[0]
    return f"has no label {missing!r}{near(missing, known)}; its labels are {', '.join(sorted(known))}"


def _labels_of(labeled_set: LabeledSet) -> set[str]:
    """Return the names of labels that are known for any image."""
    return {name for labels in labeled_set.samples.labels for name, value in labels.items() if value is not None}


def implied_task(labeled_set: LabeledSet, positive: str | None = None) -> Task:
    """Return the task that labels imply, and say it in a line.

    If every labeled image has exactly one label, the labels are classes: of a binary task if there are two, else of a
    multiclass one. Otherwise the task is multilabel, or binary if there is only one label.

    Args:
        labeled_set: the set
        positive: the positive class of two

    Raises:
        UserError: if the set has only one class.
    """
    name, labels = labeled_set.label, labeled_set.samples.labels
    known = sorted(_labels_of(labeled_set))
    present = Counter(label for of_image in labels for label, value in of_image.items() if value == 1)
    if not _are_classes(labels):
        if len(known) == 1:
            return Task(name, "binary", (Question(known[0]),))
        say(f"{name}: the labels do not exclude each other, so each is probed on its own: {', '.join(known)}")
        return multilabel(name, known)
    require(len(known) > 1, f"dataset {name!r} has only the class {known[0]!r}; a probe needs two classes")
    if len(known) > 2:
        say(f"{name}: {len(known)} classes, each is told apart from the others: {', '.join(known)}")
        return Task(name, "multiclass", tuple(Question(label) for label in known))
    chosen = positive if positive in known else _positive_of(known, present)
    other = next(label for label in known if label != chosen)
    say(f"{name}: two classes, of which {chosen} is positive and {other} negative; --positive='{other}' swaps them")
    return Task(name, "binary", (Question(chosen, other),))


def _are_classes(labels: Iterable[dict[str, int | None]]) -> bool:
    """Return whether every image with a known label has exactly one that is present, and none that is uncertain."""
    values = [list(of_image.values()) for of_image in labels]
    return all(
        of_image.count(1) == 1 and -1 not in of_image for of_image in values if any(v is not None for v in of_image)
    )


def _positive_of(known: Sequence[str], present: Counter[str]) -> str:
    """Return the class whose name is not that of healthy people; the rarer one if names do not tell."""
    diseased = [label for label in known if label.casefold() not in _HEALTHY]
    return min(diseased if len(diseased) == 1 else known, key=lambda label: present[label])
