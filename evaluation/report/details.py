"""What a probe found beyond the scores, as tables: comparisons, calibration, subgroups, few labels."""

from statistics import fmean

from evaluation.report.tables import Table, interval, label, percent, points, span, verdict
from evaluation.results.results import Dataset, Estimate, ProbeResult, Results, last_checkpoint


def detail_tables(results: Results, dataset: Dataset) -> list[Table]:
    """Return what a preset found beyond the scores: comparisons, calibration, subgroups, few labels; what there is."""
    made = [
        comparison_table(results, dataset),
        calibration_table(results, dataset),
        *subgroup_tables(results, dataset),
        few_labels_table(results, dataset),
    ]
    return [table for table in made if table.cells]


def comparison_table(results: Results, dataset: Dataset) -> Table:
    """Return the last checkpoint less each other feature set, in points of AUC."""
    found = [item for item in results.comparisons if (item.dataset, item.preset) == (dataset.label, dataset.preset)]
    return Table(
        f"{label(dataset)}, {dataset.preset}: AUC of the last checkpoint less that of other features, in points",
        ("features", "less", "difference", "95 %", "verdict"),
        [
            (item.features, item.other, points(item.difference.value), span(item.difference), verdict(item.difference))
            for item in found
        ],
    )


def headline_rows(results: Results, dataset: Dataset) -> list[ProbeResult]:
    """Return the rows to quote: those of the controls and of the last checkpoint."""
    rows = results.rows_of(dataset)
    last = last_checkpoint(rows)
    return [row for row in rows if row.kind != "checkpoint" or row is last]


def calibration_table(results: Results, dataset: Dataset) -> Table:
    """Return the Brier scores of the last checkpoint and of its controls."""
    rows = headline_rows(results, dataset)
    measured = [(row.features, row.calibration) for row in rows if row.calibration is not None]
    return Table(
        f"{label(dataset)}, {dataset.preset}: Brier score of the test part, 0 is best; recalibrated by Platt scaling "
        "on validation; prevalence: of always saying the share of positives",
        ("features", "as predicted", "recalibrated", "prevalence"),
        [
            (features, *(f"{brier:.3f}" for brier in (item.brier, item.brier_recalibrated, item.brier_prevalence)))
            for features, item in measured
        ],
        text_columns=1,
    )


def subgroup_tables(results: Results, dataset: Dataset) -> list[Table]:
    """Return the last checkpoint's scores in subgroups, and the widest gaps between them."""
    last = last_checkpoint(results.rows_of(dataset))
    if last is None:
        return []
    what = f"{label(dataset)}, {dataset.preset}, {last.features}"
    groups = Table(
        f"{what}: subgroups of the test part, in percent; too few images for a score: only counted",
        ("attribute", "group", "images", "patients", "positive", "AUC", "95 %", "SEN", "95 %", "SPE", "95 %"),
        [
            (
                group.attribute,
                group.group,
                *(str(count) for count in (group.images, group.patients, group.positive)),
                *(text for score in (group.auc, group.sen, group.spe) for text in _scored(score)),
            )
            for group in last.subgroups
        ],
    )
    gaps = Table(
        f"{what}: widest gap between two subgroups, in points of AUC; the pair was chosen as the most extreme, so the "
        "interval is no test of whether any two differ",
        ("attribute", "highest", "lowest", "gap", "95 %"),
        [(gap.attribute, gap.highest, gap.lowest, points(gap.auc.value), span(gap.auc)) for gap in last.gaps],
        text_columns=3,
    )
    return [groups, gaps]


def _scored(score: Estimate | None) -> tuple[str, str]:
    return ("", "") if score is None else (percent(score.value), interval(score))


def few_labels_table(results: Results, dataset: Dataset) -> Table:
    """Return the AUC of probes that saw some of the labels only."""
    found = [item for item in results.few_labels if (item.dataset, item.preset) == (dataset.label, dataset.preset)]
    return Table(
        f"{label(dataset)}, {dataset.preset}: AUC in percent with the labels of some development patients only",
        ("features", "patients", "images", "draws", "mean AUC", "lowest", "highest"),
        [
            (
                item.features,
                f"{item.percent} %",
                f"{item.images:.0f}",
                str(len(item.aucs)),
                *(percent(value) for value in (fmean(item.aucs), min(item.aucs), max(item.aucs))),
            )
            for item in found
        ],
        text_columns=1,
    )
