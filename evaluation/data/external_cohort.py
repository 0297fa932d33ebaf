"""Cohorts of an external validation: fitted to the images of one labeled set, tested on all images of another."""

from typing import NamedTuple

import numpy as np

from evaluation.data.answers import answers_of
from evaluation.data.cohort import EXTERNAL, ChosenRows, Draw, TaskCohorts, cohorts_of, official_test
from evaluation.data.division import Division
from evaluation.data.joined_sets import JoinedSets
from evaluation.results.presets import Preset, Split
from evaluation.results.tasks import Task
from infra.arrays import Bool, Int64
from sharding.format.copies import COPY


class TaskPair(NamedTuple):
    """One task, as the fitted and as the tested set answer it: the same questions in the same order."""

    fitted: Task
    tested: Task


def build_external_cohorts(
    label: str,
    sets: JoinedSets,
    tasks: TaskPair,
    preset: Preset,
    *,
    seed: int,
    split: Split,
    groups: Int64,
    left_out: Bool | None,
    folds: int | None,
) -> TaskCohorts:
    """Choose the images of two sets that answer a task.

    The development part is that of the fitted set if it has an official split, else all of its images, in stratified
    folds that never divide a patient or a group. The test part is every image of the tested set, without those that
    share a patient or a picture with the development part, by either preset. Each set is balanced as its task says.

    Args:
        label: name of the task in the tables
        sets: the two sets, of N samples
        tasks: the task, as each of them answers it
        preset: the protocol
        seed: determines the folds and the balance
        split: whether the official test part of the fitted set stays out, or is used for fitting too
        groups: (N,) codes of samples that are connected by a patient or a picture
        left_out: (N,) whether an image is left out as a copy of another
        folds: replaces the preset's number of folds

    Raises:
        UserError: if a class is missing or has too few patients; of several questions, if that is so for all.
    """
    samples, is_tested = sets.samples, sets.is_tested
    names = sets.fitted.label, sets.tested.label
    of_sets = zip(tasks, (sets.fitted, sets.tested), strict=True)
    answers = np.concatenate([answers_of(task, item.samples.labels) for task, item in of_sets], axis=1)
    chosen = ChosenRows(tasks.tested, answers)
    if split == "official":
        fitted_rows = chosen.rows[~is_tested[chosen.rows]]
        official = official_test(names[0], tasks.fitted, sets.fitted.samples.splits, fitted_rows)
        if official is not None:
            unused = np.append(official, np.zeros(int(is_tested.sum()), np.bool_))
            chosen.keep(~unused[chosen.rows], f"in the official test part of {names[0]}")
    if left_out is not None:
        chosen.keep(~left_out[chosen.rows], COPY)
    shared = f"of {names[1]}, with a patient or picture of the development part"
    tested = is_tested[chosen.rows]
    chosen.keep(~(tested & np.isin(groups[chosen.rows], groups[chosen.rows][~tested])), shared)
    _balance(chosen, Draw(answers[0], samples, seed), is_tested, tasks, names)

    rows, in_test = chosen.rows, is_tested[chosen.rows]
    codes = np.unique((groups if preset.groups_duplicates else sets.patients)[rows], return_inverse=True)[1]
    division = Division(label, tasks.tested, answers[:, rows], codes, chosen.lost(COPY, shared))
    fold = division.fold(in_test, ~in_test, folds or preset.folds, seed)
    division.require_tested(in_test)
    count = len(sets.fitted.samples.ids)
    sides = {f" in {names[0]}": slice(count), f" in {names[1]}": slice(count, None)}
    return cohorts_of(division, chosen, answers, fold[None], EXTERNAL, sides)


def _balance(chosen: ChosenRows, draw: Draw, is_tested: Bool, tasks: TaskPair, names: tuple[str, str]) -> None:
    """Balance the classes of the fitted set if its task has any balance, of the tested set only by class or view."""
    for task, name, side in zip(tasks, names, (False, True), strict=True):
        if task.balance == "none" or (side and task.balance == "development"):
            continue
        kept = is_tested[chosen.rows] != side
        of_side = chosen.rows[~kept]
        kept[~kept] = draw.balanced(of_side, np.zeros(len(of_side), np.bool_), task.balance)
        chosen.keep(kept, f"left out of {name} to balance by {'view' if task.balance == 'view' else 'class'}")
