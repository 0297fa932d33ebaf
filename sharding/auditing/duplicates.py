"""Which images of packed folders show one picture: equal to the pixel, or nearly."""

from collections.abc import Sequence
from contextlib import closing
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from infra.arrays import Int64, UInt8, UInt64
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
    """Pairs of images by their numbers in packed order, first < second; distance in bits of the hash; each (m,)."""

    first: Int64
    second: Int64
    distance: Int64
    correlation: npt.NDArray[np.float64]

    def chosen(self, some: npt.NDArray[np.bool_] | Int64) -> "Pairs":
        """Return some of the pairs, by mask or by position."""
        return Pairs(self.first[some], self.second[some], self.distance[some], self.correlation[some])

    def joined(self, others: "Pairs") -> "Pairs":
        """Return these pairs and others."""
        return Pairs(
            np.concatenate([self.first, others.first]),
            np.concatenate([self.second, others.second]),
            np.concatenate([self.distance, others.distance]),
            np.concatenate([self.correlation, others.correlation]),
        )


def near_duplicate_groups(
    places: Sequence[Location], workers: int = 0, fetch: FetchConfig | None = None
) -> tuple[UInt64, Int64]:
    """Return the 64-bit identities (n,) of all samples in packed order, and for each the number of its group (n,).

    Samples that show one picture, to the pixel or nearly, are of one group: what a split or a resampling must not tear
    apart. Raises UserError when a folder is no packed dataset or is named twice, and RunFailed when an image's bytes
    are not those that were packed.
    """
    shards = ShardSet(places, fetch=fetch)
    rows = fingerprints(shards, workers).rows
    pairs = identical_pairs(rows).joined(near_pairs(shards, rows, workers))
    return rows["sample"].copy(), connected(len(rows), pairs)


def identical_pairs(rows: Rows) -> Pairs:
    """Pair every image with the first one of the same pixels."""
    first = _first_of_each(rows["pixels"])
    second = np.flatnonzero(first != np.arange(len(rows)))
    return Pairs(first[second], second, np.zeros_like(second), np.ones(len(second)))


def near_pairs(shards: ShardSet, rows: Rows, workers: int = 0) -> Pairs:
    """Return the pairs of different pictures that both hash and correlation call near.

    Of identical images, and of images with equal hashes, the first stands for the others: so a thousand blank plates
    make a thousand pairs, not half a million. The result does not depend on the number of workers.
    """
    pictures = np.unique(_first_of_each(rows["pixels"]))
    first_of_hash = _first_of_each(rows["perceptual"][pictures])
    kinds = np.unique(first_of_hash)
    others = np.flatnonzero(first_of_hash != np.arange(len(pictures)))
    near, distance = pairs_within(rows["perceptual"][pictures[kinds]], MAX_HASH_DISTANCE)
    first = pictures[np.concatenate([first_of_hash[others], kinds[near[:, 0]]])]
    second = pictures[np.concatenate([others, kinds[near[:, 1]]])]
    measured = _correlations(shards, first, second, workers)
    pairs = Pairs(first, second, np.concatenate([np.zeros_like(others), distance]), measured)
    return pairs.chosen(measured >= MIN_CORRELATION)


def connected(images: int, pairs: Pairs) -> Int64:
    """Return for each of `images` images the number of the group that pairs connect it to (images,)."""
    edges = coo_array((np.ones(len(pairs.first), np.int8), (pairs.first, pairs.second)), shape=(images, images))
    return connected_components(edges, directed=False)[1].astype(np.int64)


def _first_of_each(values: npt.NDArray[np.uint64]) -> Int64:
    """Return for each value (n,) or row (n, k) the number of the first equal one (n,)."""
    _, first, inverse = np.unique(values, axis=0, return_index=True, return_inverse=True)
    return first[inverse.reshape(-1)].astype(np.int64)


def _correlations(shards: ShardSet, first: Int64, second: Int64, workers: int) -> npt.NDArray[np.float64]:
    """Return the correlation of each pair (m,): read here, decoded and compared in the workers."""
    (first_shard, first_row), (second_shard, second_row) = shards.locate(first), shards.locate(second)
    places = zip(*(part.tolist() for part in (first_shard, first_row, second_shard, second_row)), strict=True)
    encoded = ((shards.read(a, row_a), shards.read(b, row_b)) for a, row_a, b, row_b in places)
    with closing(
        ordered_map(_correlation, encoded, worker_count(workers, len(first), _PAIRS_A_TASK), _PAIRS_A_TASK)
    ) as results:
        return np.array(list(progress(results, "comparing pairs", total=len(first), unit="pair")), np.float64)


def _correlation(encoded: tuple[UInt8, UInt8]) -> float:
    (first, _), (second, _) = map(decode_packed, encoded)
    return correlation(first, second)
