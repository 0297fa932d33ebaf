"""The choice of a checkpoint without labels, as the report shows it."""

from evaluation.report.tables import Table, interval, percent
from evaluation.results.selection import CheckpointSelection, MeasureVerdict
from evaluation.selection.label_free import MEASURES


def selection_tables(selection: CheckpointSelection) -> list[Table]:
    """Return the measures of each checkpoint, and what the labels say of them afterwards where they were asked."""
    names = [name for name in MEASURES if all(name in values for values in selection.measures.values())]
    measured = Table(
        f"Measures without labels of {selection.held_out}; in brackets what is better",
        ("checkpoint", *(f"{name} ({MEASURES[name]})" for name in names)),
        [(of, *(f"{values[name]:.3g}" for name in names)) for of, values in selection.measures.items()],
        text_columns=1,
    )
    judged = Table(
        "How well each measure would have chosen: rank correlation with the test AUC over the checkpoints (1 is best); "
        "regret, points below the best checkpoint (0 is best)",
        ("dataset", "preset", "by", "chosen", "rank correlation", "95 %", "regret", "95 %"),
        [_cells(verdict) for verdict in selection.verdicts],
        text_columns=4,
    )
    return [table for table in (measured, judged) if table.cells]


def _cells(verdict: MeasureVerdict) -> tuple[str, ...]:
    found, around = verdict.rank_correlation, ""
    if found is not None and found.low is not None and found.high is not None:
        around = f"{found.low:+.2f} to {found.high:+.2f}"
    return (
        verdict.dataset,
        verdict.preset,
        verdict.measure,
        verdict.chosen,
        "" if found is None else f"{found.value:+.2f}",
        around,
        percent(verdict.regret.value),
        interval(verdict.regret),
    )
