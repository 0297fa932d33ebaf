"""How good frozen features look without any label: ranks, spectra, geometry on the sphere, and signs of collapse.

Each measure is taken of the features of patients who were held out of pretraining. None of them knows what the features
are for; `evaluation.selection.choice` says how well they would have chosen.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Final, Literal

import numpy as np
import numpy.typing as npt
import torch
from scipy.linalg import cholesky, solve_triangular, svdvals
from scipy.special import entr
from torch import Tensor, nn

from ssl_core.loss import health

Floats = npt.NDArray[np.float64]
Float32 = npt.NDArray[np.float32]

Better = Literal["larger", "smaller", "nearest to 1"]

MEASURES: Final[dict[str, Better]] = {
    "LiDAR": "larger",
    "RankMe": "larger",
    "alpha-ReQ": "nearest to 1",
    "alignment": "smaller",
    "uniformity": "smaller",
    "spread": "larger",
    "constant dimensions": "smaller",
}

_PRECISION: Final = float(np.finfo(np.float32).eps)  # of features; what differs by less does not differ
_RIDGE: Final = 1e-4  # added to the variance within samples, as a share of the mean variance of a dimension
_SPECTRUM_RANKS: Final = 100  # later eigenvalues tell more of how many images there are than of the features
_NEARLY_CONSTANT: Final = 0.01  # of the standard deviation that every dimension of evenly spread unit rows has
_MOSTLY_CONSTANT: Final = 0.9


def goodness(measure: str, value: float) -> float:
    """Turn a value of one of `MEASURES` into a number of which more is better."""
    return {"larger": value, "smaller": -value, "nearest to 1": -abs(value - 1)}[MEASURES[measure]]


def has_collapsed(values: Mapping[str, float]) -> bool:
    """Say whether features hardly differ between images: `spread` below 0.01, or `constant dimensions` above 0.9."""
    return values["spread"] < _NEARLY_CONSTANT or values["constant dimensions"] > _MOSTLY_CONSTANT


@torch.inference_mode()
def extract_views(backbone: nn.Module, batches: Iterable[Sequence[Tensor]], device: torch.device) -> Float32:
    """Return a frozen backbone's features (m, q, D) of q views of m images, in evaluation mode.

    batches: of each n images, a tensor (n, 1, size, size) a view.
    """
    backbone = backbone.to(device).eval()
    parts = [
        torch.stack([backbone(view.to(device)).float().cpu() for view in views], dim=1).numpy() for views in batches
    ]
    return np.concatenate(parts)


def measures(features: Float32, views: Float32) -> dict[str, float]:
    """Take all of `MEASURES`.

    features: (n, D) of unaugmented images, at least 3 images and 2 dimensions. views: (m, q, D) of q augmented views of
    each of m images, at least 2 of each; LiDAR wants m > D for its highest values and m (q - 1) > D for a sound
    estimate of what varies within a sample. Compare values only between checkpoints that were measured on the same
    images. Features of one value have the worst value of each measure, but for alignment, which does not see collapse.
    """
    assert len(features) >= 3 and features.shape[1] >= 2, f"features {features.shape} are too few to measure"
    assert len(views) >= 2 and views.shape[1] >= 2, f"views {views.shape} are too few to measure"
    rows, seen = features.astype(np.float64), views.astype(np.float64)
    deviation = _unit(rows).std(axis=0) * np.sqrt(rows.shape[1])
    return {
        "LiDAR": lidar(seen),
        "RankMe": rankme(rows),
        "alpha-ReQ": alpha_req(rows),
        "alignment": alignment(seen),
        "uniformity": uniformity(rows),
        "spread": float(deviation.mean()),
        "constant dimensions": float((deviation < _NEARLY_CONSTANT).mean()),
    }


def rankme(features: Floats) -> float:
    """Return the effective rank of features (n, D), not centred: from 1 to min(n, D).

    The exponential of the entropy of the singular values, normalised to sum to 1 (Garrido et al. 2023, "RankMe", eq. 1,
    without its addend against log 0). The paper takes it of projections; here it is of the backbone's features.
    """
    return _effective_rank(svdvals(features))


def alpha_req(features: Floats) -> float:
    """Return how steeply the variances of features (n, D) fall along their principal axes: i^-alpha, best near 1.

    The slope of log variance on log rank (Agrawal et al. 2022, "alpha-ReQ"), each rank weighted by its share of the log
    axis, 1 / rank, over the first 100 ranks. Theirs leave out the first few; here they stay, so that features of a few
    directions have a steep spectrum, and none have that of a single direction.
    """
    ranks = np.arange(1, 1 + min(_SPECTRUM_RANKS, len(features) - 1, features.shape[1]))
    variances = np.square(svdvals(_centred(features))[: len(ranks)])
    relative = np.maximum(variances / (variances[0] or 1.0), _PRECISION**2)
    relative[0] = 1.0
    slope, _ = np.polyfit(np.log(ranks), np.log(relative), 1, w=1 / np.sqrt(ranks))
    return float(-slope)


def lidar(views: Floats) -> float:
    """Return the effective rank of what differs between samples, measured by what differs within: from 1 to min(m, D).

    views: (m, q, D). The exponential of the entropy of the eigenvalues, normalised to sum to 1, of
    S_w^-1/2 S_b S_w^-1/2, where S_b is the covariance of the samples' means and S_w that of the views about their
    sample's mean, plus a ridge (Thilak et al. 2024, "LiDAR", eqs. 1 to 4). The paper's ridge is an absolute number;
    here it is 1e-4 of the mean variance of a dimension, so that the scale of features plays no part. A rank is blind
    to size: where nothing but noise tells samples apart, it is the noise's, which is high.
    """
    samples, count, dimensions = views.shape
    means = views.mean(axis=1)
    between = _centred(means) / np.sqrt(samples)
    within = (views - means[:, None]).reshape(samples * count, dimensions) / np.sqrt(samples * count)
    variance = (np.square(between).sum() + np.square(within).sum()) / dimensions
    if not between.any():
        return 1.0
    scatter = within.T @ within + _RIDGE * variance * np.eye(dimensions)
    # With S_w = L L^T, the eigenvalues are the squares of the singular values of L^-1 times the means.
    whitened = solve_triangular(cholesky(scatter, lower=True), between.T, lower=True)
    return _effective_rank(np.square(svdvals(whitened)))


def alignment(views: Floats) -> float:
    """Return the mean squared distance of two views of a sample, on unit rows: from 0, where all agree, to 4.

    views: (m, q, D). Wang & Isola 2020, section 4.1, alpha = 2, over all pairs of views.
    """
    _, count, _ = views.shape
    unit = _unit(views)
    # The sum of squared distances over ordered pairs is 2 q sum |u|^2 - 2 |sum u|^2.
    distances = 2 * (count * np.square(unit).sum(axis=(1, 2)) - np.square(unit.sum(axis=1)).sum(axis=1))
    return max(0.0, float(distances.mean() / (count * (count - 1))))


def uniformity(features: Floats) -> float:
    """Return the log of the mean of exp(-2 squared distance) over all pairs of unit rows: at most 0, lower is better.

    features: (n, D). Wang & Isola 2020, section 4.1, t = 2.
    """
    unit = torch.from_numpy(_unit(features))
    return health.uniformity(unit, unit.square().sum(1)).item()  # a row of zeros keeps length 0


def _effective_rank(values: Floats) -> float:
    total = values.sum()
    return float(np.exp(entr(values / total).sum())) if total > 0 else 1.0


def _unit(rows: Floats) -> Floats:
    """Divide rows (..., D) by their length; rows of zeros stay as they are."""
    lengths = np.linalg.norm(rows, axis=-1, keepdims=True)
    unit: Floats = rows / np.where(lengths > 0, lengths, 1.0)
    return unit


def _centred(rows: Floats) -> Floats:
    """Subtract the mean of rows (n, D); exactly zeros where they differ by no more than float32 can tell."""
    centred: Floats = rows - rows.mean(axis=0)
    differs = np.linalg.norm(centred) > _PRECISION * np.linalg.norm(rows)
    return centred if differs else np.zeros_like(centred)
