"""Tables as Markdown, CSV and LaTeX, and the wording of their cells."""

import csv
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

import tabulate

from evaluation.results.datasets import OVERLAP_MARK, Dataset
from evaluation.results.rows import Comparison
from evaluation.results.scores import Estimate
from evaluation.results.task_scores import TaskScores

tabulate.MIN_PADDING = 0  # otherwise each column is two characters wider than its header

_NUMBERS: Final = re.compile(r"[+-][\d.]+( to [+-]?[\d.]+)?")  # a number, or an interval

SIGNIFICANT: Final = 0.05  # of a p-value adjusted for all verdicts of a table

RowStyle = Literal["plain", "trained", "paper"]  # of a control, of a checkpoint, of a published result

# A table of the LaTeX package booktabs, for cells that are escaped already.
_BOOKTABS: Final = tabulate.TableFormat(
    lineabove=tabulate.Line(r"\toprule", "", "", ""),
    linebelowheader=tabulate.Line(r"\midrule", "", "", ""),
    linebetweenrows=None,
    linebelow=tabulate.Line(r"\bottomrule", "", "", ""),
    headerrow=tabulate.DataRow("", " & ", r" \\"),
    datarow=tabulate.DataRow("", " & ", r" \\"),
    padding=0,
    with_header_hide=None,
)
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
        "*": "{*}",  # at the start of a row, LaTeX reads * and [ as options of the line break before it
        "[": "{[}",
        "]": "{]}",
    }
)


@dataclass(frozen=True)
class Table:
    """A table for people.

    Attributes:
        caption: what the table shows
        header: names of the columns
        cells: rows of text
        text_columns: number of leading columns with text; the others hold numbers
        notes: lines below the table
        styles: one style for each row; empty if all rows are plain
    """

    caption: str
    header: tuple[str, ...]
    cells: list[tuple[str, ...]]
    text_columns: int = 2
    notes: list[str] = field(default_factory=list)
    styles: list[RowStyle] = field(default_factory=list)

    @property
    def alignment(self) -> list[str]:
        """Alignment of each column: text to the left, numbers to the right."""
        return ["left" if column < self.text_columns else "right" for column in range(len(self.header))]


def markdown(table: Table) -> str:
    """Format header and cells as a Markdown table whose columns line up; without caption and notes.

    The text of a cell, which may come from somebody else's `results.json`, stays text: it opens no column, no HTML tag
    and no escape sequence of a terminal.
    """
    cells = [[escape_markdown(text) for text in row] for row in table.cells]
    return _layout(table, "pipe", cells, [escape_markdown(name) for name in table.header])


def csv_text(table: Table) -> str:
    """Format header and cells as comma-separated values (RFC 4180).

    A cell that a spreadsheet would take for a formula gets an apostrophe in front, which makes it text.
    """
    text = io.StringIO(newline="")
    rows = [[f"'{cell}" if _is_formula(cell) else cell for cell in row] for row in (table.header, *table.cells)]
    csv.writer(text).writerows(rows)
    return text.getvalue()


def latex(table: Table) -> str:
    r"""Format a table as a LaTeX `table` for a document that loads booktabs.

    A rule separates rows that differ in the first column.
    """
    rows: list[Sequence[str] | str] = []
    previous = None
    for cells in table.cells:
        group = cells[0].removesuffix(f" {OVERLAP_MARK}")
        if previous not in (None, group):
            rows.append(tabulate.SEPARATING_LINE)
        rows.append([_escape(text) for text in cells])
        previous = group
    columns = "l" * table.text_columns + "r" * (len(table.header) - table.text_columns)
    lines = [
        r"% needs \usepackage{booktabs}",
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{_escape(table.caption)}}}",
        r"\footnotesize\setlength{\tabcolsep}{3pt}",
        rf"\begin{{tabular}}{{{columns}}}",
        _layout(table, _BOOKTABS, rows, [_escape(name) for name in table.header]),
        r"\end{tabular}",
    ]
    if table.notes:
        lines.append(rf"\par\smallskip {_escape(' '.join(table.notes))}\par")
    return "\n".join([*lines, r"\end{table}"]) + "\n"


def _layout(
    table: Table,
    layout: str | tabulate.TableFormat,
    rows: Sequence[Sequence[str] | str],
    header: Sequence[str],
) -> str:
    return tabulate.tabulate(rows, headers=header, tablefmt=layout, colalign=table.alignment, disable_numparse=True)


def _escape(text: str) -> str:
    return text.translate(_ESCAPES)


def escape_markdown(text: str) -> str:
    """Return text that Markdown shows as it is, without tags, columns, code and escape sequences of a terminal."""
    visible = "".join(character if character.isprintable() else " " for character in text)
    return re.sub(r"[\\|<`]", r"\\\g<0>", visible)


def _is_formula(text: str) -> bool:
    return text.startswith(("=", "+", "-", "@", "\t", "\r")) and not _NUMBERS.fullmatch(text)


def percent(value: float) -> str:
    """Write a score between 0 and 1 in percent."""
    return f"{100 * value:.1f}"


def interval(estimate: Estimate) -> str:
    """Write a score's interval in percent; empty without one."""
    if estimate.low is None or estimate.high is None:
        return ""
    return f"{percent(estimate.low)}-{percent(estimate.high)}"


def points(difference: float) -> str:
    """Write a difference of two scores between 0 and 1 in points, with its sign."""
    return f"{100 * difference:+.1f}"


def point_interval(difference: Estimate) -> str:
    """Write a difference's interval in points; empty without one."""
    if difference.low is None or difference.high is None:
        return ""
    return f"{points(difference.low)} to {points(difference.high)}"


def verdict(comparison: Comparison) -> str:
    """Return what a comparison says about these weights; empty without a p-value.

    It speaks of these weights because another seed, of either side, would give other weights. The p-value is the one
    adjusted for all verdicts of the table.
    """
    if comparison.p_holm is None:
        return ""
    if comparison.p_holm > SIGNIFICANT:
        return "not shown to differ"
    return f"these weights: {'better' if comparison.difference.value > 0 else 'WORSE'}"


def p_value(p: float | None) -> str:
    """Write a p-value with three digits after the point; empty without one."""
    if p is None:
        return ""
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def marked_label(dataset: Dataset | TaskScores) -> str:
    """Return the label of a dataset or task, with a mark if pretraining saw any of the test part."""
    return f"{dataset.label} {OVERLAP_MARK}" if dataset.overlaps else dataset.label
