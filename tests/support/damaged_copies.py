"""Copies of packed folders in which one image is damaged, as if it had been packed so."""

import shutil
import zlib
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import numpy as np

from sharding.format.manifest import read_index
from sharding.reading.manifests import read_manifest
from sharding.reading.order import Positions
from sharding.reading.shard_set import ShardSet
from tests.support.manifests import write_manifest


def copy_with(
    packed: Path, to: Path, shards: ShardSet, bad: Positions, change: Callable[[bytearray], None]
) -> ShardSet:
    """Copy a packed folder with one image replaced; size, checksums and manifest match the new bytes."""
    shutil.copytree(packed, to)
    shard, row = int(bad.shard[0]), int(bad.row[0])
    manifest, entry = read_manifest(to), shards.shards[shard]
    rows = read_index(to, entry).copy()
    start, size = int(rows[row]["image_offset"]), int(rows[row]["image_bytes"])
    tar = bytearray((to / entry.name).read_bytes())
    image = tar[start : start + size]
    change(image)
    tar[start : start + size] = image
    rows[row]["image_crc32"] = zlib.crc32(image)
    (to / entry.name).write_bytes(tar)
    np.save(to / entry.index_name, rows)
    changed = replace(
        entry,
        sha256=sha256(tar).hexdigest(),
        index_sha256=sha256((to / entry.index_name).read_bytes()).hexdigest(),
    )
    write_manifest(to, replace(manifest, shards=[changed if old == entry else old for old in manifest.shards]))
    return ShardSet([to])


def without_end(image: bytearray) -> None:
    """Blank the marker of the end."""
    image[-2:] = b"\0\0"


def without_quantization(image: bytearray) -> None:
    """Turn the marker of the quantization table into that of application data."""
    image[image.index(b"\xff\xdb") + 1] = 0xEF
