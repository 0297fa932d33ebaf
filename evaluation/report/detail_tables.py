"""Tables of everything beyond the scores: comparisons, calibration, subgroups, few labels."""

from collections.abc import Iterator, Sequence
from statistics import fmean

from evaluation.report.attribute_table import attribute_table
from evaluation.report.c_path import c_path_table
from evaluation.report.score_table import with_interval
from evaluation.report.shift_table import shift_table
from evaluation.report.tables import (
    SIGNIFICANT,
    Table,
    marked_label,
    p_value,
    percent,
    point_interval,
    points,
    verdict,
)
from evaluation.results.datasets import Dataset
from evaluation.results.notes import OLD_NOTE
from evaluation.results.results import VERSION, Results
from evaluation.results.rows import Comparison, ProbeResult, last_checkpoint
from evaluation.results.task_scores import TaskScores


def detail_tables(results: Results, dataset: Dataset) -> list[Table]:
    """Return the tables that have rows."""
    tables = [
        comparison_table(results, dataset),
        shift_table(results, dataset),
        c_path_table(dataset, headline_rows(results, dataset)),
        calibration_table(results, dataset),
        attribute_table(results, dataset),
        *subgroup_tables(results, dataset),
        few_labels_table(results, dataset),
    ]
    return [table for table in tables if table.cells]


def comparison_table(results: Results, dataset: Dataset | TaskScores) -> Table:
    """Return the AUC, of a task the mean AUC, of the last checkpoint minus that of other features, in points."""
    auc = "mean AUC" if isinstance(dataset, TaskScores) else "AUC"
    comparisons = results.comparisons_of(dataset)
    crosschecked = any(item.delong for item in comparisons)
    return Table(
        f"{marked_label(dataset)}, {dataset.preset}: {auc} of {results.judged} minus that of others, in points",
        (
            *("features", "minus", "difference", "95 %", "p"),
            *(("DeLong 95 %", "DeLong p") if crosschecked else ()),
            *("p (Holm)", "verdict"),
        ),
        [_comparison_cells(item, crosschecked=crosschecked) for item in comparisons],
        notes=list(_comparison_notes(results, comparisons, crosschecked=crosschecked)),
    )


def _comparison_cells(item: Comparison, *, crosschecked: bool) -> tuple[str, ...]:
    by_delong = (point_interval(item.delong), p_value(item.delong.p)) if item.delong else ("", "")
    return (
        *(item.features, item.other, points(item.difference.value), point_interval(item.difference)),
        p_value(item.difference.p),
        *(by_delong if crosschecked else ()),
        *(p_value(item.p_holm), verdict(item)),
    )


def _comparison_notes(results: Results, comparisons: Sequence[Comparison], *, crosschecked: bool) -> Iterator[str]:
    family = sum(item.p_holm is not None for item in comparisons)
    if family:
        yield (
            "Verdicts are about these weights and classifiers, not about a method: another seed would give others. A "
            f"difference counts as shown if p (Holm), adjusted for the {family} comparisons of this table, is at most "
            f"{SIGNIFICANT:g}; 95 % and p are of each comparison alone."
        )
    if crosschecked:
        yield "DeLong: the same difference without resampling, a cross-check where each patient has one test image."
    if comparisons and results.version < VERSION:
        yield OLD_NOTE


def headline_rows(results: Results, dataset: Dataset) -> list[ProbeResult]:
    """Return the rows to quote: the controls and the last checkpoint."""
    rows = results.rows_of(dataset)
    last = last_checkpoint(rows)
    return [row for row in rows if row.kind != "checkpoint" or row is last]


def calibration_table(results: Results, dataset: Dataset) -> Table:
    """Return the Brier scores of the last checkpoint and of its controls."""
    rows = headline_rows(results, dataset)
    measured = [(row.features, row.calibration) for row in rows if row.calibration is not None]
    return Table(
        f"{marked_label(dataset)}, {dataset.preset}: Brier score of the test part, 0 is best; recalibrated: "
        "after Platt scaling on validation; prevalence: predicting the share of positives for every image",
        ("features", "as predicted", "recalibrated", "prevalence"),
        [
            (features, *(f"{brier:.3f}" for brier in (item.brier, item.brier_recalibrated, item.brier_prevalence)))
            for features, item in measured
        ],
        text_columns=1,
    )


def subgroup_tables(results: Results, dataset: Dataset) -> list[Table]:
    """Return the last checkpoint's scores in subgroups, and the widest gaps between subgroups.

    A question of several lists only the subgroups that are scored, since those of all questions stand in one table.
    """
    last = last_checkpoint(results.rows_of(dataset))
    if last is None:
        return []
    title = f"{marked_label(dataset)}, {dataset.preset}, {last.features}"
    small = "left out" if dataset.question else "only counted"
    groups = Table(
        f"{title}: subgroups of the test part, in percent; those with too few images for a score are {small}",
        ("attribute", "group", "images", "patients", "positive", "AUC", "95 %", "SEN", "95 %", "SPE", "95 %"),
        [
            (
                group.attribute,
                group.group,
                *(str(count) for count in (group.images, group.patients, group.positive)),
                *(text for score in (group.auc, group.sen, group.spe) for text in with_interval(score)),
            )
            for group in last.subgroups
            if group.auc is not None or not dataset.question
        ],
    )
    gaps = Table(
        f"{title}: widest gap between two subgroups, in points of AUC; the pair is the most extreme one, so the "
        "interval does not test whether any two differ",
        ("attribute", "highest", "lowest", "gap", "95 %"),
        [(gap.attribute, gap.highest, gap.lowest, points(gap.auc.value), point_interval(gap.auc)) for gap in last.gaps],
        text_columns=3,
    )
    return [groups, gaps]


def few_labels_table(results: Results, dataset: Dataset) -> Table:
    """Return the AUC of probes that saw only some of the labels."""
    return Table(
        f"{marked_label(dataset)}, {dataset.preset}: AUC in percent with the labels of only some development patients",
        ("features", "patients", "images", "draws", "mean AUC", "lowest", "highest"),
        [
            (
                item.features,
                f"{item.percent} %",
                f"{item.images:.0f}",
                str(len(item.aucs)),
                *(percent(value) for value in (fmean(item.aucs), min(item.aucs), max(item.aucs))),
            )
            for item in results.few_labels_of(dataset)
        ],
        text_columns=1,
    )
