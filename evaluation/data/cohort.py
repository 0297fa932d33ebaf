"""The images of a task, and their parts and folds, which never divide a patient."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from evaluation.data.answers import REASONS, SEVERAL, answers_of
from evaluation.data.division import UNUSED, Division
from evaluation.data.samples import Samples
from evaluation.results.presets import Balance, Preset, Split
from evaluation.results.tasks import Question, Task
from infra.arrays import Bool, Int64
from infra.errors import require
from infra.rng import uniform
from sharding.format.copies import COPY

EXTERNAL: Final = "external"
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
        split: origin of the parts: "official", "external" if the test part is another set, or how they were drawn
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

    @property
    def is_external(self) -> bool:
        """Whether the test part is another set than the development part."""
        return self.split == EXTERNAL


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
    chosen = ChosenRows(task, answers)
    patients = np.unique(np.asarray(samples.patients, np.str_), return_inverse=True)[1] if groups is None else groups
    official = official_test(dataset, task, samples.splits, chosen.rows) if split == "official" else None
    if left_out is not None:
        chosen.keep(~left_out[chosen.rows], COPY)
    if official is not None:
        in_test = official[chosen.rows]
        of_tested = np.isin(patients[chosen.rows], patients[chosen.rows][in_test])
        chosen.keep(in_test | ~of_tested, "development image of a tested patient")
    draw = Draw(answers[0], samples, seed)
    if task.balance in ("class", "view"):
        parts = np.zeros(len(chosen.rows), np.bool_) if official is None else official[chosen.rows]
        chosen.keep(draw.balanced(chosen.rows, parts, task.balance), f"left out to balance by {task.balance}")

    rows = chosen.rows
    codes = np.unique(patients[rows], return_inverse=True)[1]
    division = Division(dataset, task, answers[:, rows], codes, chosen.lost(COPY))
    tested, name = ([official[rows]], _OFFICIAL) if official is not None else division.test_parts(preset, repeats, seed)
    rounds = []
    for inside in tested:
        develops = ~inside
        if task.balance == "development":
            develops &= draw.balanced(rows, inside, task.balance)
        rounds.append(division.fold(inside, develops, folds or preset.folds, seed))
    assigned = np.stack(rounds)
    division.require_tested((assigned == -1).any(axis=0))
    if task.balance == "development":
        unused = rows[(assigned == UNUSED).all(axis=0)]
        chosen.removed["development image left out to balance the classes"] = unused
    return cohorts_of(division, chosen, answers, assigned, name, {"": slice(None)})


class ChosenRows:
    """The images that are still in a task, and those that were left out.

    Attributes:
        rows: (n,) positions among the samples
        removed: reason -> (m,) positions of the images left out for it
    """

    def __init__(self, task: Task, answers: Int64) -> None:
        """Choose the images that answer any question of a task; `answers` is (Q, N)."""
        self.rows: Int64 = np.flatnonzero((answers >= 0).any(axis=0))
        codes = {reason: code for code, reason in REASONS[task.kind].items()}
        self._several = int((answers[0] == codes[SEVERAL]).sum()) if SEVERAL in codes else 0
        self.removed: dict[str, Int64] = {}

    def keep(self, inside: Bool, reason: str) -> None:
        """Leave out the images (n,) that are not inside."""
        self.removed[reason] = self.rows[~inside]
        self.rows = self.rows[inside]

    def lost(self, *reasons: str) -> dict[str, int]:
        """Count the images left out for these reasons, and those of several classes."""
        return {SEVERAL: self._several} | {reason: len(self.removed.get(reason, ())) for reason in reasons}


def cohorts_of(
    division: Division, chosen: ChosenRows, answers: Int64, folds: Int64, split: str, sides: Mapping[str, slice]
) -> TaskCohorts:
    """Return the cohort of each question that the division does not leave out.

    Args:
        division: the division of the chosen images
        chosen: these n images, and those that were left out
        answers: (Q, N) of all samples
        folds: (rounds, n) fold of each chosen image
        split: origin of the parts
        sides: what stands behind the reasons for which labels leave an image out -> the samples that it is about
    """
    task, rows = division.task, chosen.rows

    def cohort(number: int, question: Question) -> Cohort:
        known = answers[number, rows] >= 0
        excluded = {
            f"{reason}{side}": int((answers[number, inside] == code).sum())
            for side, inside in sides.items()
            for code, reason in REASONS[task.kind].items()
        }
        excluded |= {reason: int((answers[number, lost] >= 0).sum()) for reason, lost in chosen.removed.items()}
        return Cohort(
            dataset=division.dataset,
            task=task,
            question=question,
            rows=rows[known],
            classes=answers[number, rows][known],
            patients=division.codes[known],
            folds=folds[:, known],
            split=split,
            excluded=excluded,
        )

    questions = dict(enumerate(task.questions))
    return TaskCohorts(
        [cohort(number, question) for number, question in questions.items() if number not in division.left_out],
        {questions[number].positive: reason for number, reason in sorted(division.left_out.items())},
    )


def official_test(dataset: str, task: Task, splits: Sequence[str | None], rows: Int64) -> Bool | None:
    """Return (N,) whether an image is in the official test part; None if the dataset has none.

    Args:
        dataset: name of the dataset
        task: says which official splits can be the test part
        splits: official split of the N samples
        rows: the images of the task, which alone must have a split

    Raises:
        UserError: if some of them have no official split
    """
    of_rows = [splits[row] for row in rows]
    tested = next((name for name in task.test_splits if name in of_rows), None)
    if tested is None:
        return None
    missing = of_rows.count(None)
    require(
        missing == 0,
        f"dataset {dataset!r}: {missing} images have no official split, others have one; pack the dataset again",
    )
    return np.array([split == tested for split in splits])


@dataclass(frozen=True)
class Draw:
    """Draws which images stay if classes are balanced. It depends on the ids, so that repacking changes nothing.

    Attributes:
        classes: (N,) 1 positive, 0 negative, below 0 neither
        samples: the N samples
        seed: determines the draw
    """

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
