"""The samples of a dataset in packing order: records in a file, and 26 bytes per sample in memory."""

import hashlib
import os
import re
import tempfile
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import fields
from operator import attrgetter
from pathlib import Path
from typing import Final

import msgspec
import numpy as np

from infra.arrays import Int64, UInt8, UInt64
from infra.errors import UserError
from infra.rng import draw_uint64
from infra.storage.files import disk_errors
from sharding.datasets.files import ABSENT, IGNORED, NO_ROW, NOT_A_TAR, UNUSED_TABLE
from sharding.format.fractions import patient_tiers
from sharding.format.manifest import Rejection
from sharding.format.sample import Sample
from sharding.format.writer import patient_identity, sample_identity

_SPLIT_ORDER: Final = ("train", "val", "test", None)
_KEY: Final = re.compile(r"[A-Za-z0-9_-]{1,90}")  # with an extension it fits the name field of a ustar header
_FIELDS: Final = tuple(field.name for field in fields(Sample))
_VALUES: Final = attrgetter(*_FIELDS)
_NO_PART: Final = (ABSENT, IGNORED, NO_ROW, NOT_A_TAR, UNUSED_TABLE)  # files that come and go
_DRAWN_AT_ONCE: Final = 1 << 16  # bounds the memory of the draws


class Catalog:
    """The samples to pack, ordered by official split, tier, and a draw keyed on (seed, sample).

    The order does not depend on the reader's. Records are in a file without a name, which vanishes with its process;
    close the catalog to remove it earlier.

    Attributes:
        rejected: the rows and files that cannot be packed
        sha256: a hash of all items, whatever their order
        patients: (N,) the patients' identities, in packing order
    """

    def __init__(self, name: str, items: Iterable[Sample | Rejection], seed: int) -> None:
        """Read a whole dataset.

        Args:
            name: the name of the set, for its identities
            items: all its samples and rejections, in any order
            seed: the seed of order and tiers

        Raises:
            UserError: if two samples have the same key, or the folder for temporary files is full
        """
        self.rejected: list[Rejection] = []
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - closed by close
        samples, patients, splits, ends = array("Q"), array("Q"), bytearray(), array("Q", [0])
        try:
            for item in map(_checked, items):
                if isinstance(item, Rejection):
                    self.rejected.append(item)
                    continue
                record = _to_record(item)
                with disk_errors(Path(tempfile.gettempdir())):
                    self._file.write(record)
                samples.append(sample_identity(name, item.key))
                patients.append(patient_identity(name, item.patient))
                splits.append(_SPLIT_ORDER.index(item.split))
                ends.append(ends[-1] + len(record))
            with disk_errors(Path(tempfile.gettempdir())):
                self._file.flush()
            self._ends = np.array(ends, np.uint64)
            self._arrange(np.array(samples, np.uint64), np.array(patients, np.uint64), np.array(splits, np.uint8), seed)
        except BaseException:
            self.close()
            raise

    def __len__(self) -> int:
        return len(self._order)

    def close(self) -> None:
        """Remove the records."""
        self._file.close()

    def records(self, start: int) -> Iterator[bytes]:
        """Yield the samples from position `start` on, in the form that `from_record` decodes."""
        return map(self._record, self._order[start:])

    def samples(self) -> Iterator[Sample]:
        """Yield all samples, in packing order."""
        return map(from_record, self.records(0))

    def path(self, position: int) -> Path:
        """Return the path of the sample at a position."""
        return from_record(self._record(self._order[position])).path

    def group(self, position: int) -> tuple[str | None, int]:
        """Return the official split and the tier in percent of the sample at a position; a shard holds one group."""
        return _SPLIT_ORDER[self._splits[position]], int(self._tiers[position])

    def _arrange(self, samples: UInt64, patients: UInt64, splits: UInt8, seed: int) -> None:
        by_identity = np.argsort(samples, kind="stable")
        self._require_unique(samples, by_identity)
        self.sha256 = self._fingerprint(by_identity)
        tiers = patient_tiers(patients, seed)
        self._order = np.lexsort((samples, _draws(samples, seed), tiers, splits))
        self.patients: UInt64 = patients[self._order]
        self._splits = splits[self._order]
        self._tiers = tiers[self._order].astype(np.uint8)

    def _require_unique(self, samples: UInt64, by_identity: Int64) -> None:
        ordered = samples[by_identity]
        for position in np.flatnonzero(ordered[1:] == ordered[:-1])[:1]:
            first, second = (from_record(self._record(number)) for number in by_identity[position : position + 2])
            raise UserError(f"{first.path} and {second.path} have the same key, {second.key!r}; remove one of them")

    def _fingerprint(self, by_identity: Int64) -> str:
        digest = hashlib.sha256()
        for number in by_identity:
            digest.update(self._record(number))
        for rejection in sorted(self.rejected, key=attrgetter("path", "reason")):
            if rejection.reason not in _NO_PART:
                digest.update(msgspec.msgpack.encode(rejection))
        return digest.hexdigest()

    def _record(self, number: int) -> bytes:
        start, end = self._ends[number : number + 2].tolist()
        return os.pread(self._file.fileno(), end - start, start)


def from_record(record: bytes) -> Sample:
    """Return the sample in a catalog's record."""
    values = dict(zip(_FIELDS, msgspec.msgpack.decode(record), strict=False))
    member = values.get("member")
    return Sample(**values | {"path": Path(values["path"]), "member": tuple(member) if member else None})


def _to_record(sample: Sample) -> bytes:
    """Encode a sample; fields at the end that it does not have are left out, so that new ones change no older hash."""
    values = list(_VALUES(sample))
    while values[-1] is None:
        values.pop()
    return msgspec.msgpack.encode(values, enc_hook=Path.as_posix)


def _checked(item: Sample | Rejection) -> Sample | Rejection:
    path = _utf8(str(item.path))
    if isinstance(item, Rejection):
        return Rejection(path, item.reason)
    if path != str(item.path):
        return Rejection(path, "path is not UTF-8")
    if item.path.is_absolute() or ".." in item.path.parts:
        return Rejection(path, "path leads out of the dataset's root")
    if _KEY.fullmatch(item.key) is None:
        return Rejection(path, "name is not 1 to 90 letters, digits, _ and -")
    return item


def _utf8(path: str) -> str:
    """Return a path with U+FFFD for bytes that are not UTF-8, which Python represents as lone surrogates."""
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _draws(samples: UInt64, seed: int) -> UInt64:
    """Draw 64 bits for each sample (N,)."""
    blocks = [samples[i : i + _DRAWN_AT_ONCE] for i in range(0, len(samples), _DRAWN_AT_ONCE)]
    draws = [draw_uint64(seed, "pack-order", block, 0)[:, 0] for block in blocks]
    return np.concatenate([np.empty(0, np.uint64), *draws])
