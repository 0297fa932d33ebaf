"""`sternum verify`: compares packed folders with their manifests, down to every image."""

import tarfile
import zlib
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import BinaryIO, Final

import numpy as np

from infra.arrays import Records, UInt64
from infra.errors import UserError
from infra.log import progress
from infra.parallel.process_map import ordered_map, worker_count
from infra.storage.files import sha256_file
from infra.storage.json_files import decode_json
from sharding.format.label_counts import LabelCounts, count_labels, total_labels
from sharding.format.manifest import MANIFEST_NAME, Manifest, Shard, read_fingerprints, read_index, require_fitting
from sharding.format.sample import SampleMetadata
from sharding.format.writer import sample_identity
from sharding.images.encode import ImageRejected, decode
from sharding.images.file_formats import SIGNATURES
from sharding.reading.manifests import read_manifest

Labels = dict[str, int | None]

_NO_IDENTITIES: Final[UInt64] = np.empty((0, 2), np.uint64)


def check_sizes(sizes: dict[str, int], manifest: Manifest) -> list[str]:
    """Return the differences in names and sizes: fast, but it misses changed bytes.

    Args:
        sizes: size in bytes of each file of the folder, by name
        manifest: manifest of the folder
    """
    expected = {MANIFEST_NAME: None} | {shard.name: shard.size_bytes for shard in manifest.shards}
    expected |= {name: None for shard in manifest.shards for name in shard.companions}
    differences = [f"{name} is missing" for name in expected if name not in sizes]
    differences += [f"{name} is not in {MANIFEST_NAME}" for name in sorted(sizes) if name not in expected]
    for name, size_bytes in expected.items():
        if size_bytes is not None and sizes.get(name, size_bytes) != size_bytes:
            differences.append(f"{name} has {sizes[name]} bytes, not {size_bytes}")
    return differences


def verify(folder: Path, workers: int = 0) -> list[str]:
    """Return every difference between a folder of shards and its manifest; an empty list means that it is whole.

    Compares names, sizes, the sha256 of shards and indexes, the tars' members with the index, and each member's
    crc32; decodes each image; and checks over the whole dataset that counts are right, also those of the labels, keys
    are unique, and each patient is in one fraction tier only.

    Args:
        folder: the packed folder
        workers: number of reading processes; 0 means one for each CPU

    Raises:
        UserError: if `folder` has no readable manifest
    """
    manifest = read_manifest(folder)
    paths = sorted(folder.iterdir())
    differences = [f"{path.name} is a link to nothing" for path in paths if not path.exists()]
    differences += check_sizes({path.name: path.stat().st_size for path in paths if path.exists()}, manifest)
    check = partial(_check_shard, folder, manifest.name)
    shards = [shard for shard in manifest.shards if (folder / shard.name).is_file()]
    whole: list[_ShardResult] = []
    with closing(ordered_map(check, shards, worker_count(workers, len(shards)))) as results:
        for result in progress(results, "verifying", total=len(shards), unit="shard"):
            differences += result.differences
            whole.append(result)
    if not differences:
        differences += _check_dataset(manifest, whole)
    return differences


@dataclass(frozen=True)
class _ShardResult:
    """The differences of a shard, the identities of its samples and patients (samples, 2), and its labels."""

    differences: list[str]
    identities: UInt64 = field(default_factory=_NO_IDENTITIES.copy)
    labels: dict[str, LabelCounts] = field(default_factory=dict)


class _Difference(Exception):
    """A sample does not match the index; the message names the difference."""


def _check_shard(folder: Path, name: str, shard: Shard) -> _ShardResult:
    differences = []
    path = folder / shard.name
    if sha256_file(path) != shard.sha256:
        differences.append(f"{shard.name} does not match its sha256 in {MANIFEST_NAME}")
    try:
        read_fingerprints(folder, shard)
    except UserError as error:
        differences.append(str(error))
    try:
        rows = read_index(folder, shard)
        require_fitting(rows, shard, str(folder / shard.index_name))
    except UserError as error:
        return _ShardResult([*differences, str(error)])
    labels: list[Labels] = []
    with path.open("rb") as file:
        damaged = list(_damaged_samples(file, rows, name, shard.split, labels))
    if damaged:
        differences.append(f"{shard.name}: {len(damaged)} of {len(rows)} samples differ; the first: {damaged[0]}")
    return _ShardResult(differences, np.stack([rows["sample"], rows["patient"]], axis=1), count_labels(labels))


def _damaged_samples(
    file: BinaryIO, rows: Records, set_name: str, split: str | None, labels: list[Labels]
) -> Iterator[str]:
    """Yield one line for each sample that does not match its index row; the rows must cover the tar without a gap.

    The labels of all others are added to `labels`.
    """
    end = 0
    for number, row in enumerate(rows):
        try:
            starts_at_end = int(row["image_offset"]) == end + tarfile.BLOCKSIZE
            _require(starts_at_end, "its image does not start where the sample before ends")
            fields = ("offset", "bytes", "crc32")
            name, image = _read_member(file, *(int(row[f"image_{field}"]) for field in fields))
            meta_name, content = _read_member(file, *(int(row[f"meta_{field}"]) for field in fields))
            key, _, extension = name.rpartition(".")
            _require(extension in SIGNATURES and meta_name == f"{key}.json", f"members {name} and {meta_name}")
            _require(image.startswith(SIGNATURES[extension]), f"the format of {name} does not match its extension")
            _require(sample_identity(set_name, key) == row["sample"], f"key {key} is not the key in the index")
            metadata = decode_json(content, SampleMetadata)
            _require(metadata["split"] == split, f"{meta_name} does not have the shard's split")
            height_width = decode(image)[0].size[::-1]
            _require(height_width == (row["height"], row["width"]), f"{name} does not have its size in the index")
            labels.append(metadata["labels"])
        except (_Difference, ImageRejected, ValueError, LookupError, TypeError) as error:
            yield f"sample {number}: {error}"
        end = _padded_end(int(row["meta_offset"]), int(row["meta_bytes"]))
    file.seek(end)
    if file.read().strip(b"\0"):
        yield f"sample {len(rows)}: it is not in the index"


def _read_member(file: BinaryIO, offset: int, size_bytes: int, crc32: int) -> tuple[str, bytes]:
    """Return a tar member's name and content; raises _Difference unless its header and checksum are right."""
    file.seek(offset - tarfile.BLOCKSIZE)
    try:
        header = tarfile.TarInfo.frombuf(file.read(tarfile.BLOCKSIZE), "utf-8", "strict")
    except tarfile.HeaderError as error:
        raise _Difference(f"tar header at byte {offset - tarfile.BLOCKSIZE}: {error}") from error
    content = file.read(size_bytes)
    _require(header.isreg() and header.size == size_bytes, f"{header.name} is not a file of {size_bytes} bytes")
    _require(len(content) == size_bytes and zlib.crc32(content) == crc32, f"{header.name} does not match its checksum")
    return header.name, content


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise _Difference(message)


def _padded_end(offset: int, size_bytes: int) -> int:
    return offset + size_bytes + -size_bytes % tarfile.BLOCKSIZE


def _check_dataset(manifest: Manifest, shards: list[_ShardResult]) -> list[str]:
    """Check the dataset over all shards: counts, unique keys, and tiers that share no patient."""
    identities = [shard.identities for shard in shards]
    all_identities = np.concatenate([_NO_IDENTITIES, *identities])
    samples, patients = len(all_identities), len(np.unique(all_identities[:, 1]))
    differences = []
    if (duplicates := samples - len(np.unique(all_identities[:, 0]))) > 0:
        differences.append(f"{duplicates} samples have the key of another sample")
    if patients != manifest.patients:
        differences.append(f"the shards hold {patients} patients, {MANIFEST_NAME} says {manifest.patients}")
    if manifest.labels is not None and total_labels(shard.labels for shard in shards) != manifest.labels:
        differences.append(f"the shards hold other labels than {MANIFEST_NAME} counts")
    tiers = np.repeat([shard.tier_percent for shard in manifest.shards], [len(rows) for rows in identities])
    pairs = np.unique(np.stack([all_identities[:, 1], tiers.astype(np.uint64)], axis=1), axis=0)
    if len(pairs) != patients:
        differences.append(f"{len(pairs) - patients} patients are in two fraction tiers")
    return differences
