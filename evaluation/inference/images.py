"""New images as encoded batches, with what identifies each of them."""

import hashlib
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Final, Protocol

import numpy as np

from infra.arrays import UInt8
from infra.errors import RunFailed, UserError, require
from infra.parallel.workers import Workers
from infra.urls import Location, scheme_of, shown
from sharding.datasets.image_files import DicomSet, ImageFile, PreparedImage, find_image_files, prepare
from sharding.format.manifest import INDEX_ROW, MANIFEST_NAME, PARTIAL, Rejection
from sharding.images.encoding import Encoding
from sharding.reading.fetch import FetchConfig
from sharding.reading.shard_set import ShardSet
from sharding.reading.stream import EncodedBatch, packed_batches

BATCHES_A_PART: Final = 8
CRASHED: Final = "decoding it ends the process"
_FILES_A_TASK: Final = 8


@dataclass(frozen=True)
class ImageRecord:
    """What identifies an image.

    Attributes:
        key: key of the sample in its set, or that which packing would give
        path: the file, as the user knows it; None for an image in shards, and where the path may name the patient
        patient: identity of the patient, 16 hexadecimal digits as in predictions.csv; None if unknown
        dataset: name of the set; None for image files of no set
        split: official split
        sha256: hash of the file, or of the encoded image in the shard
    """

    key: str
    path: str | None
    patient: str | None
    dataset: str | None
    split: str | None
    sha256: str


@dataclass
class Part:
    """Some images of a source, encoded; what is known of them grows while the batches are taken.

    Attributes:
        batches: the images; close it when done
        records: what identifies each image, in the order of the batches
        refused: the files that are no images
    """

    batches: Generator[EncodedBatch, None, None]
    records: list[ImageRecord]
    refused: list[Rejection]

    def name_of(self, position: int) -> str:
        """Name an image by its position, for messages."""
        record = self.records[position]
        return record.path or f"{record.key} of {record.dataset}"


class ImageSource(Protocol):
    """Images in a fixed order, divided into parts."""

    @property
    def names(self) -> Sequence[str]:
        """For each part, a hash of everything that its content depends on."""

    def parts(self, numbers: Sequence[int], workers: int) -> Iterator[Part]:
        """Yield the parts of these numbers, in ascending order; take all batches of one before the next.

        Args:
            numbers: numbers of parts
            workers: processes that prepare image files; 0 means one for each CPU
        """


class ShardImages:
    """The images of a packed folder, in packed order."""

    def __init__(self, location: Location, local_batch: int, batches_a_part: int, fetch: FetchConfig) -> None:
        """Read the manifest; raises UserError or RunFailed if it cannot be read."""
        self._shards, self._local_batch = ShardSet([location], fetch=fetch), local_batch
        self._name = self._shards.names[0]
        self._starts = range(0, self._shards.samples, local_batch * batches_a_part)

    @property
    def names(self) -> list[str]:
        """For each part, a hash of everything that its content depends on."""
        return [_hash(self._name, self._shards.identity, start, self._starts.step) for start in self._starts]

    def parts(self, numbers: Sequence[int], workers: int) -> Iterator[Part]:
        """Yield the parts of these numbers; shards hold prepared images."""
        for number in numbers:
            start = self._starts[number]
            records: list[ImageRecord] = []
            chosen = np.arange(start, min(start + self._starts.step, self._shards.samples))
            yield Part(
                self._batches(start, packed_batches(self._shards, self._local_batch, chosen), records), records, []
            )

    def _batches(
        self, start: int, batches: Generator[EncodedBatch, None, None], records: list[ImageRecord]
    ) -> Generator[EncodedBatch, None, None]:
        with closing(batches):
            for batch in batches:
                numbers = np.arange(start + len(records), start + len(records) + len(batch.encoded))
                places = zip(*(array.tolist() for array in self._shards.locate(numbers)), strict=True)
                records += [
                    ImageRecord(
                        key=self._shards.key(shard, row),
                        path=None,
                        patient=f"{index_row['patient']:016x}",
                        dataset=self._name,
                        split=self._shards.shards[shard].split,
                        sha256=hashlib.sha256(image.data).hexdigest(),
                    )
                    for (shard, row), index_row, image in zip(places, batch.rows, batch.encoded, strict=True)
                ]
                yield batch


class FileImages:
    """Image files, prepared as packing would."""

    def __init__(
        self,
        sources: Sequence[Path],
        encoding: Encoding,
        local_batch: int,
        batches_a_part: int,
        *,
        follow_links: bool = False,
        dicom_set: DicomSet | None = None,
    ) -> None:
        """List the files; raises UserError if there are none."""
        items = list(find_image_files(sources, follow_links=follow_links))
        self._files = [item for item in items if isinstance(item, ImageFile)]
        self.refused = [item for item in items if isinstance(item, Rejection)]
        self._prepare = partial(prepare, encoding=encoding, dicom_set=dicom_set)
        self._identity = f"{encoding} {dicom_set and (dicom_set.name, dicom_set.pseudonyms.fingerprint)}"
        self._local_batch, self._files_a_part = local_batch, local_batch * batches_a_part

    def require_own_keys(self) -> None:
        """Raise UserError if two files would have the same key, since they have one path below two folders."""
        first: dict[Path, Path] = {}
        for file in self._files:
            other = first.setdefault(file.below, file.path)
            require(other is file.path, f"{other} and {file.path} would have the same key; name the folder above both")

    @property
    def names(self) -> list[str]:
        """For each part, a hash of everything that its content depends on; a changed file has another time or size."""
        return [_hash(self._identity, *map(_version, files)) for files in self._chunks()]

    def parts(self, numbers: Sequence[int], workers: int) -> Iterator[Part]:
        """Yield the parts of these numbers; worker processes prepare files ahead."""
        chunks = [chunk for number, chunk in enumerate(self._chunks()) if number in set(numbers)]
        files = [file for chunk in chunks for file in chunk]
        with closing(Workers(workers).map(self._prepare, files, len(files), _FILES_A_TASK, _crashed)) as prepared:
            for chunk in chunks:
                records, refused = list[ImageRecord](), list[Rejection]()
                yield Part(self._batches(islice(prepared, len(chunk)), records, refused), records, refused)

    def _chunks(self) -> list[list[ImageFile]]:
        starts = range(0, len(self._files), self._files_a_part)
        return [self._files[start : start + self._files_a_part] for start in starts]

    def _batches(
        self, prepared: Iterable[PreparedImage | Rejection], records: list[ImageRecord], refused: list[Rejection]
    ) -> Generator[EncodedBatch, None, None]:
        waiting: list[PreparedImage] = []
        for item in prepared:
            if isinstance(item, Rejection):
                refused.append(item)
                continue
            waiting.append(item)
            if len(waiting) == self._local_batch:
                yield _encoded_batch(waiting, records)
                waiting = []
        if waiting:
            yield _encoded_batch(waiting, records)


def encoded_batch(contents: Sequence[bytes], heights: Sequence[int], widths: Sequence[int]) -> EncodedBatch:
    """Return encoded images, of which only the size is known, as a batch."""
    rows = np.zeros(len(contents), INDEX_ROW)
    rows["height"], rows["width"] = heights, widths
    encoded: list[UInt8] = [np.frombuffer(content, np.uint8) for content in contents]
    return EncodedBatch(0, encoded, rows, np.zeros(len(contents), np.int64), np.ones(len(contents), np.bool_))


def are_shards(source: Location) -> bool:
    """Return whether a source is a packed folder rather than image files: a URL, or a folder with a manifest."""
    return scheme_of(source) is not None or any((Path(source) / name).exists() for name in (MANIFEST_NAME, PARTIAL))


def require_one_kind(sources: Sequence[Location], what: str) -> bool:
    """Return whether all sources are shards; False if all are files or folders of files.

    Raises:
        UserError: if they are of both kinds
    """
    shards = [source for source in sources if are_shards(source)]
    require(
        len(shards) in (0, len(sources)),
        f"{what} names both shards ({', '.join(map(shown, shards[:2]))}) and image files; name one kind at a time",
    )
    return bool(shards)


def nothing_but_refused(refused: Sequence[Rejection]) -> RunFailed:
    """Return the error for a source of which no file could be used."""
    first = refused[0]
    return RunFailed(f"no file is an image that can be used; the first of {len(refused)}, {first.path}: {first.reason}")


def _encoded_batch(images: Sequence[PreparedImage], records: list[ImageRecord]) -> EncodedBatch:
    records += [
        ImageRecord(
            key=image.key,
            path=image.path,
            patient=None if image.patient is None else f"{image.patient:016x}",
            dataset=image.dataset,
            split=None,
            sha256=image.sha256,
        )
        for image in images
    ]
    return encoded_batch(
        [image.content for image in images], [image.height for image in images], [image.width for image in images]
    )


def _version(file: ImageFile) -> str:
    """Return a text that changes with the content of a file."""
    try:
        status = file.path.stat()
    except OSError as error:
        raise UserError(f"{file.path} cannot be read: {error.strerror}; name files that exist") from error
    return f"{file.path} {file.below} {status.st_size} {status.st_mtime_ns}"


def _crashed(file: ImageFile) -> Rejection:
    return Rejection(str(file.path), CRASHED)


def _hash(*values: object) -> str:
    return hashlib.sha256("\n".join(map(str, values)).encode(errors="surrogateescape")).hexdigest()
