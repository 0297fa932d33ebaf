"""The list of cases that a probe runs: checkpoints, controls, and both with few labels."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from evaluation.data.attributes import encode_attributes, image_attributes, metadata_attributes
from evaluation.data.extractor import Features
from evaluation.data.feature_matrix import border, concatenated
from evaluation.data.probe_tasks import ProbeTask
from evaluation.fitting.control_cases import (
    ShiftCase,
    dataset_source_case,
    shift_case,
    shuffled_over_all,
    shuffled_within_parts,
)
from evaluation.fitting.draws import grouped_by_row
from evaluation.fitting.probe_cases import FEW_PERCENT, ProbeCase, derived_case, few_labels_case, probe_case
from infra.log import say


class FewLabelsCase(NamedTuple):
    """The cases of a row with the labels of only `percent` of the patients, and those with all labels."""

    row: Sequence[ProbeCase]
    percent: int
    cases: Sequence[ProbeCase]


def list_cases(tasks: Sequence[ProbeTask], features: Features, *, last_controls: bool, seed: int) -> list[ProbeCase]:
    """Return the cases of every task, in the order of the rows.

    Args:
        tasks: the tasks
        features: the features, those of the last checkpoint at the end
        last_controls: include the controls that depend on the last checkpoint
        seed: seed of the shuffled labels
    """
    cases: list[ProbeCase] = []
    for task in tasks:
        cases += _feature_cases(task, features)
        if last_controls:
            cases += _last_controls(task, tasks, features, cases[-1], seed)
    return cases


def _feature_cases(task: ProbeTask, features: Features) -> Iterator[ProbeCase]:
    """Yield controls and checkpoints in order, each followed by the cases derived from its features."""
    for source, matrices in features.items():
        case = probe_case(task, source, matrices[task.labeled_set.label])
        yield case
        if case.kind == "pixels":
            yield derived_case(case, "border of the image", "border", border(case.matrix))
            samples = task.labeled_set.samples
            controls = {
                "view, sex and age": metadata_attributes(samples),
                "size, file and gray level": image_attributes(samples, case.matrix),
            }
            for name, attributes in controls.items():
                matrix = encode_attributes(attributes, task.cohort.rows)
                if matrix:
                    yield derived_case(case, name, "attributes", matrix)


def _last_controls(
    task: ProbeTask, tasks: Sequence[ProbeTask], features: Features, last: ProbeCase, seed: int
) -> Iterator[ProbeCase]:
    yield shuffled_within_parts(last, seed)
    over_all = shuffled_over_all(last, seed)
    if over_all is None:
        say(f"{task.key.dataset}: too few patients to shuffle labels over all of them; left out")
    else:
        yield over_all
    comparable = _one_task_per_dataset(task, tasks)
    if len(comparable) > 1:
        matrices = list(features.values())[-1]
        compared = {other.labeled_set.label: matrices[other.labeled_set.label] for other in comparable}
        yield dataset_source_case(last, comparable, compared, concatenated(compared))


def _one_task_per_dataset(task: ProbeTask, tasks: Sequence[ProbeTask]) -> list[ProbeTask]:
    """Return the first task of each dataset by this preset; none if `task` is not the first of its own dataset.

    Two joined sets are no dataset: the control that tells their parts apart asks the same of them.
    """
    firsts: dict[str, ProbeTask] = {}
    if task.cohort.is_external:
        return []
    for other in tasks:
        if other.key.preset == task.key.preset and not other.cohort.is_external:
            firsts.setdefault(other.labeled_set.label, other)
    return list(firsts.values()) if firsts[task.labeled_set.label] is task else []


def list_few_labels(cases: Sequence[ProbeCase], seed: int) -> list[FewLabelsCase]:
    """Return the cases with few labels: of the last checkpoint, the pixels and the untrained backbone."""
    few_cases = []
    too_few: dict[tuple[str, int], None] = {}
    for row in grouped_by_row(cases):
        first = row[0]
        if first.preset.chooses_threshold and (
            first.kind in ("pixels", "untrained") or first is last_case(cases, first)
        ):
            for percent in FEW_PERCENT:
                few = _share_rounds([few_labels_case(case, percent, seed) for case in row])
                if few:
                    few_cases.append(FewLabelsCase(row, percent, few))
                else:
                    too_few[first.key.dataset, percent] = None
    for dataset, percent in too_few:
        say(f"{dataset}: {percent} % of the labels leave too few patients of a class; left out")
    return few_cases


def list_shifts(cases: Sequence[ProbeCase], seed: int) -> list[ShiftCase]:
    """Return the cases that tell parts apart that were not drawn at random: by the pixels and the last checkpoint.

    These are the parts of an official split, and the two sets of an external validation.

    A dataset is asked once, as the last preset divides it for the question with the most patients of either class in
    either part.
    """
    tasks = dict.fromkeys(case.task for case in cases if case.task.cohort.is_official or case.task.cohort.is_external)
    by_set: dict[str, list[ProbeTask]] = {}
    for task in tasks:
        by_set.setdefault(task.labeled_set.label, []).append(task)
    shifts = []
    for of_set in by_set.values():
        asked = max((task for task in of_set if task.key.preset == of_set[-1].key.preset), key=_fewest_patients)
        whole = [case for case in cases if case.task is asked]
        for case in [case for case in whole if case.kind == "pixels" or case is last_case(cases, case)]:
            for code in (0, 1):
                shift = shift_case(case, code, seed)
                if shift is None:
                    name = asked.record.class_name(code)
                    say(f"{asked.key.dataset}: too few patients of {name} to tell the parts apart; left out")
                else:
                    shifts.append(shift)
    return shifts


def _fewest_patients(task: ProbeTask) -> int:
    """Return how many patients of a class a part has, for the class and part that have the fewest."""
    cohort = task.cohort
    parts = (cohort.in_test[0], cohort.in_development[0])
    return min(len(np.unique(cohort.patients[part & (cohort.classes == code)])) for part in parts for code in (0, 1))


def _share_rounds(draws: Sequence[ProbeCase | None]) -> list[ProbeCase]:
    """Deal the rounds, each with its own draw of labels, to the draws of weights; empty if the labels are too few.

    So the spread over the rounds includes both, and several draws of weights cost no more fits than one.
    """
    shares = [slice(number, None, len(draws)) for number in range(len(draws))]
    dealt = [
        replace(case, classes=case.classes[share], folds=case.folds[share])
        for case, share in zip(draws, shares, strict=True)
        if case is not None
    ]
    return [case for case in dealt if len(case.folds)]


def last_case(cases: Sequence[ProbeCase], case: ProbeCase) -> ProbeCase | None:
    """Return the case of the last checkpoint on the same task; None if no checkpoint is probed."""
    checkpoints = (other for other in cases if other.task is case.task and other.kind == "checkpoint")
    return max(checkpoints, key=lambda other: other.step or 0, default=None)
