"""What tells the pictures of packed images apart, without reading the images if they were packed with fingerprints."""

from collections.abc import Iterator
from contextlib import closing
from typing import Final, NamedTuple

import numpy as np
from PIL import Image

from infra.arrays import Records, UInt8
from infra.errors import RunFailed
from infra.log import progress
from infra.parallel.workers import HERE, Workers
from sharding.format.manifest import Shard
from sharding.images.encode import ImageRejected, decode
from sharding.images.fingerprint import FINGERPRINT
from sharding.images.perceptual import fingerprint_of
from sharding.reading.fetch import FetchConfig
from sharding.reading.location import Location
from sharding.reading.shard_set import ShardSet

# `content` is checksum and size of the encoded image; the others are those of FINGERPRINT.
PICTURE: Final = np.dtype([("content", "<u8"), *FINGERPRINT.descr])

_IMAGES_A_TASK: Final = 256


class _Task(NamedTuple):
    """Rows `first` to `last` of a folder's shard, and the settings to download it."""

    folder: Location
    fetch: FetchConfig | None
    shard: Shard
    first: int
    last: int


def pictures_of(shards: ShardSet, workers: Workers = HERE) -> Records:
    """Return the PICTURE rows (n,) of all images, in packed order; needs 72 bytes of memory per image.

    Shards that an older version packed have no fingerprints; their images are read and decoded.

    Args:
        shards: the images
        workers: read and decode

    Raises:
        UserError: if stored fingerprints do not match the manifest
        RunFailed: if an image is damaged, or a file cannot be downloaded
    """
    stored = [shards.fingerprints(number) for number in range(len(shards.shards))]
    tasks = [task for number, rows in enumerate(stored) if rows is None for task in _tasks(shards, number)]
    with closing(workers.map(_computed, tasks, len(tasks))) as results:
        computed = list(progress(results, "reading images", total=len(tasks), unit="batch") if tasks else results)
    parts = iter(computed)
    of_shard = [
        np.concatenate([next(parts) for _ in _tasks(shards, number)]) if rows is None else rows
        for number, rows in enumerate(stored)
    ]
    prints, index = np.concatenate(of_shard), shards.whole_index()
    rows = np.empty(shards.samples, PICTURE)
    rows["content"] = index["image_crc32"].astype(np.uint64) << np.uint64(32) | index["image_bytes"]
    rows["whole"], rows["center"] = prints["whole"], prints["center"]
    return rows


def decode_packed(content: UInt8) -> Image.Image:
    """Return a packed image; raises RunFailed if it cannot be decoded."""
    try:
        return decode(content.tobytes())[0]
    except ImageRejected as rejected:
        raise RunFailed(f"a packed image cannot be decoded: {rejected}; find it: sternum verify") from rejected


def _tasks(shards: ShardSet, number: int) -> Iterator[_Task]:
    shard = shards.shards[number]
    for first in range(0, shard.samples, _IMAGES_A_TASK):
        last = min(first + _IMAGES_A_TASK, shard.samples)
        yield _Task(shards.folders[number], shards.fetch, shard, first, last)


def _computed(task: _Task) -> Records:
    splits = () if task.shard.split is None else (task.shard.split,)  # other shards need not be there
    shards = ShardSet([task.folder], splits, task.shard.tier_percent, task.fetch)
    number = shards.shards.index(task.shard)
    images = (decode_packed(shards.read(number, row)) for row in range(task.first, task.last))
    return np.frombuffer(b"".join(map(fingerprint_of, images)), FINGERPRINT)
