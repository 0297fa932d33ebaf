"""Tables as Markdown, CSV and LaTeX, and that of a probe's scores."""

import csv as comma_separated
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from evaluation.results import paper
from evaluation.results.results import AT_EDGE_MARK, OVERLAP_MARK, Dataset, Estimate, ProbeResult, Results

HEADER: Final = (
    "dataset", "features", "C", "ACC", "AUC", "95 %", "SEN", "SPE", "F1", "F1(healthy)", "kNN AUC", "not converged",
)  # fmt: skip


@dataclass(frozen=True)
class Table:
    """A caption, a header, and the cells below it; the first columns are text, numbers follow. notes: stand below."""

    caption: str
    header: tuple[str, ...]
    cells: list[tuple[str, ...]]
    text_columns: int = 2
    notes: list[str] = field(default_factory=list)


def markdown(header: Sequence[str], cells: Sequence[Sequence[str]], text_columns: int = 2) -> str:
    """Lay cells out as a Markdown table whose columns line up; the first columns to the left, numbers to the right."""
    widths = [max(3, *(len(row[column]) for row in [header, *cells])) for column in range(len(header))]

    def line(row: Sequence[str]) -> str:
        padded = [
            text.ljust(width) if column < text_columns else text.rjust(width)
            for column, (text, width) in enumerate(zip(row, widths, strict=True))
        ]
        return "| " + " | ".join(padded) + " |"

    rule = ["-" * width if column < text_columns else "-" * (width - 1) + ":" for column, width in enumerate(widths)]
    return "\n".join([line(header), line(rule), *(line(row) for row in cells)])


def csv(header: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    """Lay cells out as comma-separated values (RFC 4180)."""
    text = io.StringIO(newline="")
    comma_separated.writer(text).writerows([header, *cells])
    return text.getvalue()


_ESCAPES: Final = str.maketrans(
    {character: f"\\{character}" for character in "&%$#_{}"}
    | {
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "|": r"\textbar{}",
        OVERLAP_MARK: r"\textdagger{}",
        "*": "{*}",  # in front of a row, * and [ would be taken for options of the line break before it
        "[": "{[}",
        "]": "{]}",
    }
)


def latex(table: Table) -> str:
    r"""Lay a table out as a LaTeX `table` for a document that loads booktabs; a rule parts the rows by first column."""
    columns = len(table.header)
    lines = [
        r"% needs \usepackage{booktabs}",
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{_escaped(table.caption)}}}",
        r"\footnotesize\setlength{\tabcolsep}{3pt}",
        rf"\begin{{tabular}}{{{'l' * table.text_columns}{'r' * (columns - table.text_columns)}}}",
        r"\toprule",
        _latex_row(table.header),
    ]
    above = None
    for row in table.cells:
        first = row[0].removesuffix(f" {OVERLAP_MARK}")
        lines += [r"\midrule"] if first != above else []
        lines.append(_latex_row(row))
        above = first
    lines += [r"\bottomrule", r"\end{tabular}"]
    lines += [rf"\par\smallskip {_escaped(' '.join(table.notes))}\par"] if table.notes else []
    return "\n".join([*lines, r"\end{table}"]) + "\n"


def _latex_row(row: Sequence[str]) -> str:
    return " & ".join(_escaped(text) for text in row) + r" \\"


def _escaped(text: str) -> str:
    return text.translate(_ESCAPES)


def percent(value: float) -> str:
    """Write a score between 0 and 1 in percent."""
    return f"{100 * value:.1f}"


def interval(estimate: Estimate) -> str:
    """Write a score's interval in percent, nothing where there is none."""
    if estimate.low is None or estimate.high is None:
        return ""
    return f"{percent(estimate.low)}-{percent(estimate.high)}"


def points(difference: float) -> str:
    """Write a difference of two scores between 0 and 1 in points, with its sign."""
    return f"{100 * difference:+.1f}"


def span(difference: Estimate) -> str:
    """Write a difference's interval in points, nothing where there is none."""
    if difference.low is None or difference.high is None:
        return ""
    return f"{points(difference.low)} to {points(difference.high)}"


def verdict(difference: Estimate) -> str:
    """Say whether a difference is shown: its interval leaves 0 out; nothing without an interval."""
    if difference.low is None or difference.high is None:
        return ""
    if difference.low <= 0 <= difference.high:
        return "not shown to differ"
    return "better" if difference.value > 0 else "WORSE"


def label(dataset: Dataset) -> str:
    """Return a dataset's label, marked where pretraining saw any of the test part."""
    return f"{dataset.label} {OVERLAP_MARK}" if dataset.overlaps else dataset.label


def score_table(results: Results, dataset: Dataset, rows: Sequence[ProbeResult]) -> list[tuple[str, ...]]:
    """Return the cells below HEADER, scores in percent: the rows, then the paper's where it comes from one protocol.

    The paper's row is that of the run's fraction of the pretraining set.
    """
    cells = [_score_cells(dataset, row) for row in rows]
    if cells and dataset.preset == paper.PRESET and paper.in_paper(dataset):
        fraction = results.run.fraction_percent
        acc, auc, sen, spe, f1 = (f"{value:.1f}" for value in paper.TABLE_III[dataset.name][fraction])
        name = f"paper, {fraction} % of CheXpert"
        cells.append((label(dataset), name, "", acc, auc, "", sen, spe, "", f1, "", ""))
    return cells


def _score_cells(dataset: Dataset, row: ProbeResult) -> tuple[str, ...]:
    scores = row.scores
    return (
        label(dataset),
        row.features,
        _chosen(row),
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


def _chosen(row: ProbeResult) -> str:
    """The C of all rounds, or their range; what was tuned without one has none."""
    if not row.c:
        return ""
    low, high = min(row.c), max(row.c)
    return (f"{low:g}" if low == high else f"{low:g} to {high:g}") + (AT_EDGE_MARK if row.at_edge else "")
