"""`sternum verify`: shards re-read against their manifest, down to every image."""

import json
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO, Final

import numpy as np
import numpy.typing as npt

from infra.errors import UserError
from infra.files import sha256_file
from infra.log import progress
from infra.parallel import ordered_map, worker_count
from sharding.format.manifest import NAME, Manifest, Shard, read_index
from sharding.format.writer import sample_identity
from sharding.images.encode import ImageRejected, decode
from sharding.reading.manifests import read_manifest

_MAGIC: Final = {"jpg": b"\xff\xd8\xff", "png": b"\x89PNG\r\n\x1a\n"}
_NO_ROWS: Final[npt.NDArray[np.uint64]] = np.empty((0, 2), np.uint64)


def check_sizes(sizes: dict[str, int], manifest: Manifest) -> list[str]:
    """Return what differs in names and sizes in bytes alone: quick, but blind to changed bytes."""
    expected = {NAME: None} | {shard.name: shard.size_bytes for shard in manifest.shards}
    expected |= {shard.index_name: None for shard in manifest.shards}
    differences = [f"{name} is missing" for name in expected if name not in sizes]
    differences += [f"{name} is not in {NAME}" for name in sorted(sizes) if name not in expected]
    for name, size_bytes in expected.items():
        if size_bytes is not None and sizes.get(name, size_bytes) != size_bytes:
            differences.append(f"{name} has {sizes[name]} bytes, not {size_bytes}")
    return differences


def verify(folder: Path, workers: int = 0) -> list[str]:
    """Return every difference between a folder of shards and its manifest; empty means whole.

    Compares names, sizes, sha256 of shards and indexes, the tars' members with the index, each member's crc32; decodes
    each image; and holds counts, unique keys, and patients that stand in one fraction tier only against the whole
    dataset. Raises UserError when `folder` holds no readable manifest.
    """
    manifest = read_manifest(folder)
    differences = check_sizes({path.name: path.stat().st_size for path in folder.iterdir()}, manifest)
    check = partial(_check_shard, folder, manifest.dataset)
    shards = [shard for shard in manifest.shards if (folder / shard.name).is_file()]
    identities = []
    with closing(ordered_map(check, shards, worker_count(workers, len(shards)))) as results:
        for result in progress(results, "verifying", total=len(shards), unit="shard"):
            differences += result.differences
            identities.append(result.identities)
    if not differences:
        differences += _check_dataset(manifest, identities)
    return differences


@dataclass(frozen=True)
class _ShardResult:
    """What is wrong with a shard, and its samples' and patients' identities (samples, 2)."""

    differences: list[str]
    identities: npt.NDArray[np.uint64]


class _Differs(Exception):
    """A sample is not as the index says; the message says how."""


def _check_shard(folder: Path, dataset: str, shard: Shard) -> _ShardResult:
    differences = []
    path = folder / shard.name
    if sha256_file(path) != shard.sha256:
        differences.append(f"{shard.name} has another sha256 than {NAME} says")
    try:
        rows = read_index(folder, shard)
    except UserError as error:
        return _ShardResult([*differences, str(error)], _NO_ROWS)
    if len(rows) != shard.samples:
        differences.append(f"{shard.index_name} has {len(rows)} samples, not {shard.samples}")
    with path.open("rb") as file:
        damaged = list(_damaged_samples(file, rows, dataset, shard.split))
    if damaged:
        differences.append(f"{shard.name}: {len(damaged)} of {len(rows)} samples differ; the first: {damaged[0]}")
    return _ShardResult(differences, np.stack([rows["sample"], rows["patient"]], axis=1))


def _damaged_samples(file: BinaryIO, rows: npt.NDArray[np.void], dataset: str, split: str | None) -> Iterator[str]:
    """Yield one line for each sample that is not as its index row says; the rows must cover the tar without a gap."""
    end = 0
    for number, row in enumerate(rows):
        try:
            _require(int(row["image_offset"]) == end + tarfile.BLOCKSIZE, "its image is not where the one before ends")
            name, image = _read_member(file, *(int(row[f"image_{what}"]) for what in ("offset", "bytes", "crc32")))
            meta_name, content = _read_member(
                file, *(int(row[f"meta_{what}"]) for what in ("offset", "bytes", "crc32"))
            )
            key, _, extension = name.rpartition(".")
            _require(extension in _MAGIC and meta_name == f"{key}.json", f"members {name} and {meta_name}")
            _require(image.startswith(_MAGIC[extension]), f"{name} is another format than its name says")
            _require(sample_identity(dataset, key) == row["sample"], f"key {key} is not the index's")
            _require(json.loads(content)["split"] == split, f"{meta_name} has another split than the shard")
            height_width = decode(image)[0].size[::-1]
            _require(height_width == (row["height"], row["width"]), f"{name} has another size than the index says")
        except (_Differs, ImageRejected, ValueError, LookupError, TypeError) as error:
            yield f"number {number}: {error}"
        end = _padded_end(int(row["meta_offset"]), int(row["meta_bytes"]))
    file.seek(end)
    if file.read().strip(b"\0"):
        yield f"number {len(rows)}: it is not in the index"


def _read_member(file: BinaryIO, offset: int, size_bytes: int, crc32: int) -> tuple[str, bytes]:
    """Return a tar member's name and content; raises _Differs unless its header and checksum are right."""
    file.seek(offset - tarfile.BLOCKSIZE)
    try:
        header = tarfile.TarInfo.frombuf(file.read(tarfile.BLOCKSIZE), "utf-8", "strict")
    except tarfile.HeaderError as error:
        raise _Differs(f"tar header at byte {offset - tarfile.BLOCKSIZE}: {error}") from error
    content = file.read(size_bytes)
    _require(header.isreg() and header.size == size_bytes, f"{header.name} is not a file of {size_bytes} bytes")
    _require(len(content) == size_bytes and zlib.crc32(content) == crc32, f"{header.name} has other bytes")
    return header.name, content


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise _Differs(message)


def _padded_end(offset: int, size_bytes: int) -> int:
    return offset + size_bytes + -size_bytes % tarfile.BLOCKSIZE


def _check_dataset(manifest: Manifest, identities: list[npt.NDArray[np.uint64]]) -> list[str]:
    """Check what holds over all shards: counts, unique keys, and tiers that share no patient."""
    everything = np.concatenate([_NO_ROWS, *identities])
    samples, patients = len(everything), len(np.unique(everything[:, 1]))
    differences = []
    if len(np.unique(everything[:, 0])) != samples:
        differences.append(f"{samples - len(np.unique(everything[:, 0]))} samples have a key that another has too")
    if patients != manifest.patients:
        differences.append(f"the shards hold {patients} patients, {NAME} says {manifest.patients}")
    tiers = np.repeat([shard.tier_percent for shard in manifest.shards], [len(rows) for rows in identities])
    pairs = np.unique(np.stack([everything[:, 1], tiers.astype(np.uint64)], axis=1), axis=0)
    if len(pairs) != patients:
        differences.append(f"{len(pairs) - patients} patients stand in two fraction tiers")
    return differences
