"""One open shard: reads samples from its tar and checks every byte against the index."""

import os
import threading
import zlib
from collections.abc import Callable
from pathlib import Path
from tarfile import BLOCKSIZE, HeaderError, TarInfo
from typing import TypeVar

import numpy as np

from infra.arrays import Records, UInt8
from infra.errors import RunFailed
from infra.storage.json_files import BadJson, decode_json
from sharding.format.sample import SampleMetadata
from sharding.reading.cache import OpenFile

T = TypeVar("T")


class SampleDamaged(RunFailed):
    """The bytes of a sample cannot be read, or are not the packed ones."""


class OpenShard:
    """An open tar with its index, safe to use from several threads; closes itself when its last reference is gone.

    Attributes:
        rows: (samples,) INDEX_ROW, in the order of the tar
    """

    def __init__(
        self,
        rows: Records,
        tar: OpenFile,
        name: str,
        hint: str,
        renew: Callable[[], OpenFile] | None = None,
    ) -> None:
        """Use an open tar.

        Args:
            rows: the index of the shard
            tar: the tar; a file of the cache stays there while this shard is open
            name: the shard's location, for messages
            hint: advice for the user if bytes are damaged
            renew: opens the tar with its content compared with the manifest, after a sample was damaged; raises
                RunFailed if that is impossible
        """
        self.rows = rows
        self._file, self._name, self._hint, self._renew = tar, name, hint, renew
        self._lock = threading.Lock()

    def read(self, row: int) -> UInt8:
        """Return the encoded image (bytes,) of a sample; raises SampleDamaged."""
        return self._repaired(lambda file: self._read(file, row, "image"))

    def metadata(self, row: int) -> SampleMetadata:
        """Return a sample's metadata; raises SampleDamaged."""
        content = self._repaired(lambda file: self._read(file, row, "meta"))
        try:
            return decode_json(content.tobytes(), SampleMetadata)
        except BadJson as error:
            raise SampleDamaged(
                f"{self._sample(row)} has unusable metadata: {error}; pack the dataset again"
            ) from error

    def key(self, row: int) -> str:
        """Return the key of a sample, which is the name of its members in the tar; raises SampleDamaged."""
        return self._repaired(lambda file: self._read_key(file, row))

    def _repaired(self, read: Callable[[OpenFile], T]) -> T:
        """Return what `read` reads from the tar; if that is damaged, from the renewed tar."""
        try:
            return read(self._file)
        except SampleDamaged:
            self._renew_once()
        return read(self._file)

    def _renew_once(self) -> None:
        with self._lock:
            renew, self._renew = self._renew, None
            if renew is None:
                return
            try:
                self._file = renew()
            except RunFailed as error:
                self._hint = f"its copy in the cache is damaged, and {error}"

    def _read_key(self, file: OpenFile, row: int) -> str:
        header = os.pread(file.descriptor, BLOCKSIZE, int(self.rows[row]["image_offset"]) - BLOCKSIZE)
        try:
            return Path(TarInfo.frombuf(header, "utf-8", "strict").name).stem
        except HeaderError as error:
            raise SampleDamaged(f"{self._sample(row)} has a damaged tar header: {error}") from error

    def _read(self, file: OpenFile, row: int, member: str) -> UInt8:
        offset, size_bytes, crc32 = (int(self.rows[row][f"{member}_{field}"]) for field in ("offset", "bytes", "crc32"))
        content = np.empty(size_bytes, np.uint8)
        try:
            count = os.preadv(file.descriptor, [content.data], offset)
        except OSError as error:
            raise SampleDamaged(f"{self._sample(row)} cannot be read: {error.strerror}") from error
        if count != size_bytes or zlib.crc32(content.data) != crc32:
            raise SampleDamaged(f"{self._sample(row)} does not match its checksum; {self._hint}")
        return content

    def _sample(self, row: int) -> str:
        return f"sample {row} of {self._name}"
