"""Groups of images that no split may divide: those of one patient, and those that show the same picture."""

from pathlib import Path

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from evaluation.data.features import load_stored, store
from evaluation.data.joined_sets import ProbedSet
from infra.arrays import Int64
from sharding.auditing.duplicates import near_duplicate_groups


def image_groups(probed: ProbedSet, folder: Path) -> Int64:
    """Return (N,) one code for all samples that are connected by a patient or by near-identical images.

    Args:
        probed: the set, or the two joined sets
        folder: folder that keeps the near-identical images
    """
    pictures = picture_groups(probed, folder)
    # A graph whose nodes are the samples, then the patients, then the groups of near-identical images.
    count = len(pictures)
    samples = np.tile(np.arange(count), 2)
    neighbors = np.concatenate([count + probed.patients, 2 * count + np.unique(pictures, return_inverse=True)[1]])
    edges = coo_array((np.ones(len(samples), np.int8), (samples, neighbors)), shape=(3 * count, 3 * count))
    components: Int64 = connected_components(edges, directed=False)[1][:count].astype(np.int64)
    return components


def picture_groups(probed: ProbedSet, folder: Path) -> Int64:
    """Return (N,) one code for all samples that show the same picture, exactly or nearly.

    Args:
        probed: the set, or the two joined sets
        folder: folder that keeps the codes
    """
    ids = probed.samples.ids
    path = folder / f"{probed.identity[:32]}-near-duplicates-2.safetensors"
    groups: Int64 | None = load_stored(path, ids, np.int64)
    if groups is None:
        packed_ids, groups = near_duplicate_groups(probed.locations, fetch=probed.shards.fetch)
        assert np.array_equal(packed_ids, ids), "both are in packed order"
        store(path, groups, ids)
    return groups
