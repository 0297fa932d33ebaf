"""The table of a probe's scores."""

from collections.abc import Iterable, Sequence
from statistics import stdev
from typing import Final, NamedTuple

from evaluation.report.tables import RowStyle, Table, interval, marked_label, percent
from evaluation.results import paper
from evaluation.results.results import AT_EDGE_MARK, Dataset, ProbeResult, Results

HEADER: Final = (
    "dataset", "features", "C", "ACC", "AUC", "95 %", "SEN", "SPE", "F1", "F1(healthy)", "kNN AUC", "not converged",
)  # fmt: skip


class ScoreRow(NamedTuple):
    """The cells of a row below HEADER, and its style."""

    cells: tuple[str, ...]
    style: RowStyle


def score_table(caption: str, rows: Iterable[ScoreRow]) -> Table:
    """Return rows of scores as a table."""
    listed = list(rows)
    return Table(caption, HEADER, [row.cells for row in listed], styles=[row.style for row in listed])


def score_rows(results: Results, dataset: Dataset, rows: Sequence[ProbeResult]) -> list[ScoreRow]:
    """Return rows of scores in percent, followed by the paper's row if it is comparable.

    The paper's row is the one for the run's fraction of the pretraining set.
    """
    listed = [ScoreRow(_cells(dataset, row), "trained" if row.kind == "checkpoint" else "plain") for row in rows]
    if listed and dataset.preset == paper.PRESET and paper.in_paper(dataset):
        fraction = results.run.fraction_percent
        acc, auc, sen, spe, f1 = (f"{value:.1f}" for value in paper.TABLE_III[dataset.name][fraction])
        if not paper.has_papers_share(dataset):
            acc = f1 = ""  # they depend on the share of diseased images
        name = f"paper, {fraction} % of CheXpert"
        cells = (marked_label(dataset), name, "", acc, auc, "", sen, spe, "", f1, "", "")
        listed.append(ScoreRow(cells, "paper"))
    return listed


def _cells(dataset: Dataset, row: ProbeResult) -> tuple[str, ...]:
    scores = row.scores
    return (
        marked_label(dataset),
        _features(row),
        _chosen_c(row),
        percent(scores.acc.value),
        percent(scores.auc.value),
        interval(scores.auc),
        percent(scores.sen.value),
        percent(scores.spe.value),
        percent(scores.f1.value),
        percent(scores.f1_negative.value),
        "" if row.knn_auc is None else percent(row.knn_auc),
        f"{row.unconverged} of {row.fits}" if row.fits else "",
    )


def _features(row: ProbeResult) -> str:
    """Return the name of the features; for several draws of weights, with the spread of their AUCs."""
    aucs = [draw.scores.auc.value for draw in row.draws]
    if len(aucs) < 2:
        return row.features
    spread = f"SD {percent(stdev(aucs))}, {percent(min(aucs))} to {percent(max(aucs))}"
    return f"{row.features}, mean of {len(aucs)} draws (AUC {spread})"


def _chosen_c(row: ProbeResult) -> str:
    """Return the C of all rounds, or their range; empty for a fine-tuned network."""
    if not row.c:
        return ""
    low, high = min(row.c), max(row.c)
    return (f"{low:g}" if low == high else f"{low:g} to {high:g}") + (AT_EDGE_MARK if row.at_edge else "")
