"""Tables of the choice of a checkpoint without labels."""

from evaluation.report.tables import Table, interval, percent
from evaluation.results.selection import CheckpointSelection, MeasureVerdict
from evaluation.selection.label_free import MEASURES


def selection_tables(selection: CheckpointSelection) -> list[Table]:
    """Return the measures of each checkpoint, and the verdicts of the labels if there are any."""
    names = [name for name in MEASURES if all(name in values for values in selection.measures.values())]
    measured = Table(
        f"Measures without labels, on {selection.held_out}; brackets: the better direction",
        ("checkpoint", *(f"{name} ({MEASURES[name]})" for name in names)),
        [(checkpoint, *(f"{values[name]:.3g}" for name in names)) for checkpoint, values in selection.measures.items()],
        text_columns=1,
        notes=[f"{name} is left out: {why}." for name, why in selection.left_out.items()],
    )
    verdicts = Table(
        "How well each measure would have chosen: rank correlation with the test AUC over the checkpoints (1 is best), "
        "and regret in points below the best checkpoint (0 is best)",
        ("dataset", "preset", "by", "chosen", "rank correlation", "95 %", "regret", "95 %"),
        [_cells(verdict) for verdict in selection.verdicts],
        text_columns=4,
    )
    return [table for table in (measured, verdicts) if table.cells]


def _cells(verdict: MeasureVerdict) -> tuple[str, ...]:
    correlation, bounds = verdict.rank_correlation, ""
    if correlation is not None and correlation.low is not None and correlation.high is not None:
        bounds = f"{correlation.low:+.2f} to {correlation.high:+.2f}"
    return (
        verdict.dataset,
        verdict.preset,
        verdict.measure,
        verdict.chosen,
        "" if correlation is None else f"{correlation.value:+.2f}",
        bounds,
        percent(verdict.regret.value),
        interval(verdict.regret),
    )
