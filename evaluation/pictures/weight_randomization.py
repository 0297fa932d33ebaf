"""Whether maps depend on what was learned: they are made again while more and more weights become random.

Adebayo et al. 2018, "Sanity Checks for Saliency Maps": a map that stays the same with random weights shows the image,
not the decision.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Final

import numpy as np
from scipy.ndimage import gaussian_filter
from scipy.stats import rankdata
from torch import nn

from evaluation.pictures.case_maps import CaseMaps
from evaluation.pictures.probed import Probed, Tested
from evaluation.pictures.radiographs import enlarged
from evaluation.results.picture_records import Randomized
from evaluation.scoring.means import estimate_mean
from infra.arrays import Float32, Float64, Int64
from infra.configuration.options import SEEDS
from infra.rng import permutation, stable_hash

_SHARES: Final = {  # of the network's layers, counted from the features back to the image
    "the classifier": 0.0,
    "the classifier and the last quarter of the layers": 0.25,
    "the classifier and the last half of the layers": 0.5,
    "the classifier and the whole backbone": 1.0,
}
OTHER_IMAGES: Final = "none; maps of two different images"  # how alike unrelated maps of this network are
_SSIM_PX: Final = 64
_SSIM_SIGMA_PX: Final = 1.5  # as in Wang et al. 2004, as are the constants
_C1, _C2 = 0.01**2, 0.03**2


def randomized(probed: Probed, maps: CaseMaps, tested: Tested, chosen: Int64) -> list[Randomized]:
    """Compare maps of the chosen test images (m,) with those that random weights give.

    Weights are replaced from the features back to the image, by those of an untrained network; the classifier's are
    permuted. A first record compares maps of different images, as a scale for the others.
    """
    own = maps.of_decisions(tested, chosen)
    patients = tested.patients[chosen]

    def record(weights: str, other: Float32) -> Randomized:
        correlations = rank_correlations(own, other)
        found = ~np.isnan(correlations)
        of_found = [
            estimate_mean(values[found], patients[found], resamples=probed.resamples, seed=probed.seed)
            for values in (correlations, structural_similarities(own, other))
        ]
        return Randomized(weights, int(found.sum()), *of_found)

    records = [record(OTHER_IMAGES, np.roll(own, 1, axis=0))]
    return records + [record(weights, other.of_decisions(tested, chosen)) for weights, other in _random(probed, maps)]


def _random(probed: Probed, maps: CaseMaps) -> Iterator[tuple[str, CaseMaps]]:
    """Yield the maps with more and more random weights, with the words for these."""
    size = maps.directions.shape[1]
    permuted = np.stack(
        [
            direction[permutation(size, probed.seed, "attention-classifier", number)]
            for number, direction in enumerate(maps.directions)
        ]
    )
    fresh = probed.untrained(stable_hash(f"attention {probed.seed}") % SEEDS)
    for weights, share in _SHARES.items():
        backbone = probed.source_of(maps.case).backbone()
        randomize(backbone, fresh, share)
        yield weights, replace(maps.with_backbone(backbone), directions=permuted)


def randomize(backbone: nn.Module, fresh: nn.Module, share: float) -> None:
    """Replace the weights of the last layers of a network.

    Args:
        backbone: the network to change
        fresh: the same network with other weights
        share: of the layers that have weights
    """
    others = fresh.state_dict()
    layers = list(dict.fromkeys(name.rpartition(".")[0] for name in others))
    replaced = set(layers[len(layers) - round(share * len(layers)) :])
    chosen = {name: value for name, value in others.items() if name.rpartition(".")[0] in replaced}
    backbone.load_state_dict(chosen, strict=False)


def rank_correlations(first: Float32, second: Float32) -> Float64:
    """Return Spearman's correlation (n,) of the cells of maps (n, h, w); NaN where a map is the same everywhere."""
    ranks = [rankdata(maps.reshape(len(maps), -1), axis=1) for maps in (first, second)]
    one, two = (each - each.mean(axis=1, keepdims=True) for each in ranks)
    scale = np.sqrt((one**2).sum(axis=1) * (two**2).sum(axis=1))
    return np.divide((one * two).sum(axis=1), scale, out=np.full(len(first), np.nan), where=scale > 0)


def structural_similarities(first: Float32, second: Float32) -> Float64:
    """Return the mean SSIM (n,) of maps (n, h, w), as pictures show them (Wang et al. 2004, equation 13)."""
    one, two = (np.array([enlarged(cells, _SSIM_PX) for cells in maps], np.float64) for maps in (first, second))

    def smooth(values: Float64) -> Float64:
        return gaussian_filter(values, _SSIM_SIGMA_PX, axes=(1, 2))

    mean_one, mean_two = smooth(one), smooth(two)
    covariance = smooth(one * two) - mean_one * mean_two
    variances = smooth(one**2) - mean_one**2 + smooth(two**2) - mean_two**2
    luminance = (2 * mean_one * mean_two + _C1) / (mean_one**2 + mean_two**2 + _C1)
    similar: Float64 = luminance * (2 * covariance + _C2) / (variances + _C2)
    return similar.mean(axis=(1, 2))
