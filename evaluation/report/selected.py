"""The choice of a checkpoint without labels, as the report shows it."""

from pathlib import Path

import msgspec

from evaluation.label_free import MEASURES
from evaluation.report.tables import Table, interval, percent
from evaluation.selection import NAME, Selection, Verdict
from infra.errors import UserError
from infra.files import write_atomic


def read_selection(run: Path) -> Selection | None:
    """Read `run/selection.json`; None where no choice was asked for, UserError when it is not one of ours."""
    path = run / NAME
    if not path.exists():
        return None
    try:
        return msgspec.json.decode(path.read_bytes(), type=Selection)
    except (msgspec.DecodeError, OSError) as error:
        raise UserError(
            f"{path} cannot be read: {error}; delete it, or probe the run again with --select=true"
        ) from error


def write_selection(run: Path, selection: Selection) -> None:
    """Write `run/selection.json` atomically."""
    write_atomic(run / NAME, msgspec.json.format(msgspec.json.encode(selection), indent=1))


def selection_tables(selection: Selection) -> list[Table]:
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


def _cells(verdict: Verdict) -> tuple[str, ...]:
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
