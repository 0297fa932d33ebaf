"""One shard: a WebDataset tar written forward, with the index of its samples beside it."""

import hashlib
import tarfile
import zlib
from io import BytesIO
from pathlib import Path
from typing import Final

import msgspec
import numpy as np

from infra.rng import stable_hash
from sharding.encode import EncodedImage
from sharding.manifest import INDEX_ROW, Shard
from sharding.sample import Sample

_END: Final = bytes(2 * tarfile.BLOCKSIZE)


def metadata_json(sample: Sample, image: EncodedImage) -> bytes:
    """Return the content of a sample's JSON member."""
    source = {"source_height": image.source_height, "source_width": image.source_width}
    return msgspec.json.encode(sample.metadata() | source)


def sample_identity(dataset: str, key: str) -> int:
    """Return the 64-bit identity of a sample in the index."""
    return stable_hash(f"{dataset}/{key}")


class ShardWriter:
    """Writes NAME.tar and, beside it, NAME.index.npy; their bytes depend on the samples and nothing else.

    A sample without a study is a study of its own in the index, so that nobody pairs what may not belong together.
    """

    def __init__(self, path: Path, dataset: str, split: str | None, tier_percent: int) -> None:
        self.split, self.tier_percent = split, tier_percent
        self._path, self._dataset = path, dataset
        self._file = path.open("wb")
        self._hash = hashlib.sha256()
        self._size_bytes = 0
        self._rows: list[tuple[int, ...]] = []

    def close(self) -> None:
        """Close the file; for when packing is broken off."""
        self._file.close()

    def size_with(self, *members: bytes) -> int:
        """Return the size in bytes that the finished tar would have with these members added."""
        added = sum(tarfile.BLOCKSIZE + _rounded_up(len(content), tarfile.BLOCKSIZE) for content in members)
        return _rounded_up(self._size_bytes + added + len(_END), tarfile.RECORDSIZE)

    def add(self, sample: Sample, image: EncodedImage, metadata: bytes) -> None:
        """Append KEY.jpg and KEY.json."""
        image_offset = self._add_member(f"{sample.key}.jpg", image.jpeg)
        metadata_offset = self._add_member(f"{sample.key}.json", metadata)
        patient = f"{self._dataset}/{sample.patient}"
        self._rows.append(
            (
                sample_identity(self._dataset, sample.key),
                stable_hash(patient),
                stable_hash(f"{patient}/{sample.key if sample.study is None else sample.study}"),
                image_offset,
                len(image.jpeg),
                zlib.crc32(image.jpeg),
                metadata_offset,
                len(metadata),
                zlib.crc32(metadata),
                image.height,
                image.width,
            )
        )

    def finish(self) -> Shard:
        """End the tar, write the index, and return what the manifest says of them."""
        self._write(_END)
        self._write(bytes(-self._size_bytes % tarfile.RECORDSIZE))
        self._file.close()
        index = BytesIO()
        np.lib.format.write_array(index, np.array(self._rows, INDEX_ROW), version=(1, 0))
        shard = Shard(
            name=self._path.name,
            samples=len(self._rows),
            size_bytes=self._size_bytes,
            sha256=self._hash.hexdigest(),
            index_sha256=hashlib.sha256(index.getvalue()).hexdigest(),
            tier_percent=self.tier_percent,
            split=self.split,
        )
        self._path.with_name(shard.index_name).write_bytes(index.getvalue())
        return shard

    def _add_member(self, name: str, content: bytes) -> int:
        """Append one regular file and return the offset of its content."""
        header = tarfile.TarInfo(name)  # mtime, uid and gid are 0 and the mode is 0644, whoever packs
        header.size = len(content)
        self._write(header.tobuf(tarfile.USTAR_FORMAT))
        offset = self._size_bytes
        self._write(content)
        self._write(bytes(-len(content) % tarfile.BLOCKSIZE))
        return offset

    def _write(self, content: bytes) -> None:
        self._file.write(content)
        self._hash.update(content)
        self._size_bytes += len(content)


def _rounded_up(size_bytes: int, block_bytes: int) -> int:
    return -(-size_bytes // block_bytes) * block_bytes
