"""A packing that may be broken off at any moment: what it is, and which shards it has finished."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final, TypeVar

import msgspec

from infra.errors import UserError, require
from sharding.format.manifest import NAME, PARTIAL, Manifest, Shard, decode_manifest, encode_manifest
from sharding.packing.destination import Destination
from sharding.packing.verify import check_sizes

Options = dict[str, int | float | str | bool | None]
T = TypeVar("T")

_NOTE: Final = f"{PARTIAL}/job.json"


@dataclass(frozen=True)
class Job:
    """All that the packed bytes depend on: dataset, options, and the versions of what encodes."""

    dataset: str
    options: Options
    made_by: str


@dataclass(frozen=True)
class FinishedShard:
    """A shard in its place, and what the manifest says of it.

    start, end: the positions in the catalogue that were dealt with from the shard before on.
    rejected: those of them that were not packed, each with its reason.
    source_bytes, pixels, pixel_sum, pixel_square_sum: over the samples that were.
    """

    shard: Shard
    start: int
    end: int
    rejected: list[tuple[int, str]]
    source_bytes: int
    pixels: int
    pixel_sum: int
    pixel_square_sum: int

    @property
    def note(self) -> str:
        """The file that holds this record until packing has ended."""
        return f"{PARTIAL}/{self.shard.name}.json"


def is_packed(place: Destination, job: Job, out: object) -> Manifest | None:
    """Return the manifest when this job is done, None when it is not.

    Raises UserError when `out` holds other files, another dataset or other options, or is not whole.
    """
    content = place.read(NAME)
    if content is None:
        others = sorted(place.sizes()) if place.read(_NOTE) is None else []
        if others:
            raise UserError(f"out={out} holds other files, {others[0]!r} for one; choose an empty or a new folder")
        return None
    manifest = decode_manifest(content, f"{out}/{NAME}")
    _require_same(job, Job(manifest.dataset, manifest.options, job.made_by), f"out={out} holds")
    problems = check_sizes(place.sizes(), manifest)
    require(not problems, f"out={out} holds this dataset, but not whole: {'; '.join(problems[:3])}; delete it first")
    return manifest


def resume_job(place: Destination, job: Job, out: object) -> list[FinishedShard]:
    """Begin the job, or return the shards, re-read and in order, that it had finished when it was broken off.

    What stands behind a shard that is not as it was written is not counted. Raises UserError when the unfinished
    packing is another job's.
    """
    note = _read(place, _NOTE, Job)
    if note is None:
        _write(place, _NOTE, job)
        return []
    _require_same(job, note, f"out={out} holds an unfinished packing of")
    records = [_read(place, name, FinishedShard) for name in place.notes() if name != _NOTE]
    finished = sorted((record for record in records if record is not None), key=lambda record: record.end)
    with ThreadPoolExecutor() as pool:
        whole = list(pool.map(place.holds, [record.shard for record in finished]))
    kept: list[FinishedShard] = []
    for record, is_whole in zip(finished, whole, strict=True):
        if not is_whole or record.start != (kept[-1].end if kept else 0):
            break
        kept.append(record)
    return kept


def commit_shard(place: Destination, record: FinishedShard) -> None:
    """Put a shard and its index from the workplace into their place, and then note it as finished."""
    for name in (record.shard.index_name, record.shard.name):
        place.take(place.workplace / name, name)
    _write(place, record.note, record)


def finish_job(place: Destination, manifest: Manifest) -> None:
    """Write the manifest, which says that all is there, and remove the notes."""
    file = place.workplace / NAME
    file.write_bytes(encode_manifest(manifest))
    place.take(file, NAME)
    place.finish()


def _read(place: Destination, name: str, kind: type[T]) -> T | None:
    content = place.read(name)
    try:
        return None if content is None else msgspec.json.decode(content, type=kind)
    except msgspec.DecodeError as error:
        raise UserError(f"{name} of an unfinished packing cannot be read: {error}; delete the folder first") from error


def _write(place: Destination, name: str, value: object) -> None:
    file = place.workplace / "note"
    file.write_bytes(msgspec.json.encode(value))
    place.take(file, name)


def _require_same(asked: Job, present: Job, what: str) -> None:
    """Raise UserError, naming the first difference, unless both jobs give the same bytes."""
    there, here = ({"dataset": job.dataset, **job.options, "made_by": job.made_by} for job in (present, asked))
    for name in {**here, **there}:
        if here.get(name) != there.get(name):
            difference = f"{name}={there.get(name)!r}, not {here.get(name)!r}"
            difference = "other samples" if name == "samples_sha256" else difference
            raise UserError(f"{what} dataset {present.dataset!r} packed with {difference}; choose another folder")
