"""How much attention lies where a radiograph shows no lung: near its border and in its corners."""

from typing import Final

import numpy as np
import torch
import torch.nn.functional as F

from evaluation.pictures.case_maps import CaseMaps
from evaluation.pictures.probed import Probed, Tested
from evaluation.results.picture_records import OutsideShare
from evaluation.scoring.means import estimate_mean
from infra.arrays import Bool, Float32, Float64, Int64
from ssl_core.views.parameters import Fit, whole_image

OUTSIDE: Final = (
    "The outer tenth of the film on each side, a quarter of each side at the corners, and what the network sees beside "
    "the film. Nobody has marked the lungs; in films that are cut close, some lung lies there."
)
_BORDER: Final = 0.1  # of the film's width or height, as in the control "border"
_CORNER: Final = 0.25
_GRID_PX: Final = 64  # maps are enlarged to this size, at which a tenth of the film is whole pixels wide, nearly


def outside_estimate(probed: Probed, maps: CaseMaps, tested: Tested, chosen: Int64) -> OutsideShare:
    """Return the mean share of attention outside over the chosen test images (m,), with an interval over patients."""
    sizes = maps.case.task.labeled_set.samples.sizes[tested.rows[chosen]]
    made = maps.of_decisions(tested, chosen)
    shares, uniform = outside_of(made, sizes, maps.extractor.preprocessing.fit)
    found = ~np.isnan(shares)
    return OutsideShare(
        features=maps.case.name,
        images=int(found.sum()),
        empty=int((~found).sum()),
        share=estimate_mean(
            shares[found], tested.patients[chosen][found], resamples=probed.resamples, seed=probed.seed
        ),
        uniform=float(uniform.mean()),
    )


def outside_of(maps: Float32, sizes: Int64, fit: Fit) -> tuple[Float64, Float64]:
    """Return the share of each map outside, and the share of the area, (n,) each; NaN for an empty map.

    Args:
        maps: (n, h, w), at least 0
        sizes: (n, 2) height and width of the packed images
        fit: how the images became squares
    """
    outside = _outside_film(sizes, fit)
    enlarged = F.interpolate(torch.from_numpy(maps)[:, None], (_GRID_PX, _GRID_PX), mode="bilinear")[:, 0].numpy()
    totals = enlarged.sum(axis=(1, 2), dtype=np.float64)
    parts = (enlarged * outside).sum(axis=(1, 2), dtype=np.float64)
    shares = np.divide(parts, totals, out=np.full(len(maps), np.nan), where=totals > 0)
    return shares, outside.mean(axis=(1, 2), dtype=np.float64)


def _outside_film(sizes: Int64, fit: Fit) -> Bool:
    """Return which points of the view show no lung, (n, _GRID_PX, _GRID_PX), for images of these sizes (n, 2)."""
    heights, widths = sizes.T
    matrix = whole_image(_GRID_PX, heights, widths, fit).matrix  # from points of the view to points of the image
    centers = np.arange(_GRID_PX) + 0.5
    x = (matrix[:, 0, :1] * centers + matrix[:, 0, 2:]) / widths[:, None]  # on the scale 0 to 1, left to right
    y = (matrix[:, 1, 1:2] * centers + matrix[:, 1, 2:]) / heights[:, None]
    from_side = np.minimum(x, 1 - x)[:, None, :]
    from_end = np.minimum(y, 1 - y)[:, :, None]
    in_corner: Bool = (from_side < _CORNER) & (from_end < _CORNER)
    return in_corner | (from_side < _BORDER) | (from_end < _BORDER)
