"""Figure of a probe without a run: the AUC of each backbone and control with its interval."""

import matplotlib as mpl

from evaluation.report.html.blocks import Picture
from evaluation.report.html.figures import STYLE, TRAINED, axes_of, data_uri
from evaluation.report.tables import marked_label, percent
from evaluation.results.datasets import Dataset
from evaluation.results.results import Results
from evaluation.results.rows import BACKBONES

_CONTROL = "#52606d"
_NOT_DRAWN = ("shuffled", "shuffled_over_all", "source")  # their classes are not the task's


def forest_picture(results: Results, dataset: Dataset) -> Picture:
    """Draw one line for each feature set, backbones first."""
    rows = [row for row in results.rows_of(dataset) if row.kind not in _NOT_DRAWN]
    rows.sort(key=lambda row: (row.kind not in BACKBONES, row.kind))
    with mpl.rc_context(STYLE):
        figure, axes = axes_of("AUC on the test part, %", "", size=(8.0, 0.9 + 0.32 * len(rows)))
        for place, row in enumerate(rows):
            auc, color = row.scores.auc, TRAINED if row.kind in BACKBONES else _CONTROL
            low, high = (auc.value if end is None else end for end in (auc.low, auc.high))
            axes.plot([100 * low, 100 * high], [place, place], color=color)
            axes.plot([100 * auc.value], [place], color=color, marker="o", markersize=5)
        axes.set_yticks(range(len(rows)), [row.features for row in rows])
        axes.invert_yaxis()
        uri = data_uri(figure)
    words = "; ".join(f"{row.features} {percent(row.scores.auc.value)} %" for row in rows)
    return Picture(
        uri,
        f"AUC on {dataset.label}, {dataset.preset}: {words}.",
        f"{marked_label(dataset)}, {dataset.preset}: {dataset.positive} against {dataset.negative}. "
        "Lines: 95 % interval over patients. Blue: backbones, gray: controls.",
    )
