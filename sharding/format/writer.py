"""Shards: WebDataset tars written in one pass, each with an index of its samples."""

import hashlib
import tarfile
import zlib
from io import BytesIO
from pathlib import Path
from typing import Final, NamedTuple

import msgspec
import numpy as np

from infra.arrays import Records
from infra.rng import stable_hash
from sharding.format.manifest import INDEX_ROW, Shard
from sharding.format.sample import Sample
from sharding.images.encode import EncodedImage
from sharding.images.fingerprint import FINGERPRINT

_END: Final = bytes(2 * tarfile.BLOCKSIZE)


class TarSample(NamedTuple):
    """A sample in the bytes of a tar, made by the process that encodes it, so that the writer only appends.

    Attributes:
        members: KEY.jpg (or .png) and KEY.json with their headers and padding
        row: the bytes of its INDEX_ROW, with offsets from the start of `members`
        fingerprint: FINGERPRINT of its pixels
        source_bytes: size of the source file
        pixels: number of pixels
        pixel_sum: sum over the 8-bit pixels before compression
        pixel_square_sum: sum of squares over the 8-bit pixels before compression
    """

    members: bytes
    row: bytes
    fingerprint: bytes
    source_bytes: int
    pixels: int
    pixel_sum: int
    pixel_square_sum: int


def sample_identity(name: str, key: str) -> int:
    """Return the 64-bit identity of a sample in the index; `name` is that of the set."""
    return stable_hash(f"{name}/{key}")


def patient_identity(name: str, patient: str) -> int:
    """Return the 64-bit identity of a patient in the index; `name` is that of the set."""
    return stable_hash(f"{name}/{patient}")


def tar_sample(name: str, sample: Sample, image: EncodedImage) -> TarSample:
    """Return a sample's members, its index row and its fingerprint; `name` is that of the set.

    In the index, each sample without a study is another study, so that nothing pairs images of different studies.
    """
    source = {"source_height": image.source_height, "source_width": image.source_width}
    metadata = msgspec.json.encode(sample.metadata() | source)
    image_member = _member(f"{sample.key}.{image.extension}", image.content)
    study = sample.key if sample.study is None else sample.study
    row = (
        sample_identity(name, sample.key),
        patient_identity(name, sample.patient),
        stable_hash(f"{name}/{sample.patient}/{study}"),
        tarfile.BLOCKSIZE,
        len(image.content),
        zlib.crc32(image.content),
        len(image_member) + tarfile.BLOCKSIZE,
        len(metadata),
        zlib.crc32(metadata),
        image.height,
        image.width,
    )
    return TarSample(
        members=image_member + _member(f"{sample.key}.json", metadata),
        row=np.array([row], INDEX_ROW).tobytes(),
        fingerprint=image.fingerprint,
        source_bytes=image.source_bytes,
        pixels=image.height * image.width,
        pixel_sum=image.pixel_sum,
        pixel_square_sum=image.pixel_square_sum,
    )


class ShardWriter:
    """Writes NAME.tar, NAME.index.npy and NAME.fingerprints.npy, whose bytes depend only on the samples.

    Attributes:
        path: the tar
        split: the official split of its samples
        tier_percent: the fraction tier of its samples
        samples: the number of samples so far
    """

    def __init__(self, path: Path, split: str | None, tier_percent: int) -> None:
        """Create the tar."""
        self.path, self.split, self.tier_percent = path, split, tier_percent
        self.samples = 0
        self._file = path.open("wb")
        self._hash = hashlib.sha256()
        self._size_bytes = 0
        self._rows: list[bytes] = []
        self._fingerprints: list[bytes] = []
        self._starts: list[int] = []

    def close(self) -> None:
        """Close the file, if packing is interrupted."""
        self._file.close()

    def size_with(self, sample: TarSample) -> int:
        """Return the size in bytes that the finished tar would have with this sample added."""
        return _rounded_up(self._size_bytes + len(sample.members) + len(_END), tarfile.RECORDSIZE)

    def add(self, sample: TarSample) -> None:
        """Append a sample."""
        self._rows.append(sample.row)
        self._fingerprints.append(sample.fingerprint)
        self._starts.append(self._size_bytes)
        self._write(sample.members)
        self.samples += 1

    def finish(self) -> Shard:
        """End the tar, write index and fingerprints, and return the shard's entry for the manifest."""
        self._write(_END)
        self._write(bytes(-self._size_bytes % tarfile.RECORDSIZE))
        self._file.close()
        rows = np.frombuffer(bytearray().join(self._rows), INDEX_ROW)
        for offset in ("image_offset", "meta_offset"):
            rows[offset] += np.array(self._starts, np.uint64)
        index = _npy(rows)
        fingerprints = _npy(np.frombuffer(b"".join(self._fingerprints), FINGERPRINT))
        shard = Shard(
            name=self.path.name,
            samples=self.samples,
            size_bytes=self._size_bytes,
            sha256=self._hash.hexdigest(),
            index_sha256=hashlib.sha256(index).hexdigest(),
            tier_percent=self.tier_percent,
            split=self.split,
            fingerprints_sha256=hashlib.sha256(fingerprints).hexdigest(),
        )
        self.path.with_name(shard.index_name).write_bytes(index)
        self.path.with_name(shard.fingerprints_name).write_bytes(fingerprints)
        return shard

    def _write(self, content: bytes) -> None:
        self._file.write(content)
        self._hash.update(content)
        self._size_bytes += len(content)


def _npy(rows: Records) -> bytes:
    """Return the content of a file with these rows."""
    file = BytesIO()
    np.lib.format.write_array(file, rows, version=(1, 0))
    return file.getvalue()


def _member(name: str, content: bytes) -> bytes:
    """Return the bytes of one regular file in a tar."""
    header = tarfile.TarInfo(name)  # mtime, uid and gid are 0 and the mode is 0644 for every user
    header.size = len(content)
    return header.tobuf(tarfile.USTAR_FORMAT) + content + bytes(-len(content) % tarfile.BLOCKSIZE)


def _rounded_up(size_bytes: int, block_bytes: int) -> int:
    return -(-size_bytes // block_bytes) * block_bytes
