"""Pairs and groups of images in packed folders that show the same picture, exactly or nearly."""

from collections.abc import Sequence
from contextlib import closing
from typing import Final, NamedTuple

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from infra.arrays import Bool, Float64, Int64, UInt8, UInt64
from infra.log import progress
from infra.parallel import ordered_map, worker_count
from sharding.auditing.fingerprints import Rows, decode_packed, fingerprints
from sharding.auditing.hamming import pairs_within
from sharding.auditing.perceptual import MAX_HASH_DISTANCE, MIN_CORRELATION, correlation
from sharding.reading.fetch import FetchConfig
from sharding.reading.location import Location
from sharding.reading.shard_set import ShardSet

_PAIRS_A_TASK: Final = 16


class Pairs(NamedTuple):
    """Pairs of images.

    Attributes:
        first: (m,) number of an image in packed order
        second: (m,) number of the other image, above `first`
        distance: (m,) number of bits in which the hashes differ
        correlation: (m,) correlation of the thumbnails
    """

    first: Int64
    second: Int64
    distance: Int64
    correlation: Float64

    def chosen(self, selection: Bool | Int64) -> "Pairs":
        """Return a selection of the pairs, by mask or by position."""
        return Pairs(
            self.first[selection], self.second[selection], self.distance[selection], self.correlation[selection]
        )

    def joined(self, others: "Pairs") -> "Pairs":
        """Return these pairs followed by others."""
        return Pairs(
            np.concatenate([self.first, others.first]),
            np.concatenate([self.second, others.second]),
            np.concatenate([self.distance, others.distance]),
            np.concatenate([self.correlation, others.correlation]),
        )


def near_duplicate_groups(
    locations: Sequence[Location], workers: int = 0, fetch: FetchConfig | None = None
) -> tuple[UInt64, Int64]:
    """Group the samples that show the same picture, exactly or nearly; splits and resampling must keep groups whole.

    Args:
        locations: packed folders: paths or URLs
        workers: processes that read; 0 means one for each CPU
        fetch: settings for downloads; None means the defaults

    Returns:
        The 64-bit identities (n,) of all samples in packed order, and the number of each sample's group (n,).

    Raises:
        UserError: if a location is not a packed dataset or occurs twice
        RunFailed: if an image is damaged or cannot be downloaded
    """
    shards = ShardSet(locations, fetch=fetch)
    rows = fingerprints(shards, workers).rows
    pairs = identical_pairs(rows).joined(near_pairs(shards, rows, workers))
    return rows["sample"].copy(), connected(len(rows), pairs)


def identical_pairs(rows: Rows) -> Pairs:
    """Pair every image with the first one that has the same pixels."""
    first = _first_of_each(rows["pixels"])
    second = np.flatnonzero(first != np.arange(len(rows)))
    return Pairs(first[second], second, np.zeros_like(second), np.ones(len(second)))


def near_pairs(shards: ShardSet, rows: Rows, workers: int = 0) -> Pairs:
    """Return the pairs of different pictures that are near by both hash and correlation.

    Of identical images, and of images with equal hashes, the first represents the others. So a thousand blank plates
    make a thousand pairs, not half a million. The result does not depend on the number of workers.
    """
    pictures = np.unique(_first_of_each(rows["pixels"]))
    first_of_hash = _first_of_each(rows["perceptual"][pictures])
    representatives = np.unique(first_of_hash)
    others = np.flatnonzero(first_of_hash != np.arange(len(pictures)))
    near, distance = pairs_within(rows["perceptual"][pictures[representatives]], MAX_HASH_DISTANCE)
    first = pictures[np.concatenate([first_of_hash[others], representatives[near[:, 0]]])]
    second = pictures[np.concatenate([others, representatives[near[:, 1]]])]
    measured = _correlations(shards, first, second, workers)
    pairs = Pairs(first, second, np.concatenate([np.zeros_like(others), distance]), measured)
    return pairs.chosen(measured >= MIN_CORRELATION)


def connected(images: int, pairs: Pairs) -> Int64:
    """Return the number of each image's group (images,), where pairs connect the images of a group."""
    edges = coo_array((np.ones(len(pairs.first), np.int8), (pairs.first, pairs.second)), shape=(images, images))
    return connected_components(edges, directed=False)[1].astype(np.int64)


def _first_of_each(values: UInt64) -> Int64:
    """Return for each value of (n,) or (n, k) the position of the first equal one (n,)."""
    _, first, inverse = np.unique(values, axis=0, return_index=True, return_inverse=True)
    return first[inverse.reshape(-1)].astype(np.int64)


def _correlations(shards: ShardSet, first: Int64, second: Int64, workers: int) -> Float64:
    """Return the correlation of each pair (m,); reads here, decodes and compares in the workers."""
    (first_shard, first_row), (second_shard, second_row) = shards.locate(first), shards.locate(second)
    positions = zip(*(part.tolist() for part in (first_shard, first_row, second_shard, second_row)), strict=True)
    encoded = ((shards.read(a, row_a), shards.read(b, row_b)) for a, row_a, b, row_b in positions)
    with closing(
        ordered_map(_correlation, encoded, worker_count(workers, len(first), _PAIRS_A_TASK), _PAIRS_A_TASK)
    ) as results:
        return np.array(list(progress(results, "comparing pairs", total=len(first), unit="pair")), np.float64)


def _correlation(encoded: tuple[UInt8, UInt8]) -> float:
    (first, _), (second, _) = map(decode_packed, encoded)
    return correlation(first, second)
