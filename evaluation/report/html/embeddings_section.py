"""The section on embeddings: t-SNE maps of the features of test images, networks side by side, one row a set."""

from collections.abc import Iterator
from typing import Final

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from evaluation.report.html.blocks import Block, Missing, Paragraph, Picture, Section
from evaluation.report.html.figures import STYLE, TRAINED, data_uri
from evaluation.report.html.radiographs import no_pictures
from evaluation.report.html.run_facts import RunFacts
from evaluation.report.tables import Table, percent
from evaluation.results.embedding_records import WARNING, EmbeddedSet, EmbeddingMap, Embeddings, read_embeddings
from infra.arrays import Bool
from infra.errors import UserError
from infra.words import counted

_POSITIVE, _NEGATIVE = "#c2410c", TRAINED
_INCHES: Final = 2.7  # side of a map


def embeddings_section(facts: RunFacts) -> Section:
    """Return the maps of each set, with the warning that they need."""
    title = "Maps of the features (t-SNE)"
    try:
        record = read_embeddings(facts.folder)
    except UserError as error:
        return Section("embeddings", title, [Missing(f"{error}.")])
    if record is None:
        return Section("embeddings", title, [no_pictures(facts.folder)])
    return Section("embeddings", title, list(_blocks(record)))


def _blocks(record: Embeddings) -> Iterator[Block]:
    yield Paragraph(WARNING)
    yield Paragraph(f"{record.method} {record.choice} {record.scores}", "quiet")
    for of_set in record.sets:
        if drawn := [item for item in of_set.maps if not item.missing]:
            yield _picture(of_set, drawn)
        yield from (
            Missing(f"{of_set.dataset}, {item.features}: {item.missing}.") for item in of_set.maps if item.missing
        )
    yield Table(
        "How far the maps can be trusted, and what the features themselves tell apart",
        ("set", "features", "images", "trustworthiness", "kNN AUC, %"),
        [cells for of_set in record.sets for cells in _cells(of_set)],
    )


def _cells(of_set: EmbeddedSet) -> Iterator[tuple[str, ...]]:
    for item in of_set.maps:
        trust = "" if item.trustworthiness is None else f"{item.trustworthiness:.3f}"
        auc = "" if item.knn_auc is None else percent(item.knn_auc)
        yield (of_set.dataset, item.features, str(len(of_set.keys)), trust, auc)


def _picture(of_set: EmbeddedSet, maps: list[EmbeddingMap]) -> Picture:
    negative, positive = of_set.classes
    is_positive = np.array(of_set.positive, bool)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(_INCHES * max(2, len(maps)), _INCHES + 0.6), layout="constrained", dpi=200)
        panels = figure.subplots(1, len(maps), squeeze=False)[0]
        for axes, item in zip(panels, maps, strict=True):
            _draw(axes, item, is_positive, of_set.classes)
        handles, names = panels[0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside lower center", ncols=2, frameon=False)
        uri = data_uri(figure)
    left_out = "".join(f"; {count} {reason} left out" for reason, count in of_set.left_out.items())
    asked = f" This is one of {of_set.asked} questions." if of_set.asked > 1 else ""
    return Picture(
        uri,
        f"Maps of the features of {counted(len(of_set.keys), 'image')} of {of_set.dataset}: "
        + "; ".join(f"{item.features}, kNN AUC {_percent(item.knn_auc)}" for item in maps)
        + ". Each point is a radiograph.",
        f"{of_set.dataset}, {of_set.preset}: {counted(len(of_set.keys), 'image')} of {of_set.test_images} test images"
        f"{left_out}. Squares: {positive}, dots: {negative}. Perplexity {of_set.perplexity:.3g}.{asked}",
    )


def _draw(axes: Axes, item: EmbeddingMap, is_positive: Bool,
          classes: tuple[str, str]) -> None:  # fmt: skip
    x, y = np.array(item.x), np.array(item.y)
    for name, chosen, color, marker in (
        (classes[0], ~is_positive, _NEGATIVE, "o"),
        (classes[1], is_positive, _POSITIVE, "s"),
    ):
        # As pixels: thousands of points as drawings would make the page slow.
        axes.scatter(x[chosen], y[chosen], s=7, c=color, marker=marker, alpha=0.7, linewidths=0, label=name,
                     rasterized=True)  # fmt: skip
    axes.set_title(item.features, fontsize=10)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.grid(visible=False)


def _percent(auc: float | None) -> str:
    return "unknown" if auc is None else f"{percent(auc)} %"
