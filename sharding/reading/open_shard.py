"""One open shard: reads samples from its tar and checks every byte against the index."""

import os
import zlib
from pathlib import Path
from tarfile import BLOCKSIZE, HeaderError, TarInfo
from typing import Any, cast

import msgspec
import numpy as np

from infra.arrays import Records, UInt8
from infra.errors import RunFailed
from sharding.reading.cache import PinnedFile


class SampleDamaged(RunFailed):
    """The bytes of a sample cannot be read, or are not the packed ones."""


class OpenShard:
    """An open tar with its index; closes itself when the last reference to it is gone.

    Attributes:
        rows: (samples,) INDEX_ROW, in the order of the tar
    """

    def __init__(self, rows: Records, tar: Path | PinnedFile, name: str, hint: str) -> None:
        """Open the tar.

        Args:
            rows: the index of the shard
            tar: a local file, or a file of the cache that stays there while this shard is open
            name: the shard's location, for messages
            hint: advice for the user if bytes are damaged

        Raises:
            OSError: if the local file cannot be opened
        """
        self.rows = rows
        self._name, self._hint = name, hint
        self._pinned = tar if isinstance(tar, PinnedFile) else None
        self._descriptor = tar.descriptor if isinstance(tar, PinnedFile) else os.open(tar, os.O_RDONLY)

    def __del__(self) -> None:
        if hasattr(self, "_descriptor") and self._pinned is None:
            os.close(self._descriptor)

    def read(self, row: int) -> UInt8:
        """Return the encoded image (bytes,) of a sample; raises SampleDamaged."""
        return self._read(row, "image")

    def metadata(self, row: int) -> dict[str, Any]:
        """Return a sample's metadata (patient, split, labels, ...); raises SampleDamaged."""
        return cast(dict[str, Any], msgspec.json.decode(self._read(row, "meta").tobytes()))

    def key(self, row: int) -> str:
        """Return the key of a sample, which is the name of its members in the tar; raises SampleDamaged."""
        header = os.pread(self._descriptor, BLOCKSIZE, int(self.rows[row]["image_offset"]) - BLOCKSIZE)
        try:
            return Path(TarInfo.frombuf(header, "utf-8", "strict").name).stem
        except HeaderError as error:
            raise SampleDamaged(f"{self._sample(row)} has a damaged tar header: {error}") from error

    def _read(self, row: int, member: str) -> UInt8:
        offset, size_bytes, crc32 = (int(self.rows[row][f"{member}_{field}"]) for field in ("offset", "bytes", "crc32"))
        content = np.empty(size_bytes, np.uint8)
        try:
            count = os.preadv(self._descriptor, [content.data], offset)
        except OSError as error:
            raise SampleDamaged(f"{self._sample(row)} cannot be read: {error.strerror}") from error
        if count != size_bytes or zlib.crc32(content.data) != crc32:
            raise SampleDamaged(f"{self._sample(row)} does not match its checksum; {self._hint}")
        return content

    def _sample(self, row: int) -> str:
        return f"sample {row} of {self._name}"
