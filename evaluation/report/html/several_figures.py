"""Figures of several runs in one pair of axes: losses and AUCs by epoch."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import cycle
from typing import Final

import matplotlib as mpl
from matplotlib.ticker import MaxNLocator

from evaluation.report.html.blocks import Picture
from evaluation.report.html.figures import STYLE, axes_of, data_uri, legend
from evaluation.report.tables import marked_label, percent
from evaluation.results.datasets import Dataset
from evaluation.results.results import Results

# Dark enough on white, as in `figures`; dashes distinguish them without color.
_LINES: Final = (
    ("#0b5fa5", "-"), ("#9a4d00", "--"), ("#6b3fa0", "-."), ("#2f6b3a", ":"), ("#a3195b", (0, (8, 2))),
    ("#00656b", (0, (3, 1, 1, 1))),
)  # fmt: skip


def losses_picture(runs: Mapping[str, Sequence[dict[str, float]]]) -> Picture:
    """Draw the losses of runs, by name, over their epochs; each run has at least one logged step with a loss."""
    with mpl.rc_context(STYLE):
        figure, axes = axes_of("epoch", "NT-Xent loss")
        for (name, lines), (color, dash) in zip(runs.items(), cycle(_LINES), strict=False):
            epochs = [line.get("epoch", line["step"]) for line in lines]
            axes.plot(epochs, [line["loss"] for line in lines], color=color, linestyle=dash, linewidth=1.5, label=name)
        legend(axes)
        uri = data_uri(figure)
    ends = "; ".join(f"{name} ends at {lines[-1]['loss']:.3f}" for name, lines in runs.items())
    return Picture(
        uri,
        f"Losses by epoch: {ends}.",
        "Loss of the pretext task of each run. Losses compare only between runs of one batch, temperature and views.",
    )


def aucs_picture(runs: Mapping[str, Results]) -> Iterator[Picture]:
    """Draw the AUC of the checkpoints of each run for each task with one question that two runs share."""
    tasks: dict[tuple[str, str], dict[str, tuple[Results, Dataset]]] = {}
    for name, results in runs.items():
        for dataset in results.single:
            if any(row.kind == "checkpoint" and row.epoch is not None for row in results.rows_of(dataset)):
                tasks.setdefault((dataset.label, dataset.preset), {})[name] = results, dataset
    for of_runs in tasks.values():
        if len(of_runs) > 1:
            yield _aucs(of_runs)


def _aucs(runs: Mapping[str, tuple[Results, Dataset]]) -> Picture:
    words = []
    with mpl.rc_context(STYLE):
        figure, axes = axes_of("epoch of the checkpoint", "AUC on the test part, %")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        for (name, (results, dataset)), (color, dash) in zip(runs.items(), cycle(_LINES), strict=False):
            rows = [row for row in results.rows_of(dataset) if row.kind == "checkpoint"]
            values = [100 * row.scores.auc.value for row in rows]
            epochs = [row.epoch or 0.0 for row in rows]
            axes.plot(epochs, values, color=color, linestyle=dash, marker="o", markersize=4, label=name)
            words.append(f"{name} {percent(rows[-1].scores.auc.value)} % at {rows[-1].features}")
        legend(axes)
        uri = data_uri(figure)
    dataset = next(iter(runs.values()))[1]
    return Picture(
        uri,
        f"AUC on {dataset.label}, {dataset.preset}: {'; '.join(words)}.",
        f"{marked_label(dataset)}, {dataset.preset}: {dataset.positive} against {dataset.negative}. Intervals are in "
        "the tables.",
    )
