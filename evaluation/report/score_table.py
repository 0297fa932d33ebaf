"""The tables of a probe's scores: how well it ranks the images, and how well it decides."""

from collections.abc import Sequence
from statistics import stdev
from typing import Final, NamedTuple

from evaluation.report.tables import RowStyle, Table, interval, marked_label, percent
from evaluation.results import paper
from evaluation.results.datasets import Dataset
from evaluation.results.results import Results
from evaluation.results.rows import AT_EDGE_MARK, ProbeResult
from evaluation.results.scores import Estimate

RANKING_HEADER: Final = (
    "dataset", "features", "C", "validation AUC", "95 %", "AUC", "95 %", "AP", "95 %", "kNN AUC", "not converged",
)  # fmt: skip
DECISION_HEADER: Final = (
    "dataset", "features", "ACC", "95 %", "SEN", "95 %", "SPE", "95 %", "F1", "95 %", "F1(healthy)", "95 %",
)  # fmt: skip


class ScoreRow(NamedTuple):
    """A row of both tables.

    Attributes:
        ranking: cells below RANKING_HEADER
        decisions: cells below DECISION_HEADER
        style: of both rows
    """

    ranking: tuple[str, ...]
    decisions: tuple[str, ...]
    style: RowStyle


def score_tables(caption: str, rows: Sequence[ScoreRow]) -> list[Table]:
    """Return rows of scores as two tables, of the ranking by probability and of the decisions; none without rows."""
    if not rows:
        return []
    styles = [row.style for row in rows]
    return [
        Table(caption, RANKING_HEADER, [row.ranking for row in rows], styles=styles),
        Table(
            f"Decisions at the threshold. {caption}", DECISION_HEADER, [row.decisions for row in rows], styles=styles
        ),
    ]


def score_rows(results: Results, dataset: Dataset, rows: Sequence[ProbeResult]) -> list[ScoreRow]:
    """Return rows of scores in percent, followed by the paper's row if it is comparable.

    The paper's row is the one for the run's fraction of the pretraining set.
    """
    listed = [
        ScoreRow(_ranking(dataset, row), _decisions(dataset, row), "trained" if row.kind == "checkpoint" else "plain")
        for row in rows
    ]
    if listed and dataset.preset == paper.PRESET and paper.in_paper(dataset):
        listed.append(_paper_row(results, dataset))
    return listed


def _paper_row(results: Results, dataset: Dataset) -> ScoreRow:
    fraction = results.fraction_percent
    acc, auc, sen, spe, f1 = (f"{value:.1f}" for value in paper.TABLE_III[dataset.name][fraction])
    if not paper.has_papers_share(dataset):
        acc = f1 = ""  # they depend on the share of diseased images
    names = marked_label(dataset), f"paper, {fraction} % of CheXpert"
    return ScoreRow(
        (*names, "", "", "", auc, "", "", "", "", ""), (*names, acc, "", sen, "", spe, "", "", "", f1, ""), "paper"
    )


def _ranking(dataset: Dataset, row: ProbeResult) -> tuple[str, ...]:
    return (
        *(marked_label(dataset), _features(row), chosen_c(row)),
        *with_interval(row.validation or Estimate(row.validation_auc)),
        *with_interval(row.scores.auc),
        *with_interval(row.scores.ap),
        "" if row.knn_auc is None else percent(row.knn_auc),
        not_converged(row),
    )


def _features(row: ProbeResult) -> str:
    """Return the name of the features; for several draws of weights, with the spread of their AUCs."""
    aucs = [draw.scores.auc.value for draw in row.draws]
    if len(aucs) < 2:
        return row.features
    spread = f"SD {percent(stdev(aucs))}, {percent(min(aucs))} to {percent(max(aucs))}"
    return f"{row.features}, mean of {len(aucs)} draws (AUC {spread})"


def _decisions(dataset: Dataset, row: ProbeResult) -> tuple[str, ...]:
    scores = row.scores
    shown = (scores.acc, scores.sen, scores.spe, scores.f1, scores.f1_negative)
    return (marked_label(dataset), row.features, *(text for score in shown for text in with_interval(score)))


def with_interval(score: Estimate | None) -> tuple[str, str]:
    """Write a score and its interval in percent; both empty without a score."""
    return ("", "") if score is None else (percent(score.value), interval(score))


def not_converged(row: ProbeResult) -> str:
    """Return how many fits did not converge; empty for a fine-tuned network."""
    return f"{row.unconverged} of {row.fits}" if row.fits else ""


def chosen_c(row: ProbeResult) -> str:
    """Return the C of all rounds, or their range; empty for a fine-tuned network."""
    if not row.c:
        return ""
    low, high = min(row.c), max(row.c)
    return (f"{low:g}" if low == high else f"{low:g} to {high:g}") + (AT_EDGE_MARK if row.at_edge else "")
