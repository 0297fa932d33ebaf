"""How far new images are from the images that a probe was fitted to.

The distance is one minus the cosine of the features, to the nearest of these images (Sun et al. 2022,
"Out-of-distribution detection with deep nearest neighbors"). It is compared with the distances of these images
themselves to the nearest one of another patient, since a new image has no sibling among them.
"""

from collections.abc import Iterator
from functools import cached_property
from typing import Final

import numpy as np

from infra.arrays import Float32, Float64, Int64
from infra.rng import permutation

_SAMPLE: Final = 1000  # images whose own distances are computed
_BLOCK: Final = 1 << 26  # distances in memory at once
FEATURES_A_BLOCK: Final = 1 << 23  # in memory once more


def nearest(queries: Float32, features: Float32, rows: Int64, count: int) -> tuple[Int64, Float64]:
    """Find the images whose features have the highest cosines with those of other images.

    Args:
        queries: features (m, D) of the other images
        features: features (N, D) of all images
        rows: (n,) rows of the images to look among; of equally near ones the first comes first
        count: how many to find, k; all if there are fewer

    Returns:
        Their rows (m, k) and their cosines (m, k), the nearest first.
    """
    wanted = directions(queries)
    best, cosines = np.empty((len(queries), 0), np.int64), np.empty((len(queries), 0))
    step = max(1, FEATURES_A_BLOCK // (features.shape[1] + len(queries)))
    for start in range(0, len(rows), step):
        block = rows[start : start + step]
        of_block = (wanted @ directions(features[block]).T).astype(np.float64).clip(-1, 1)
        best = np.concatenate([best, np.broadcast_to(block, of_block.shape)], axis=1)
        cosines = np.concatenate([cosines, of_block], axis=1)
        order = np.argsort(-cosines, axis=1, kind="stable")[:, :count]
        best, cosines = np.take_along_axis(best, order, axis=1), np.take_along_axis(cosines, order, axis=1)
    return best, cosines


class Neighbors:
    """The images that a probe was fitted to."""

    def __init__(self, features: Float32, patients: Int64) -> None:
        """Take their features (n, D) and the codes of their patients (n,)."""
        self._directions, self._patients = directions(features), patients

    def distances(self, features: Float32) -> Float64:
        """Return the distance (m,) of each image to the nearest, for features (m, D)."""
        blocks = [block.min(axis=1) for _, block in self._blocks(directions(features))]
        return np.concatenate([*blocks, np.empty(0)])

    def quantiles(self, distances: Float64) -> Float64:
        """Return for distances (m,) which share of the images is nearer to its own nearest; NaN if that is unknown."""
        if not len(self._own):
            return np.full(len(distances), np.nan)
        return np.searchsorted(self._own, distances) / len(self._own)

    @cached_property
    def _own(self) -> Float64:
        """Distances of up to 1,000 images to the nearest one of another patient, in ascending order."""
        chosen = permutation(len(self._patients), 0, "nearest-of-another-patient")[:_SAMPLE]
        nearest = []
        for start, block in self._blocks(self._directions[chosen]):
            patients = self._patients[chosen[start : start + len(block)]]
            block[patients[:, None] == self._patients] = np.inf
            nearest.append(block.min(axis=1))
        own = np.sort(np.concatenate(nearest))
        return own[np.isfinite(own)]

    def _blocks(self, directions: Float32) -> Iterator[tuple[int, Float64]]:
        """Yield the distances (k, n) of blocks of images, each with the number of its first image."""
        step = max(1, _BLOCK // len(self._directions))
        for start in range(0, len(directions), step):
            cosines = directions[start : start + step] @ self._directions.T
            yield start, np.clip(1.0 - cosines.astype(np.float64), 0, 2)


def directions(features: Float32) -> Float32:
    """Return features (n, D) scaled to length 1; a row of zeros remains."""
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    return (features / np.where(lengths > 0, lengths, 1)).astype(np.float32)
