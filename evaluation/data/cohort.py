"""The images of a task, and their parts and folds, which never divide a patient."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from evaluation.data.answers import REASONS, answers_of
from evaluation.data.division import UNUSED, Division
from evaluation.data.samples import Samples
from evaluation.results.presets import Balance, Preset, Split
from evaluation.results.tasks import Question, Task
from infra.arrays import Bool, Int64
from infra.errors import require
from infra.rng import uniform
from sharding.format.copies import COPY

_OFFICIAL: Final = "official"


@dataclass(frozen=True)
class Cohort:
    """The n images of a dataset that answer a question of a task, and the part of each image in every round.

    Attributes:
        dataset: name of the dataset
        task: the task
        question: the question
        rows: (n,) positions among the dataset's samples
        classes: (n,) 1 positive, 0 negative
        patients: (n,) one code for each patient, or for each group of patients that share an image; the same codes
            for all questions of a task
        folds: (rounds, n) fold of a development image, -1 in the test part, UNUSED in neither
        split: origin of the parts
        excluded: reason -> images left out
    """

    dataset: str
    task: Task
    question: Question
    rows: Int64
    classes: Int64
    patients: Int64
    folds: Int64
    split: str
    excluded: dict[str, int]

    @property
    def in_test(self) -> Bool:
        """(rounds, n) whether an image is in the test part, which is scored once and never used for a choice."""
        return self.folds == -1

    @property
    def in_development(self) -> Bool:
        """(rounds, n) whether an image is in the development part."""
        return self.folds >= 0

    @property
    def is_official(self) -> bool:
        """Whether upstream chose the test part."""
        return self.split == _OFFICIAL


@dataclass(frozen=True)
class TaskCohorts:
    """A task of a dataset, divided once for all of its questions.

    Attributes:
        questions: the cohort of each question
        left_out: positive label of each question that cannot be probed -> the reason
    """

    questions: list[Cohort]
    left_out: dict[str, str]


def build_cohorts(
    dataset: str,
    task: Task,
    samples: Samples,
    preset: Preset,
    *,
    seed: int,
    split: Split = "official",
    groups: Int64 | None = None,
    left_out: Bool | None = None,
    folds: int | None = None,
    repeats: int = 1,
) -> TaskCohorts:
    """Choose the images of a task and divide them.

    A dataset with an official test part keeps it: train and val form the development part, without images of tested
    patients. Otherwise the preset decides: the test part is a stratified fifth of the patients, or each fifth in turn,
    `repeats` times over. Folds are stratified and never divide a patient or a group. All questions have the same parts
    and folds; an image that does not answer a question is left out of that question only.

    Args:
        dataset: name of the dataset
        task: the classification, and how its classes are balanced
        samples: the dataset's N samples
        preset: the protocol
        seed: determines parts, folds and the balance
        split: whether an official test part is kept, or ignored as if there were none
        groups: (N,) codes that replace the patients
        left_out: (N,) whether an image is left out as a copy of another
        folds: replaces the preset's number of folds
        repeats: repetitions of the preset's cross-validation

    Raises:
        UserError: if a class is missing or has too few patients; of several questions, if that is so for all.
    """
    answers = answers_of(task, samples.labels)
    rows = np.flatnonzero((answers >= 0).any(axis=0))
    patients = np.unique(np.asarray(samples.patients, np.str_), return_inverse=True)[1] if groups is None else groups
    official = _official_test(dataset, task, [samples.splits[row] for row in rows]) if split == "official" else None
    in_test = official
    removed: dict[str, Int64] = {}  # reason -> rows

    def keep(inside: Bool, reason: str) -> None:
        nonlocal rows, in_test
        removed[reason] = rows[~inside]
        rows, in_test = rows[inside], None if in_test is None else in_test[inside]

    if left_out is not None:
        keep(~left_out[rows], COPY)
    if in_test is not None:
        keep(in_test | ~np.isin(patients[rows], patients[rows][in_test]), "development image of a tested patient")
    draw = _Draw(answers[0], samples, seed)
    if task.balance in ("class", "view"):
        parts = np.zeros(len(rows), np.bool_) if in_test is None else in_test
        keep(draw.balanced(rows, parts, task.balance), f"left out to balance by {task.balance}")

    codes = np.unique(patients[rows], return_inverse=True)[1]
    division = Division(dataset, task, answers[:, rows], codes, len(removed.get(COPY, ())))
    tested, name = ([in_test], _OFFICIAL) if in_test is not None else division.test_parts(preset, repeats, seed)
    rounds = []
    for inside in tested:
        develops = ~inside
        if task.balance == "development":
            develops &= draw.balanced(rows, inside, task.balance)
        rounds.append(division.fold(inside, develops, folds or preset.folds, seed))
    assigned = np.stack(rounds)
    division.require_tested((assigned == -1).any(axis=0))
    if task.balance == "development":
        removed["development image left out to balance the classes"] = rows[(assigned == UNUSED).all(axis=0)]

    def cohort(number: int, question: Question) -> Cohort:
        known = answers[number, rows] >= 0
        excluded = {reason: int((answers[number] == code).sum()) for code, reason in REASONS[task.kind].items()}
        excluded |= {reason: int((answers[number, of_reason] >= 0).sum()) for reason, of_reason in removed.items()}
        classes, folds = answers[number, rows][known], assigned[:, known]
        return Cohort(dataset, task, question, rows[known], classes, codes[known], folds, name, excluded)

    questions = dict(enumerate(task.questions))
    return TaskCohorts(
        [cohort(number, question) for number, question in questions.items() if number not in division.left_out],
        {questions[number].positive: reason for number, reason in sorted(division.left_out.items())},
    )


def _official_test(dataset: str, task: Task, splits: Sequence[str | None]) -> Bool | None:
    """Return (n,) whether an image is in the official test part; None if the dataset has none."""
    tested = next((name for name in task.test_splits if name in splits), None)
    if tested is None:
        return None
    missing = splits.count(None)
    require(
        missing == 0,
        f"dataset {dataset!r}: {missing} images have no official split, others have one; pack the dataset again",
    )
    return np.array([split == tested for split in splits])


@dataclass(frozen=True)
class _Draw:
    """Draws which images stay if classes are balanced. It depends on the ids, so that repacking changes nothing."""

    classes: Int64
    samples: Samples
    seed: int

    def balanced(self, rows: Int64, parts: Bool, balance: Balance) -> Bool:
        """Return (n,) whether an image of these rows stays, if equally many of each class may in each part (n,)."""
        classes = self.classes[rows]
        views = np.array([str(self.samples.views[row]) if balance == "view" else "" for row in rows])
        draws = uniform(self.seed, "probe-balance", self.samples.ids[rows], 0, 1)[:, 0]
        kept = np.zeros(len(rows), np.bool_)
        for view in np.unique(views):
            for part in (False, True):
                inside = [np.flatnonzero((views == view) & (parts == part) & (classes == code)) for code in (0, 1)]
                for of_class in inside:
                    kept[of_class[np.argsort(draws[of_class])][: min(map(len, inside))]] = True
        return kept
