"""Resumable packing jobs: notes that identify a job and record its finished shards."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final, TypeVar

from infra.errors import UserError, require
from infra.storage.json_files import BadJson, decode_json, encode_json
from sharding.format.manifest import MANIFEST_NAME, PARTIAL, Manifest, Options, Shard, decode_manifest, encode_manifest
from sharding.packing.destination import Destination, OtherPacking
from sharding.packing.verify import check_sizes

T = TypeVar("T")

_NOTE: Final = f"{PARTIAL}/job.json"


@dataclass(frozen=True)
class Job:
    """Everything that the packed bytes depend on.

    Attributes:
        dataset: the dataset's name
        options: the options of packing, and a hash of the dataset's samples
        made_by: the versions of the programs that encode
        name: the name of the set; empty in notes of older versions, where it is the dataset's
    """

    dataset: str
    options: Options
    made_by: str
    name: str = ""


@dataclass(frozen=True)
class FinishedShard:
    """The record of a shard that is at its destination.

    Attributes:
        shard: its entry for the manifest
        start: the first catalog position after the shard before
        end: the catalog position after this shard
        rejected: the positions from start to end that were not packed, each with its reason
        source_bytes: total size of the packed source files
        pixels: number of packed pixels
        pixel_sum: sum over the packed pixels
        pixel_square_sum: sum of squares over the packed pixels
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
        """The name of the file that holds this record until the job is finished."""
        return f"{PARTIAL}/{self.shard.name}.json"


def packed_manifest(destination: Destination, job: Job, out: object) -> Manifest | None:
    """Return the manifest if this job is finished, otherwise None.

    Args:
        destination: the destination of the shards
        job: the job to compare with
        out: the destination as the user named it, for messages

    Raises:
        UserError: if the destination holds other files, another dataset or other options, or is incomplete
    """
    content = destination.read(MANIFEST_NAME)
    if content is None:
        others = sorted(destination.sizes()) if destination.read(_NOTE) is None else []
        if others:
            raise UserError(f"out={out} holds other files, such as {others[0]!r}; choose an empty or a new folder")
        return None
    manifest = decode_manifest(content, f"{out}/{MANIFEST_NAME}")
    _require_same(job, Job(manifest.dataset, manifest.options, job.made_by, manifest.name), f"out={out} holds")
    problems = check_sizes(destination.sizes(), manifest)
    require(
        not problems, f"out={out} holds an incomplete copy of this dataset: {'; '.join(problems[:3])}; delete it first"
    )
    return manifest


def resume_job(destination: Destination, job: Job, out: object) -> list[FinishedShard]:
    """Begin the job, or return the shards that it had finished when it was interrupted, checked and in order.

    Shards after a damaged one are not counted.

    Args:
        destination: the destination of the shards
        job: the job to begin or resume
        out: the destination as the user named it, for messages

    Raises:
        OtherPacking: if the unfinished packing belongs to another job
    """
    note = _read(destination, _NOTE, Job)
    if note is None:
        _write(destination, _NOTE, job)
        _require_ours(destination, job, out)
        return []
    _require_same(job, note, f"out={out} holds an unfinished packing of")
    records = [_read(destination, name, FinishedShard) for name in destination.notes() if name != _NOTE]
    finished = sorted((record for record in records if record is not None), key=lambda record: record.end)
    with ThreadPoolExecutor() as pool:
        whole = list(pool.map(destination.holds, [record.shard for record in finished]))
    usable: list[FinishedShard] = []
    for record, is_whole in zip(finished, whole, strict=True):
        if not is_whole or record.start != (usable[-1].end if usable else 0):
            break
        usable.append(record)
    return usable


def commit_shard(destination: Destination, job: Job, out: object, record: FinishedShard) -> None:
    """Move a shard and the files beside it to the destination, then note that it is finished.

    Raises:
        OtherPacking: if another job has begun in the same object store, which has no lock
    """
    _require_ours(destination, job, out)
    for name in (*record.shard.companions, record.shard.name):
        destination.commit(destination.staging / name, name)
    _write(destination, record.note, record)


def finish_job(destination: Destination, job: Job, out: object, manifest: Manifest) -> None:
    """Write the manifest, whose presence means that all shards are there, and remove the notes.

    Raises:
        OtherPacking: like `commit_shard`
    """
    _require_ours(destination, job, out)
    file = destination.staging / MANIFEST_NAME
    file.write_bytes(encode_manifest(manifest))
    destination.commit(file, MANIFEST_NAME)
    destination.finish()


def _read(destination: Destination, name: str, record_type: type[T]) -> T | None:
    content = destination.read(name)
    try:
        return None if content is None else decode_json(content, record_type)
    except BadJson as error:
        raise UserError(f"{name} of an unfinished packing cannot be read: {error}; delete the folder first") from error


def _write(destination: Destination, name: str, record: object) -> None:
    file = destination.staging / "note"
    file.write_bytes(encode_json(record))
    destination.commit(file, name)


def _require_ours(destination: Destination, job: Job, out: object) -> None:
    """Raise OtherPacking unless the destination is that of this job, or holds the same job, finished elsewhere."""
    note = _read(destination, _NOTE, Job)
    if note is not None:
        _require_same(job, note, f"out={out} now holds an unfinished packing of")
    elif packed_manifest(destination, job, out) is None:
        raise OtherPacking(
            f"out={out} has lost the notes of this packing, so another process works there; choose another folder"
        )


def _require_same(requested: Job, present: Job, description: str) -> None:
    """Raise OtherPacking, naming the first difference, unless both jobs give the same bytes."""
    old, new = (
        {"dataset": job.dataset, "name": job.name or job.dataset, **job.options, "made_by": job.made_by}
        for job in (present, requested)
    )
    for name in {**new, **old}:
        if new.get(name) != old.get(name):
            difference = f"{name}={old.get(name)!r}, not {new.get(name)!r}"
            difference = "other samples" if name == "samples_sha256" else difference
            raise OtherPacking(
                f"{description} dataset {present.dataset!r} packed with {difference}; choose another folder"
            )
