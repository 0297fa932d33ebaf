from dataclasses import replace
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest

from evaluation.data.labeled_sets import LabeledSet
from evaluation.data.probe_tasks import ProbeTask
from evaluation.fitting.case_list import list_shifts
from evaluation.fitting.probe_cases import ProbeCase
from evaluation.results.tasks import Question
from infra.arrays import Bool
from tests.support.probe_cases import made_case
from tests.support.probe_results import made_dataset

CASE = made_case()


def asked(name: str, sick: Bool) -> ProbeCase:
    """Raw pixels on the question whether the images (600,) of an officially divided set show something."""
    classes = sick.astype(np.int64)
    cohort = replace(
        CASE.task.cohort,
        question=Question(name),
        rows=CASE.rows,
        classes=classes,
        patients=CASE.patients,
        folds=CASE.folds,
    )
    record = made_dataset("rigorous", label=f"mine: {name}", question=name, positive=name, negative=f"no {name}")
    labeled_set = cast("LabeledSet", SimpleNamespace(label="mine"))
    task = ProbeTask(labeled_set, cohort, CASE.preset, record, CASE.task.groups)
    return replace(CASE, task=task, kind="pixels", classes=classes[None])


def test_parts_are_asked_about_among_the_classes_with_the_most_patients() -> None:
    rare, common = asked("rare", CASE.patients % 40 == 0), asked("common", CASE.patients % 3 == 0)
    shifts = list_shifts([rare, common], seed=0)
    assert [(shift.whole.key.dataset, shift.group) for shift in shifts] == [
        ("mine: common", "no common"),
        ("mine: common", "common"),
    ]


def test_class_with_too_few_patients_is_named_with_its_label(capsys: pytest.CaptureFixture[str]) -> None:
    [shift] = list_shifts([asked("rare", CASE.patients % 40 == 0)], seed=0)
    assert shift.group == "no rare"
    assert "mine: rare: too few patients of rare to tell the parts apart; left out" in capsys.readouterr().err
