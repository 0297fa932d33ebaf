"""Pairs and groups of images in packed folders that show the same picture, exactly or nearly."""

from collections.abc import Callable, Sequence
from contextlib import closing
from typing import Final, NamedTuple

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from infra.arrays import Bool, Float64, Int64, Records, UInt8, UInt64
from infra.log import progress
from infra.parallel.workers import HERE, Workers
from sharding.auditing.fingerprints import decode_packed, pictures_of
from sharding.auditing.hamming import pairs_within
from sharding.images.perceptual import (
    MAX_HASH_DISTANCE,
    MIN_CORRELATION,
    center_thumbnail,
    correlation,
    thumbnail,
)
from sharding.reading.fetch import FetchConfig
from sharding.reading.location import Location
from sharding.reading.shard_set import ShardSet

ReadImage = Callable[[int], UInt8]  # number of an image -> the encoded image

_PAIRS_A_TASK: Final = 16


class Pairs(NamedTuple):
    """Pairs of images.

    Attributes:
        first: (m,) number of an image in packed order
        second: (m,) number of the other image, above `first`
        distance: (m,) number of bits in which the hashes differ
        correlation: (m,) correlation of the thumbnails
        center: (m,) whether the center squares were compared instead of the whole images
    """

    first: Int64
    second: Int64
    distance: Int64
    correlation: Float64
    center: Bool

    def chosen(self, selection: Bool | Int64) -> "Pairs":
        """Return a selection of the pairs, by mask or by position."""
        return Pairs(
            self.first[selection],
            self.second[selection],
            self.distance[selection],
            self.correlation[selection],
            self.center[selection],
        )

    def joined(self, others: "Pairs") -> "Pairs":
        """Return these pairs followed by others."""
        return Pairs(
            np.concatenate([self.first, others.first]),
            np.concatenate([self.second, others.second]),
            np.concatenate([self.distance, others.distance]),
            np.concatenate([self.correlation, others.correlation]),
            np.concatenate([self.center, others.center]),
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
    rows = pictures_of(shards, Workers(workers))
    pairs = identical_pairs(rows).joined(near_pairs(rows, image_reader(shards), Workers(workers)))
    return shards.whole_index()["sample"].copy(), connected(len(rows), pairs)


def copies_of(shards: ShardSet, numbers: Int64, others: ShardSet, workers: int = 0) -> Int64:
    """Find images again in other packed folders.

    Args:
        shards: the images to look for
        numbers: (n,) their numbers in packed order
        others: where to look
        workers: processes that read; 0 means one for each CPU

    Returns:
        (n,) for each image the number of the first image in `others` that shows the same picture, exactly or nearly;
        -1 if there is none.

    Raises:
        UserError: if stored fingerprints do not match a manifest
        RunFailed: if an image is damaged or cannot be downloaded
    """
    known = others.samples
    rows = np.concatenate([pictures_of(others, Workers(workers)), pictures_of(shards, Workers(workers))[numbers]])
    read, read_other = image_reader(shards), image_reader(others)

    def read_joined(number: int) -> UInt8:
        return read_other(number) if number < known else read(int(numbers[number - known]))

    pairs = identical_pairs(rows).joined(near_pairs(rows, read_joined, Workers(workers), known))
    group = connected(len(rows), pairs)
    first_in_group = np.full(len(rows), -1)
    groups, first = np.unique(group[:known], return_index=True)
    first_in_group[groups] = first
    found: Int64 = first_in_group[group[known:]]
    return found


def image_reader(shards: ShardSet) -> ReadImage:
    """Return a function that reads the encoded image of a number in packed order."""

    def read(number: int) -> UInt8:
        shard, row = shards.locate(number)
        return shards.read(int(shard), int(row))

    return read


def identical_pairs(rows: Records) -> Pairs:
    """Pair every image with the first one that has the same bytes; `rows` (n,) are PICTURE."""
    first = _first_of_each(np.column_stack([rows["content"], rows["whole"]]))
    second = np.flatnonzero(first != np.arange(len(rows)))
    return Pairs(first[second], second, np.zeros_like(second), np.ones(len(second)), np.zeros(len(second), np.bool_))


def near_pairs(rows: Records, read: ReadImage, workers: Workers = HERE, known: int = 0) -> Pairs:
    """Return the pairs of different pictures that are near by both hash and correlation.

    First the whole images are compared, then the center squares of those that no pair connects yet. Of identical
    images, and of images with equal hashes, the first represents the others. So a thousand blank plates make a
    thousand pairs, not half a million. The result does not depend on the number of workers.

    Args:
        rows: (n,) PICTURE of the images
        read: reads an image
        workers: decode and compare
        known: the first so many images are not compared with each other
    """
    identical = identical_pairs(rows)
    pictures = np.setdiff1d(np.arange(len(rows)), identical.second)
    whole = _confirmed(_candidates(rows, "whole", pictures, known), read, workers)
    group = connected(len(rows), identical.joined(whole))
    center = _candidates(rows, "center", pictures, known)
    center = center.chosen(group[center.first] != group[center.second])
    return whole.joined(_confirmed(center, read, workers))


def _candidates(rows: Records, part: str, pictures: Int64, known: int) -> Pairs:
    """Return the pairs whose hashes of the whole images, or of the center squares, are near; not yet correlated."""
    hashes = rows[part][pictures]
    first_of_hash = _first_of_each(hashes)
    representatives = np.unique(first_of_hash)
    others = np.flatnonzero(first_of_hash != np.arange(len(pictures)))
    near, distance = pairs_within(hashes[representatives], MAX_HASH_DISTANCE)
    first = pictures[np.concatenate([first_of_hash[others], representatives[near[:, 0]]])]
    second = pictures[np.concatenate([others, representatives[near[:, 1]]])]
    count = len(first)
    pairs = Pairs(
        first,
        second,
        np.concatenate([np.zeros_like(others), distance]),
        np.zeros(count),
        np.full(count, part == "center"),
    )
    return pairs.chosen(second >= known)


def connected(images: int, pairs: Pairs) -> Int64:
    """Return the number of each image's group (images,), where pairs connect the images of a group."""
    edges = coo_array((np.ones(len(pairs.first), np.int8), (pairs.first, pairs.second)), shape=(images, images))
    return connected_components(edges, directed=False)[1].astype(np.int64)


def _first_of_each(values: UInt64) -> Int64:
    """Return for each value of (n,) or (n, k) the position of the first equal one (n,)."""
    _, first, inverse = np.unique(values, axis=0, return_index=True, return_inverse=True)
    return first[inverse.reshape(-1)].astype(np.int64)


def _confirmed(pairs: Pairs, read: ReadImage, workers: Workers) -> Pairs:
    """Return the pairs whose thumbnails correlate; reads here, decodes and compares in the workers."""
    count = len(pairs.first)
    numbers = zip(pairs.first.tolist(), pairs.second.tolist(), pairs.center.tolist(), strict=True)
    encoded = ((read(first), read(second), center) for first, second, center in numbers)
    with closing(workers.map(_correlation, encoded, count, _PAIRS_A_TASK)) as results:
        compared = progress(results, "comparing pairs", total=count, unit="pair") if count else results
        measured = np.array(list(compared), np.float64)
    return pairs._replace(correlation=measured).chosen(measured >= MIN_CORRELATION)


def _correlation(encoded: tuple[UInt8, UInt8, bool]) -> float:
    first, second, center = encoded
    reduced = center_thumbnail if center else thumbnail
    return correlation(reduced(decode_packed(first)), reduced(decode_packed(second)))
