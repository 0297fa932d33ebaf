"""Figures of scores, as data URIs: by epoch, reliability, decisions, few labels."""

import base64
import io
from collections.abc import Sequence
from itertools import cycle
from statistics import fmean
from typing import Any, Final

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from evaluation.report.html.blocks import Picture
from evaluation.report.tables import marked_label, percent
from evaluation.results import paper
from evaluation.results.datasets import Dataset
from evaluation.results.results import Results
from evaluation.results.rows import ProbeResult, last_checkpoint
from evaluation.results.scores import Bin, Estimate

# Dark enough on white for text and lines (at least 4.5 : 1); dashes and labels distinguish them without color.
_INK, QUIET, TRAINED, _PAPER = "#1f2933", "#52606d", "#0b5fa5", "#2f6b3a"
_LINES: Final = {  # kind of a row without epochs -> color and dash
    "finetuned": ("#a3195b", (0, (8, 2))),
    "untrained": ("#9a4d00", "--"),
    "pixels": ("#6b3fa0", ":"),
    "border": ("#5b6b00", (0, (1, 3))),
    "attributes": ("#00656b", (0, (3, 1, 1, 1, 1, 1))),
}
STYLE: Final[dict[Any, Any]] = {
    "svg.hashsalt": "sternum",  # equal numbers give equal bytes
    "font.size": 10,
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": QUIET,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e4e7eb",
    "xtick.color": QUIET,
    "ytick.color": QUIET,
}


def auc_picture(results: Results, dataset: Dataset) -> Picture:
    """Draw the AUC of each checkpoint with its interval, and the AUCs of the controls."""
    rows = results.rows_of(dataset)
    words: list[str] = []
    with mpl.rc_context(STYLE):
        figure, axes = axes_of("epoch of the checkpoint", "AUC on the test part, %")
        words += _draw_checkpoints(axes, [(row, row.scores.auc) for row in rows if row.kind == "checkpoint"])
        for row in rows:
            if row.kind in _LINES:
                color, dash = _LINES[row.kind]
                axes.axhline(100 * row.scores.auc.value, color=color, linestyle=dash, label=row.features)
                words.append(f"{row.features} {percent(row.scores.auc.value)} %")
        words += _draw_paper(axes, results, dataset, 1)
        uri = data_uri(figure)
    return Picture(
        uri,
        f"AUC on {dataset.label}, {dataset.preset}: {'; '.join(words)}.",
        f"{marked_label(dataset)}, {dataset.preset}: {dataset.positive} against {dataset.negative}. "
        "Bars: 95 % interval over patients.",
    )


def accuracy_picture(results: Results, dataset: Dataset) -> Picture | None:
    """Draw the accuracy of each checkpoint, like the paper's Figure 2 (b) and (c); None for fewer than two."""
    trained = [(row, row.scores.acc) for row in results.rows_of(dataset) if row.kind == "checkpoint"]
    if len(trained) < 2:
        return None
    with mpl.rc_context(STYLE):
        figure, axes = axes_of("epoch of the checkpoint", "accuracy on the test part, %")
        words = [*_draw_checkpoints(axes, trained), *_draw_paper(axes, results, dataset, 0)]
        uri = data_uri(figure)
    return Picture(
        uri,
        f"Accuracy on {dataset.label}, {dataset.preset}: {'; '.join(words)}.",
        f"{marked_label(dataset)}, {dataset.preset}: accuracy by epoch, as in Figure 2 (b) and (c) of the paper. "
        "Bars: 95 % interval over patients.",
    )


def _draw_checkpoints(axes: Axes, trained: Sequence[tuple[ProbeResult, Estimate]]) -> list[str]:
    """Draw one score of the checkpoints over their epochs; return it in words."""
    if not trained:
        return []
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if len(trained) == 1:  # else the axis shows hundredths of an epoch around the only point
        axes.set_xlim(0, 1.1 * (trained[0][0].epoch or 1.0))
    below = [100 * (score.value - score.low) if score.low is not None else 0.0 for _, score in trained]
    above = [100 * (score.high - score.value) if score.high is not None else 0.0 for _, score in trained]
    axes.errorbar(
        [row.epoch or 0.0 for row, _ in trained],
        [100 * score.value for _, score in trained],
        yerr=[below, above],
        color=TRAINED,
        marker="o",
        markersize=4,
        capsize=2,
        label="pretrained, frozen",
    )
    return ["pretrained " + ", ".join(f"{percent(score.value)} % at {row.features}" for row, score in trained)]


def _draw_paper(axes: Axes, results: Results, dataset: Dataset, column: int) -> list[str]:
    """Draw a column of Table III if its protocol is the same, and add the legend; return it in words.

    Accuracy, column 0, also needs the same share of diseased images.
    """
    words = []
    comparable = dataset.preset == paper.PRESET and paper.in_paper(dataset)
    if comparable and (column > 0 or paper.has_papers_share(dataset)):
        fraction = results.fraction_percent
        value = paper.TABLE_III[dataset.name][fraction][column]
        axes.axhline(value, color=_PAPER, linestyle="-.", label=f"paper, {fraction} % of CheXpert")
        words.append(f"the paper {value:.1f} %")
    legend(axes)
    return words


def reliability_picture(results: Results, dataset: Dataset) -> Picture | None:
    """Draw the reliability curve of the last checkpoint before and after Platt scaling; None without calibration."""
    last = last_checkpoint(results.rows_of(dataset))
    if last is None or last.calibration is None:
        return None
    calibration = last.calibration
    curves = (
        ("as predicted", calibration.bins, calibration.brier, TRAINED, "-", "o"),
        ("recalibrated", calibration.bins_recalibrated, calibration.brier_recalibrated, "#9a4d00", "--", "s"),
    )
    with mpl.rc_context(STYLE):
        figure, axes = axes_of("predicted probability, %", "share of positives, %", size=(6.0, 3.6))
        axes.plot([0, 100], [0, 100], color=QUIET, linewidth=1, label="perfect calibration")
        for name, bins, brier, color, dash, marker in curves:
            predicted, observed = [100 * item.predicted for item in bins], [100 * item.observed for item in bins]
            words = f"{name}, Brier {brier:.3f}"
            axes.plot(predicted, observed, color=color, linestyle=dash, marker=marker, markersize=4, label=words)
        axes.set_aspect("equal")
        legend(axes)
        uri = data_uri(figure)
    return Picture(
        uri,
        f"Reliability on {dataset.label}, {last.features}. "
        + " ".join(f"{name}: {_bins_in_words(bins)}." for name, bins, *_ in curves),
        f"{marked_label(dataset)}, {dataset.preset}, {last.features}: predicted probabilities and observed shares. "
        "Each point: test images of similar probability. Recalibrated: Platt scaling on validation.",
    )


def _bins_in_words(bins: Sequence[Bin]) -> str:
    return ", ".join(f"{percent(item.observed)} % where {percent(item.predicted)} % was predicted" for item in bins)


def decision_picture(results: Results, dataset: Dataset) -> Picture | None:
    """Draw the decision curve of the last checkpoint beside treating all and none; None without one."""
    last = last_checkpoint(results.rows_of(dataset))
    curve = last.calibration.decisions if last and last.calibration else None
    if last is None or curve is None:
        return None
    thresholds = [100 * threshold for threshold in curve.thresholds]
    with mpl.rc_context(STYLE):
        figure, axes = axes_of("threshold probability, %", "net benefit per image")
        axes.plot(thresholds, curve.net_benefit, color=TRAINED, marker=".", label=last.features)
        axes.plot(thresholds, curve.treat_all, color="#9a4d00", linestyle="--", label="treat all")
        axes.axhline(0, color=QUIET, linewidth=1, label="treat none")
        highest = max(*curve.net_benefit, curve.treat_all[0], 0.01)
        axes.set_ylim(-0.2 * highest, 1.1 * highest)
        legend(axes)
        uri = data_uri(figure)
    useful = ", ".join(
        f"{100 * threshold:g}"
        for threshold, benefit, of_all in zip(curve.thresholds, curve.net_benefit, curve.treat_all, strict=True)
        if benefit > max(of_all, 0)
    )
    return Picture(
        uri,
        f"Decision curve on {dataset.label}, {last.features}: its net benefit is above treating all and treating none "
        f"at {f'the thresholds of {useful} %' if useful else 'no threshold'}.",
        f"{marked_label(dataset)}, {dataset.preset}, {last.features}: net benefit of acting on recalibrated "
        "probabilities from a threshold on, at the test part's share of positives"
        f"{'' if dataset.balance == 'none' else ', which was balanced and is not that of a clinic'}.",
    )


def few_labels_picture(results: Results, dataset: Dataset) -> Picture | None:
    """Draw the AUC over the share of labels used, up to all of them; None if it was not measured."""
    few_labels = results.few_labels_of(dataset)
    if not few_labels:
        return None
    whole = {row.features: row.scores.auc.value for row in results.rows_of(dataset)}
    words = []
    with mpl.rc_context(STYLE):
        figure, axes = axes_of("development patients whose labels are used, %", "AUC on the test part, %")
        styles = cycle([(TRAINED, "-", "o"), ("#9a4d00", "--", "s"), ("#6b3fa0", ":", "^"), (_PAPER, "-.", "D")])
        for features in dict.fromkeys(item.features for item in few_labels):
            draws = {item.percent: item.aucs for item in few_labels if item.features == features}
            draws |= {100: [whole[features]]} if features in whole else {}
            words.append(_draw_curve(axes, features, draws, *next(styles)))
        axes.set_xscale("log")
        ticks = sorted({item.percent for item in few_labels} | {100})
        axes.set_xticks(ticks, [str(tick) for tick in ticks], minor=False)
        axes.set_xticks([], minor=True)
        legend(axes)
        uri = data_uri(figure)
    return Picture(
        uri,
        f"AUC with few labels on {dataset.label}, {dataset.preset}: {'; '.join(words)}.",
        f"{marked_label(dataset)}, {dataset.preset}: the same probe with the labels of only some patients. "
        f"Bars: lowest and highest of {max(len(item.aucs) for item in few_labels)} draws of the patients.",
    )


def _draw_curve(axes: Axes, features: str, draws: dict[int, list[float]], color: str, dash: str, marker: str) -> str:
    means = {share: fmean(aucs) for share, aucs in sorted(draws.items())}
    below = [100 * (mean - min(draws[share])) for share, mean in means.items()]
    above = [100 * (max(draws[share]) - mean) for share, mean in means.items()]
    axes.errorbar(
        list(means),
        [100 * mean for mean in means.values()],
        yerr=[below, above],
        color=color,
        linestyle=dash,
        marker=marker,
        markersize=4,
        capsize=2,
        label=features,
    )
    return f"{features} " + ", ".join(f"{percent(mean)} % with {share} % of them" for share, mean in means.items())


def axes_of(x: str, y: str, size: tuple[float, float] = (8.0, 3.2)) -> tuple[Figure, Axes]:
    """Return a figure of a size in inches with one pair of axes of these names."""
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots()
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    return figure, axes


def legend(axes: Axes) -> None:
    """Name the lines of the axes beside them, if any has a name."""
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.01, 1.0))


def data_uri(figure: Figure) -> str:
    """Return a figure as a data URI; inline SVGs on one page would share identifiers."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode()
