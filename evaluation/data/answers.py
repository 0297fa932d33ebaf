"""The answers of images to the questions of a task, by the labels of the images."""

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np

from evaluation.results.tasks import Kind, Question, Task
from infra.arrays import Int64

Labels = Mapping[str, int | None]  # 1 present, 0 absent, -1 uncertain, None not mentioned

_BLANK: Final = -9
_UNCERTAIN, _NEITHER, _SEVERAL = -1, -2, -3
SEVERAL: Final = "several classes"
REASONS: Final[Mapping[Kind, Mapping[int, str]]] = {  # why an image has no answer
    "binary": {_UNCERTAIN: "label uncertain", _NEITHER: "neither label", _SEVERAL: "both labels"},
    "multilabel": {_UNCERTAIN: "label uncertain", _NEITHER: "label unknown"},
    "multiclass": {_UNCERTAIN: "label uncertain", _NEITHER: "none of the classes", _SEVERAL: SEVERAL},
}


def answers_of(task: Task, labels: Sequence[Labels]) -> Int64:
    """Return what N images answer to the Q questions of a task.

    Returns:
        (Q, N) 1 positive, 0 negative, or a negative code of `REASONS`.
    """
    labels = _renamed(labels, task.names)
    if task.kind != "multiclass":
        return np.stack([_answers(question, labels) for question in task.questions])
    values = np.stack([_values(question, labels) for question in task.questions])
    classes = np.select(
        [(values == 1).sum(axis=0) > 1, (values == -1).any(axis=0), (values == 1).any(axis=0)],
        [_SEVERAL, _UNCERTAIN, values.argmax(axis=0)],
        _NEITHER,
    )
    return np.stack([np.where(classes < 0, classes, classes == code) for code in range(len(values))])


def several_classes(task: Task, labels: Sequence[Labels]) -> int:
    """Return how many images have several of the classes of a multiclass task, and so no answer."""
    return int((answers_of(task, labels)[0] == _SEVERAL).sum()) if task.kind == "multiclass" else 0


def _renamed(labels: Sequence[Labels], names: Sequence[Sequence[str]]) -> Sequence[Labels]:
    """Return the labels by the names of a task: of each group of names, the first that an image has a value of."""
    if not names:
        return labels
    renamed = []
    for of_image in labels:
        values = [[of_image[name] for name in group if of_image.get(name) is not None] for group in names]
        renamed.append(
            {**of_image, **{group[0]: known[0] for group, known in zip(names, values, strict=True) if known}}
        )
    return renamed


def _answers(question: Question, labels: Sequence[Labels]) -> Int64:
    """Return (N,) the answers to one question that does not depend on others."""
    positive = _values(question, labels)
    opposite = np.where(positive < 0, positive, 1 - positive)
    negative = _column(question.negative, labels) if question.negative else opposite
    is_certain, is_uncertain = (((positive == code) | (negative == code)) for code in (1, -1))
    counts_as_negative = (question.uncertain == "zeros") & (_column(question.positive, labels) == -1)
    # A certain label next to an uncertain one makes no certain case of either class.
    return np.select(
        [counts_as_negative, is_certain & (positive == negative), is_uncertain, is_certain],
        [0, _SEVERAL, _UNCERTAIN, positive == 1],
        _NEITHER,
    )


def _values(question: Question, labels: Sequence[Labels]) -> Int64:
    """Return (N,) the positive label of a question, by its meaning of uncertain and blank ones."""
    values = _column(question.positive, labels)
    if question.uncertain != "ignore":
        values = np.where(values == -1, int(question.uncertain == "ones"), values)
    return np.where(values == _BLANK, 0, values) if question.unmentioned == "absent" else values


def _column(name: str, labels: Sequence[Labels]) -> Int64:
    return np.array([_BLANK if (value := of_image.get(name)) is None else value for of_image in labels], np.int64)
