"""`report.html`: one page about a run that holds all it shows, so that it can be mailed, printed and kept."""

import base64
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import jinja2
import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from evaluation import results as stored
from evaluation.results import HEADER, TABLE_III, Dataset, Results, Row
from evaluation.targets import label_of
from infra import config as configuration
from infra.errors import RunFailed, UserError
from infra.files import write_atomic
from infra.metrics import read_metrics
from sharding.manifest import Manifest, read_manifest
from sharding.source import Place, named
from sharding.stream import FetchConfig
from ssl_core.checkpoint import find_checkpoints
from ssl_core.train import PretrainConfig

NAME: Final = "report.html"

# Dark enough on white for text and lines alike (4.5 : 1 and more), told apart without colour by dash and label too.
_INK, _QUIET = "#1f2933", "#52606d"
_TRAINED, _UNTRAINED, _PIXELS, _PAPER = "#0b5fa5", "#9a4d00", "#6b3fa0", "#2f6b3a"
_STYLE: Final[dict[Any, Any]] = {
    "svg.hashsalt": "sternum",  # the same numbers give the same bytes
    "font.size": 10,
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": _QUIET,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e4e7eb",
    "xtick.color": _QUIET,
    "ytick.color": _QUIET,
}

_IMPATIENT: Final = FetchConfig(attempts=2, stall_s=10, total_s=20)  # a page can do without a manifest

# What a run folder may hold, in the order in which a reader wants it.
_PLACES: Final = (
    ("config.yaml", "the whole configuration; --config reads it back"),
    ("metrics.jsonl", "loss, speed and learning rate, one line of JSON for each logged step"),
    ("events", "the same for TensorBoard: tensorboard --logdir RUN"),
    ("checkpoints", "weights and state, one folder for each step kept"),
    ("features", "frozen features by a hash of weights, images and preprocessing; may be deleted"),
    ("results.json", "every score of this page, in full precision"),
)


@dataclass(frozen=True)
class Picture:
    """A figure as it stands in the page: a data URI, what it shows in words, and its caption."""

    uri: str
    description: str
    caption: str


@dataclass(frozen=True)
class Data:
    """What the page says of one folder of pretraining shards; without a manifest it is no longer there."""

    folder: str
    label: str
    manifest: Manifest | None


def report(run: Path) -> Path:
    """Write `run/report.html` and return its path.

    What the run does not have yet is said in the page. Raises UserError when `run` is not a run folder.
    """
    config = configuration.load(PretrainConfig, run / "config.yaml")
    results = stored.read_results(run)
    try:
        metrics = [line for line in read_metrics(run) if "loss" in line]
    except json.JSONDecodeError as error:
        raise UserError(f"{run / 'metrics.jsonl'} is damaged: {error}; delete its broken line") from error
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    checkpoints = find_checkpoints(run)
    page = environment.get_template("report.html.j2").render(
        name=run.resolve().name,
        folder=str(run.resolve()),
        version=version("sternum"),
        config=config,
        config_text=(run / "config.yaml").read_text(),
        steps=int(metrics[-1]["step"]) if metrics else 0,
        epoch=metrics[-1].get("epoch") if metrics else None,
        hours=(metrics[-1]["time_s"] - metrics[0]["time_s"]) / 3600 if metrics else 0.0,
        checkpoints=checkpoints,
        loss=_loss_picture(metrics) if metrics else None,
        pictures=[_auc_picture(dataset, _rows(results, dataset)) for dataset in results.datasets] if results else [],
        results=results,
        findings=[_finding(dataset, _rows(results, dataset)) for dataset in results.datasets] if results else [],
        header=HEADER,
        headline=_cells(results, last_only=True),
        everything=_cells(results, last_only=False),
        data=[_data(folder) for folder in config.data.shards],
        places=[(name, what, (run / name).exists()) for name, what in _PLACES],
    )
    write_atomic(run / NAME, page)
    return run / NAME


def _rows(results: Results, dataset: Dataset) -> list[Row]:
    return [row for row in results.rows if row.dataset == dataset.label]


def _last(rows: Sequence[Row]) -> Row | None:
    """The last checkpoint, not the best one: choosing by test scores would flatter them."""
    return max((row for row in rows if row.kind == "checkpoint"), key=lambda row: row.step or 0, default=None)


def _cells(results: Results | None, *, last_only: bool) -> list[tuple[str, ...]]:
    if results is None:
        return []
    last = {dataset.label: _last(_rows(results, dataset)) for dataset in results.datasets}
    rows = [row for row in results.rows if not last_only or row.kind != "checkpoint" or row == last[row.dataset]]
    return stored.table(results.datasets, rows)


def _finding(dataset: Dataset, rows: Sequence[Row]) -> str:
    """Say in one sentence how the last checkpoint stands to its controls."""
    last = _last(rows)
    if last is None:
        return f"{dataset.label}: no checkpoint was probed."
    auc = 100 * last.scores.auc
    text = f"{dataset.label}: AUC {auc:.1f} % at {last.features}"
    for row in rows:
        if row.kind != "checkpoint":
            difference = auc - 100 * row.scores.auc
            words = f"{abs(difference):.1f} points {'above' if difference > 0 else 'BELOW'}"
            text += f"; {words} the {row.features} ({100 * row.scores.auc:.1f} %)"
    return text + "."


def _data(folder: Place) -> Data:
    try:
        manifest = read_manifest(folder, _IMPATIENT)
    except (UserError, RunFailed):
        return Data(named(folder), "", None)
    return Data(named(folder), label_of(manifest), manifest)


def _loss_picture(metrics: Sequence[dict[str, float]]) -> Picture:
    epochs = [line.get("epoch", line["step"]) for line in metrics]
    losses = [line["loss"] for line in metrics]
    with mpl.rc_context(_STYLE):
        figure, axes = _axes("epoch", "NT-Xent loss")
        axes.plot(epochs, losses, color=_TRAINED, marker="." if len(losses) < 40 else "", linewidth=1.5)
        uri = _data_uri(figure)
    return Picture(
        uri,
        f"Line: the loss goes from {losses[0]:.3f} at epoch {epochs[0]:.2f} to {losses[-1]:.3f} at epoch "
        f"{epochs[-1]:.2f}; its lowest value is {min(losses):.3f}.",
        "Loss of the pretext task; each point is the mean since the one before it.",
    )


def _auc_picture(dataset: Dataset, rows: Sequence[Row]) -> Picture:
    trained = [row for row in rows if row.kind == "checkpoint"]
    said = []
    with mpl.rc_context(_STYLE):
        figure, axes = _axes("epoch of the checkpoint", "AUC on the test part, %")
        epochs = [row.epoch or 0.0 for row in trained]
        aucs = [100 * row.scores.auc for row in trained]
        if trained:
            low = [100 * (row.scores.auc if row.scores.auc_low is None else row.scores.auc_low) for row in trained]
            high = [100 * (row.scores.auc if row.scores.auc_high is None else row.scores.auc_high) for row in trained]
            errors = [
                [auc - bound for auc, bound in zip(aucs, low, strict=True)],
                [bound - auc for auc, bound in zip(aucs, high, strict=True)],
            ]
            axes.errorbar(
                epochs, aucs, yerr=errors, color=_TRAINED, marker="o", markersize=4, capsize=2, label="pretrained"
            )
            said.append("pretrained " + ", ".join(f"{100 * row.scores.auc:.1f} % at {row.features}" for row in trained))
        for kind, colour, dash in (("untrained", _UNTRAINED, "--"), ("pixels", _PIXELS, ":")):
            for row in rows:
                if row.kind == kind:
                    axes.axhline(100 * row.scores.auc, color=colour, linestyle=dash, label=row.features)
                    said.append(f"{row.features} {100 * row.scores.auc:.1f} %")
        if not dataset.simulated and dataset.name in TABLE_III:
            paper_auc = TABLE_III[dataset.name][100][1]
            axes.axhline(paper_auc, color=_PAPER, linestyle="-.", label="paper, 100 % of CheXpert")
            said.append(f"the paper {paper_auc:.1f} %")
        if axes.get_legend_handles_labels()[0]:
            axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.01, 1.0))
        uri = _data_uri(figure)
    return Picture(
        uri,
        f"AUC on {dataset.label}: {'; '.join(said)}.",
        f"{dataset.label}: {dataset.positive} against {dataset.negative}. Bars: 95 % interval over patients.",
    )


def _axes(x: str, y: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(8.0, 3.2), layout="constrained")
    axes = figure.subplots()
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    return figure, axes


def _data_uri(figure: Figure) -> str:
    """Return a figure as a data URI: unlike inlined SVGs, two of them in a page share no identifiers."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode()
