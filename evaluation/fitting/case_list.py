"""The list of cases that a probe runs: checkpoints, controls, and both with few labels."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from evaluation.data.extractor import Features
from evaluation.data.feature_matrix import attributes, border, concatenated
from evaluation.data.probe_tasks import ProbeTask
from evaluation.fitting.control_cases import (
    ShiftCase,
    dataset_source_case,
    shift_case,
    shuffled_over_all,
    shuffled_within_parts,
)
from evaluation.fitting.probe_cases import FEW_PERCENT, ProbeCase, derived_case, few_labels_case, probe_case
from infra.log import say


class FewLabelsCase(NamedTuple):
    """A case with the labels of only `percent` of the patients, and the case with all labels that it belongs to."""

    whole: ProbeCase
    percent: int
    case: ProbeCase


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
            metadata = attributes(task.labeled_set.samples, task.cohort.rows)
            if metadata:
                yield derived_case(case, "view, sex and age", "attributes", metadata)


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
        yield dataset_source_case(last, comparable, matrices, concatenated(matrices))


def _one_task_per_dataset(task: ProbeTask, tasks: Sequence[ProbeTask]) -> list[ProbeTask]:
    """Return the first task of each dataset by this preset; none if `task` is not the first of its own dataset."""
    firsts: dict[str, ProbeTask] = {}
    for other in tasks:
        if other.key.preset == task.key.preset:
            firsts.setdefault(other.labeled_set.label, other)
    return list(firsts.values()) if firsts[task.labeled_set.label] is task else []


def list_few_labels(cases: Sequence[ProbeCase], seed: int) -> list[FewLabelsCase]:
    """Return the cases with few labels: of the last checkpoint, the pixels and the untrained backbone."""
    few_cases = []
    too_few: dict[tuple[str, int], None] = {}
    for whole in cases:
        if whole.preset.chooses_threshold and (
            whole.kind in ("pixels", "untrained") or whole is last_case(cases, whole)
        ):
            for percent in FEW_PERCENT:
                case = few_labels_case(whole, percent, seed)
                if case is None:
                    too_few[whole.key.dataset, percent] = None
                else:
                    few_cases.append(FewLabelsCase(whole, percent, case))
    for dataset, percent in too_few:
        say(f"{dataset}: {percent} % of the labels leave too few patients of a class; left out")
    return few_cases


def list_shifts(cases: Sequence[ProbeCase], seed: int) -> list[ShiftCase]:
    """Return the cases that tell the parts of an official split apart: by the pixels and by the last checkpoint.

    A dataset is asked once, as the last preset divides it for its first question.
    """
    firsts: dict[str, str] = {}
    for case in cases:
        firsts.setdefault(case.task.labeled_set.label, case.key.dataset)
    tasks = {
        case.task.labeled_set.label: case.task
        for case in cases
        if case.task.cohort.is_official and case.key.dataset == firsts[case.task.labeled_set.label]
    }
    shifts = []
    for label, task in tasks.items():
        whole = [case for case in cases if case.task is task]
        for case in [case for case in whole if case.kind == "pixels" or case is last_case(cases, case)]:
            for code in (0, 1):
                shift = shift_case(case, code, seed)
                if shift is None:
                    say(f"{label}: too few patients to tell the official parts apart within a class; left out")
                else:
                    shifts.append(shift)
    return shifts


def last_case(cases: Sequence[ProbeCase], case: ProbeCase) -> ProbeCase | None:
    """Return the case of the last checkpoint on the same task; None if no checkpoint is probed."""
    checkpoints = (other for other in cases if other.task is case.task and other.kind == "checkpoint")
    return max(checkpoints, key=lambda other: other.step or 0, default=None)
