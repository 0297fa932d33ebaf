"""Figures of the pretraining: its loss, and how similar views are."""

import math
from collections.abc import Sequence

import matplotlib as mpl

from evaluation.report.html.blocks import Picture
from evaluation.report.html.figures import QUIET, STYLE, TRAINED, axes_of, data_uri, legend


def loss_picture(metrics: Sequence[dict[str, float]], chance: float) -> Picture:
    """Draw the loss of the logged steps (at least one) over the epochs.

    Args:
        metrics: logged steps, all with a loss
        chance: loss of a network that cannot tell any two images apart, at steps that did not log it
    """
    epochs = [line.get("epoch", line["step"]) for line in metrics]
    losses = [line["loss"] for line in metrics]
    chances = [line.get("loss/chance", chance) for line in metrics]
    with mpl.rc_context(STYLE):
        figure, axes = axes_of("epoch", "NT-Xent loss")
        axes.plot(epochs, losses, color=TRAINED, marker="." if len(losses) < 40 else "", linewidth=1.5, label="loss")
        axes.plot(epochs, chances, color=QUIET, linestyle="--", linewidth=1, label="chance")
        legend(axes)
        uri = data_uri(figure)
    return Picture(
        uri,
        f"Line: the loss goes from {losses[0]:.3f} at epoch {epochs[0]:.2f} to {losses[-1]:.3f} at epoch "
        f"{epochs[-1]:.2f}; its lowest value is {min(losses):.3f}. Chance is {chances[-1]:.3f}.",
        "Loss of the pretext task; each point is the mean since the previous one. Dashed: the loss of a network that "
        "cannot tell any two images apart.",
    )


def similarity_picture(metrics: Sequence[dict[str, float]]) -> Picture | None:
    """Draw how similar the two views of an image are, and views of different images; None if it was not logged."""
    positive, negative = "health/positive_similarity", "health/negative_similarity"
    lines = [each for each in metrics if math.isfinite(each.get(positive, math.nan) + each.get(negative, math.nan))]
    if not lines:
        return None
    epochs = [line.get("epoch", line["step"]) for line in lines]
    with mpl.rc_context(STYLE):
        figure, axes = axes_of("epoch", "cosine similarity")
        for name, tag, color, dash in (
            ("two views of one image", positive, TRAINED, "-"),
            ("views of different images", negative, "#9a4d00", "--"),
        ):
            axes.plot(epochs, [line[tag] for line in lines], color=color, linestyle=dash, linewidth=1.5, label=name)
        legend(axes)
        uri = data_uri(figure)
    return Picture(
        uri,
        f"Similarity at the end: {lines[-1][positive]:.2f} of two views of one image, {lines[-1][negative]:.2f} "
        "of views of different images.",
        "What the network learns: two views of one image become similar, views of different images do not. If both "
        "approach 1, it has collapsed.",
    )
