"""The division of a task's images into parts and folds: stratified, once for all questions, never within a patient."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from sklearn.model_selection import StratifiedGroupKFold

from evaluation.data.answers import SEVERAL
from evaluation.results.presets import Preset
from evaluation.results.tasks import Question, Task
from infra.arrays import Bool, Int64
from infra.errors import UserError
from infra.rng import permutation

UNUSED: Final = -2  # fold of an image that takes no part in a round
_TEST_PARTS: Final = 5  # the test part is one fifth of the patients
_LEAST_TESTED: Final = 5  # patients of each class, for a label that counts in a mean


def divide(strata: Int64, patients: Int64, folds: int, seed: int, stream: str) -> Int64:
    """Divide images into stratified folds that never divide a patient.

    Args:
        strata: (n,) codes whose shares are kept, such as the classes
        patients: (n,) codes
        folds: how many folds
        seed: breaks ties
        stream: name of the random stream

    Returns:
        (n,) the fold of each image.
    """
    codes, patient = np.unique(patients, return_inverse=True)
    groups = permutation(len(codes), seed, stream)[patient]  # instead of scikit-learn's own shuffle
    fold = np.empty(len(strata), np.int64)
    parts = StratifiedGroupKFold(folds).split(np.zeros(len(strata)), strata, groups)
    for number, (_, inside) in enumerate(parts):
        fold[inside] = number
    return fold


def strata_of(answers: Int64, least: int) -> Int64:
    """Return (n,) the strata of images that answer several questions: of each image the rarest answer that it gives.

    An image counts for one question only, and the rarest answers are the ones that could miss a fold. Of one question
    the strata are the classes, and so they are of classes that exclude each other.

    Args:
        answers: (Q, n) 1 positive, 0 negative, below 0 unknown
        least: images that a stratum needs; a smaller one is joined to the largest
    """
    if len(answers) == 1 and (answers >= 0).all():
        return answers[0]
    counts = np.stack([(answers == code).sum(axis=1) for code in (0, 1)], axis=1)
    rarer = counts.argmin(axis=1)
    strata = np.zeros(answers.shape[1], np.int64)
    for number in np.argsort(-counts.min(axis=1), kind="stable"):
        strata[answers[number] == rarer[number]] = number + 1
    sizes = np.bincount(strata)
    return np.where(sizes[strata] < least, sizes.argmax(), strata)


@dataclass(frozen=True)
class Division:
    """Divides the n images of a task; its errors name the dataset and how many images were left out before.

    A task with one question that cannot be divided is an error. Of several questions, such a one is left out.

    Attributes:
        dataset: name of the dataset
        task: the task
        answers: (Q, n) 1 positive, 0 negative, below 0 unknown
        codes: (n,) the patients
        lost: reason -> images of the task that were left out before
        left_out: number of each question that is left out -> the reason; filled by the methods
    """

    dataset: str
    task: Task
    answers: Int64
    codes: Int64
    lost: Mapping[str, int]
    left_out: dict[int, str] = field(default_factory=dict)

    def test_parts(self, preset: Preset, repeats: int, seed: int) -> tuple[list[Bool], str]:
        """Return which images (n,) each round tests, without an official split, and the name of such parts."""
        self._require_patients("images", np.ones(len(self.codes), np.bool_), _TEST_PARTS)
        strata = strata_of(self.answers[self._questions()], _TEST_PARTS)
        repetitions = range(repeats if preset.crosses else 1)
        outer = [divide(strata, self.codes, _TEST_PARTS, seed, f"probe-test-{number}") for number in repetitions]
        tested = [part == number for part in outer for number in range(_TEST_PARTS if preset.crosses else 1)]
        if not preset.crosses:
            return tested, "80/20 by patient"
        return tested, f"{_TEST_PARTS}-fold by patient" + (f", {repeats} times" if repeats > 1 else "")

    def fold(self, in_test: Bool, develops: Bool, folds: int, seed: int) -> Int64:
        """Return (n,) the fold of a development image, -1 in the test part, UNUSED in neither."""
        self._require_patients("test part", in_test, 1)
        self._require_patients("development part", develops, folds)
        fold_of = np.where(in_test, -1, UNUSED)
        strata = strata_of(self.answers[self._questions()][:, develops], folds)
        fold_of[develops] = divide(strata, self.codes[develops], folds, seed, "probe-folds")
        for number in range(folds):
            inside = fold_of == number
            for question in self._questions():
                if not {0, 1} <= set(self.answers[question, inside].tolist()):
                    self._leave_out(
                        question,
                        f"has only one class of {self._names(question)[0]} in fold {number} of folds={folds}"
                        + (self._overlap or ", because few patients have most images of the other; use fewer folds"),
                    )
        return fold_of

    def require_tested(self, in_test: Bool) -> None:
        """Leave out each of several questions with too few tested patients (n,) to be worth a score."""
        if len(self.answers) > 1:
            self._require_patients("test part", in_test, _LEAST_TESTED)

    @property
    def _overlap(self) -> str:
        """What left most images out of a task whose classes overlap, and the way out; empty otherwise."""
        several = self.lost.get(SEVERAL, 0)
        if several <= len(self.codes):
            return ""
        return f", because {several} images have several of its classes and take no part; kind: multilabel keeps them"

    def _questions(self) -> list[int]:
        """Return the numbers of the questions that are not left out."""
        return [number for number in range(len(self.answers)) if number not in self.left_out]

    def _names(self, question: int) -> tuple[str, str]:
        asked: Question = self.task.questions[question]
        return asked.positive, asked.negative_name

    def _leave_out(self, question: int, reason: str) -> None:
        """Leave out a question.

        Raises:
            UserError: if no other is left
        """
        self.left_out[question] = reason
        if len(self.left_out) == len(self.answers):
            reasons = "; ".join(f"{self._names(number)[0]}: {text}" for number, text in list(self.left_out.items())[:3])
            raise UserError(
                f"dataset {self.dataset!r} {reason}"
                if len(self.answers) == 1
                else f"dataset {self.dataset!r}, task {self.task.name!r}: no label can be probed: {reasons}"
            )

    def _require_patients(self, part: str, inside: Bool, least: int) -> None:
        """Leave out questions of which a part lacks a class, has one patient only, or too few patients of a class."""
        for question in self._questions():
            reason = self._shortage(question, part, inside, least)
            if reason:
                self._leave_out(question, reason)

    def _shortage(self, question: int, part: str, inside: Bool, least: int) -> str:
        """Return what a part lacks to probe a question; empty if nothing."""
        asked = inside & (self.answers[question] >= 0)
        classes, codes = self.answers[question, asked], self.codes[asked]
        counts = {
            name: len(np.unique(codes[classes == code]))
            for name, code in zip(self._names(question), (1, 0), strict=True)
        }
        summary = " and ".join(f"{count} patients with {name}" for name, count in counts.items())
        where = "" if part == "images" else f" in its {part}"
        if min(counts.values()) == 0:
            lost = ", ".join(f"{count} x {reason}" for reason, count in self.lost.items() if count)
            return f"has {summary}{where}{f' after {lost}' if lost else ''}; a probe needs both classes"
        if part != "test part" and len(np.unique(codes)) == 1:
            return (
                f"has one patient only: all {len(codes)} images of the task{where} show one patient; a probe needs "
                "more, because it is tested on other patients than it is fitted to"
            )
        if min(counts.values()) >= least:
            return ""
        if part == "test part":
            return f"has {summary}{where}, fewer than the {least} of each that a score in a mean needs"
        parts, hint = ("test parts", "") if part == "images" else ("folds", "use fewer folds, or ")
        way_out = self._overlap or f"; {hint}add patients of that class"
        return f"has {summary}{where}, fewer than the {least} {parts} to divide them into{way_out}"
