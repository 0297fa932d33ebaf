"""The draws of the untrained backbone: several probe cases that become one row of the table."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from evaluation.data.feature_sources import UNTRAINED
from evaluation.fitting.probe_cases import ProbeCase


def grouped_by_row(cases: Sequence[ProbeCase]) -> list[list[ProbeCase]]:
    """Group cases by the row that they become: the draws of the untrained backbone on a task are one row."""
    rows: dict[tuple[int, str], list[ProbeCase]] = {}
    for case in cases:
        rows.setdefault((id(case.task), row_name(case)), []).append(case)
    return list(rows.values())


def row_name(case: ProbeCase) -> str:
    """Return the name of the features in the tables, which all draws share."""
    return UNTRAINED if case.kind == "untrained" else case.name


def pooled(row: Sequence[ProbeCase]) -> ProbeCase:
    """Return one case with the rounds of all draws of a row, one draw after another.

    Images are ranked only within a round. So every score of the pooled case is the mean over the draws, and a resample
    draws the same patients for all of them. (F1 is the exception: it is that of all decisions together.)
    """
    first = row[0]
    assert all(np.array_equal(case.folds, first.folds) for case in row), "all draws are tested on the same images"
    repeats = (len(row), 1)
    return replace(
        first, name=row_name(first), classes=np.tile(first.classes, repeats), folds=np.tile(first.folds, repeats)
    )
