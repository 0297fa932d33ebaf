"""Measures of frozen features that need no labels: ranks, spectra, geometry on the sphere, and signs of collapse.

They are computed on patients who were held out of pretraining. No measure knows the purpose of the features;
`evaluation.selection.choice` judges how well each would have chosen.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Final, Literal

import numpy as np
import torch
from scipy.linalg import cholesky, solve_triangular, svdvals
from scipy.special import entr
from torch import Tensor, nn

from infra.arrays import Float32, Float64
from ssl_core.loss import health

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

_PRECISION: Final = float(np.finfo(np.float32).eps)  # of features; smaller differences count as none
_RIDGE: Final = 1e-4  # added to the variance within samples, as a share of the mean variance of a dimension
_SPECTRUM_RANKS: Final = 100  # later eigenvalues depend more on the number of images than on the features
_NEARLY_CONSTANT: Final = 0.01  # relative to the standard deviation of each dimension of evenly spread unit rows
_MOSTLY_CONSTANT: Final = 0.9


def goodness(measure: str, value: float) -> float:
    """Turn the value of one of `MEASURES` into a number where more is better."""
    return {"larger": value, "smaller": -value, "nearest to 1": -abs(value - 1)}[MEASURES[measure]]


def has_collapsed(values: Mapping[str, float]) -> bool:
    """Return whether features hardly differ between images: `spread` below 0.01 or `constant dimensions` above 0.9."""
    return values["spread"] < _NEARLY_CONSTANT or values["constant dimensions"] > _MOSTLY_CONSTANT


@torch.inference_mode()
def extract_views(backbone: nn.Module, batches: Iterable[Sequence[Tensor]], device: torch.device) -> Float32:
    """Run a frozen backbone in evaluation mode on several views of each image.

    Args:
        backbone: maps images (n, 1, size, size) to features (n, D)
        batches: for each batch of n images, one tensor (n, 1, size, size) per view
        device: device on which the backbone runs

    Returns:
        Features (m, q, D) of q views of m images.
    """
    backbone = backbone.to(device).eval()
    parts = [
        torch.stack([backbone(view.to(device)).float().cpu() for view in views], dim=1).numpy() for views in batches
    ]
    return np.concatenate(parts)


def measures(features: Float32, views: Float32) -> dict[str, float]:
    """Compute all of `MEASURES`; without LiDAR if `lidar_bound` holds it back.

    Compare values only between checkpoints that were measured on the same images. Constant features have the worst
    value of each measure except alignment, which is blind to collapse.

    Args:
        features: (n, D) of unaugmented images, at least 3 images and 2 dimensions
        views: (m, q, D) of q augmented views of each of m images, at least 2 of each
    """
    assert len(features) >= 3 and features.shape[1] >= 2, f"features {features.shape} are too few to measure"
    assert len(views) >= 2 and views.shape[1] >= 2, f"views {views.shape} are too few to measure"
    rows, views64 = features.astype(np.float64), views.astype(np.float64)
    deviation = _unit(rows).std(axis=0) * np.sqrt(rows.shape[1])
    bounded = lidar_bound(*views.shape) is not None
    return ({} if bounded else {"LiDAR": lidar(views64)}) | {
        "RankMe": rankme(rows),
        "alpha-ReQ": alpha_req(rows),
        "alignment": alignment(views64),
        "uniformity": uniformity(rows),
        "spread": float(deviation.mean()),
        "constant dimensions": float((deviation < _NEARLY_CONSTANT).mean()),
    }


def lidar_bound(images: int, views: int, dimensions: int) -> str | None:
    """Return why LiDAR of so many images would mean nothing, as part of a sentence; None if it is sound.

    It is an effective rank between images, which m images cannot raise above m - 1, relative to the variation within
    them, which m (q - 1) differences of views span. With fewer than D of either, the bound is measured and not the
    features.
    """
    if min(images - 1, images * (views - 1)) >= dimensions:
        return None
    return f"{images} images bound it below the {dimensions} dimensions of the features"


def rankme(features: Float64) -> float:
    """Return the effective rank of uncentered features (n, D): from 1 to min(n, D).

    It is the exponential of the entropy of the singular values, normalized to sum to 1 (Garrido et al. 2023, "RankMe",
    eq. 1, without its term against log 0). The paper measures projections; this measures the backbone's features.
    """
    return _effective_rank(svdvals(features))


def alpha_req(features: Float64) -> float:
    """Return how steeply the variances of features (n, D) fall along their principal axes: i^-alpha, best near 1.

    It is the slope of log variance on log rank over the first 100 ranks (Agrawal et al. 2022, "alpha-ReQ"), where each
    rank is weighted by its share of the log axis, 1 / rank. The paper leaves out the first few ranks. Here they stay,
    so that features with few directions have a steep spectrum, and constant features the spectrum of one direction.
    """
    ranks = np.arange(1, 1 + min(_SPECTRUM_RANKS, len(features) - 1, features.shape[1]))
    variances = np.square(svdvals(_centered(features))[: len(ranks)])
    relative = np.maximum(variances / (variances[0] or 1.0), _PRECISION**2)
    relative[0] = 1.0
    slope, _ = np.polyfit(np.log(ranks), np.log(relative), 1, w=1 / np.sqrt(ranks))
    return float(-slope)


def lidar(views: Float64) -> float:
    """Return the effective rank of the variation between samples relative to that within: from 1 to min(m, D).

    It is the exponential of the entropy of the eigenvalues, normalized to sum to 1, of S_w^-1/2 S_b S_w^-1/2. S_b is
    the covariance of the samples' means, S_w that of the views about their sample's mean, plus a ridge (Thilak et al.
    2024, "LiDAR", eqs. 1 to 4). The paper's ridge is an absolute number; here it is 1e-4 of the mean variance of a
    dimension, so that the scale of the features does not matter. A rank is blind to size: if only noise separates the
    samples, it is the rank of the noise, which is high.

    Args:
        views: (m, q, D) of q views of m samples
    """
    samples, count, dimensions = views.shape
    means = views.mean(axis=1)
    between = _centered(means) / np.sqrt(samples)
    within = (views - means[:, None]).reshape(samples * count, dimensions) / np.sqrt(samples * count)
    variance = (np.square(between).sum() + np.square(within).sum()) / dimensions
    if not between.any():
        return 1.0
    scatter = within.T @ within + _RIDGE * variance * np.eye(dimensions)
    # With S_w = L L^T, the eigenvalues are the squares of the singular values of L^-1 times the means.
    whitened = solve_triangular(cholesky(scatter, lower=True), between.T, lower=True)
    return _effective_rank(np.square(svdvals(whitened)))


def alignment(views: Float64) -> float:
    """Return the mean squared distance of two views of a sample, on unit rows: from 0 for equal views to 4.

    Wang & Isola 2020, section 4.1, alpha = 2, over all pairs of views.

    Args:
        views: (m, q, D) of q views of m samples
    """
    _, count, _ = views.shape
    unit = _unit(views)
    # The sum of squared distances over ordered pairs is 2 q sum |u|^2 - 2 |sum u|^2.
    distances = 2 * (count * np.square(unit).sum(axis=(1, 2)) - np.square(unit.sum(axis=1)).sum(axis=1))
    return max(0.0, float(distances.mean() / (count * (count - 1))))


def uniformity(features: Float64) -> float:
    """Return the log of the mean of exp(-2 squared distance) over all pairs of unit rows: at most 0, lower is better.

    Wang & Isola 2020, section 4.1, t = 2.

    Args:
        features: (n, D)
    """
    unit = torch.from_numpy(_unit(features))
    return health.uniformity(unit, unit.square().sum(1)).item()  # a row of zeros keeps length 0


def _effective_rank(values: Float64) -> float:
    total = values.sum()
    return float(np.exp(entr(values / total).sum())) if total > 0 else 1.0


def _unit(rows: Float64) -> Float64:
    """Divide rows (..., D) by their length; rows of zeros stay unchanged."""
    lengths = np.linalg.norm(rows, axis=-1, keepdims=True)
    return rows / np.where(lengths > 0, lengths, 1.0)


def _centered(rows: Float64) -> Float64:
    """Subtract the mean of rows (n, D); return zeros if the rows differ by less than float32 can resolve."""
    centered: Float64 = rows - rows.mean(axis=0)
    differs = np.linalg.norm(centered) > _PRECISION * np.linalg.norm(rows)
    return centered if differs else np.zeros_like(centered)
