"""Fingerprints by which an audit compares images and patients, computed in several processes."""

from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from hashlib import blake2b
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from infra.arrays import UInt8
from infra.errors import RunFailed
from infra.log import progress
from infra.parallel import ordered_map, worker_count
from sharding.auditing.hamming import WORDS
from sharding.auditing.perceptual import Thumbnails, perceptual_hashes, thumbnail
from sharding.images.encode import ImageRejected, decode
from sharding.reading.fetch import FetchConfig
from sharding.reading.location import Location
from sharding.reading.order import Positions
from sharding.reading.shard_set import ShardSet

Rows = npt.NDArray[np.void]
LabelSet = tuple[str, ...]

# `content` and `pixels` are 64-bit hashes of the encoded bytes, and of the decoded pixels with their size; `labels` is
# the number of the set of labels that are 1.
ROW: Final = np.dtype(
    [
        ("sample", "<u8"),
        ("patient", "<u8"),
        ("content", "<u8"),
        ("pixels", "<u8"),
        ("perceptual", "<u8", (WORDS,)),
        ("labels", "<u4"),
    ]
)

_IMAGES_A_TASK: Final = 256


class Fingerprints(NamedTuple):
    """The fingerprints of all images.

    Attributes:
        rows: (n,) ROW, in packed order
        label_sets: the sets of labels that are 1, by their number in the rows
    """

    rows: Rows
    label_sets: list[LabelSet]


class _Task(NamedTuple):
    """Rows `first` to `last` of a folder's shard, and the settings to download it."""

    folder: Location
    fetch: FetchConfig | None
    shard: int
    first: int
    last: int


def fingerprints(shards: ShardSet, workers: int = 0) -> Fingerprints:
    """Read and decode every image; needs 68 bytes of memory per image.

    Args:
        shards: whole folders, with all splits
        workers: processes that read; 0 means one for each CPU

    Raises:
        RunFailed: if an image is damaged
    """
    tasks = list(_tasks(shards))
    rows = np.empty(shards.samples, ROW)
    numbers: dict[LabelSet, int] = {}
    done = 0
    with closing(ordered_map(_fingerprint, tasks, worker_count(workers, len(tasks)))) as results:
        for part in progress(results, "reading images", total=len(tasks), unit="batch"):
            sets = np.array([numbers.setdefault(names, len(numbers)) for names in part.label_sets])
            part.rows["labels"] = sets[part.rows["labels"]]
            rows[done : done + len(part.rows)] = part.rows
            done += len(part.rows)
    assert done == len(rows), f"{done} of {len(rows)} rows"
    return Fingerprints(rows, list(numbers))


def decode_packed(content: UInt8) -> tuple[Thumbnails, bytes]:
    """Return a packed image's thumbnail, and its size and pixels as bytes, which identical images share."""
    try:
        image, _ = decode(content.tobytes())
    except ImageRejected as rejected:
        raise RunFailed(f"a packed image cannot be decoded: {rejected}; find it: sternum verify") from rejected
    return thumbnail(image), repr(image.size).encode() + image.tobytes()


def _tasks(shards: ShardSet) -> Iterator[_Task]:
    number_in_folder: Counter[Location] = Counter()
    for folder, shard in zip(shards.folders, shards.shards, strict=True):
        for first in range(0, shard.samples, _IMAGES_A_TASK):
            yield _Task(
                folder, shards.fetch, number_in_folder[folder], first, min(first + _IMAGES_A_TASK, shard.samples)
            )
        number_in_folder[folder] += 1


def _fingerprint(task: _Task) -> Fingerprints:
    shards = ShardSet([task.folder], fetch=task.fetch)
    numbers = np.arange(task.first, task.last)
    index = shards.rows(Positions(np.zeros_like(numbers), np.full_like(numbers, task.shard), numbers))
    rows = np.empty(len(numbers), ROW)
    rows["sample"], rows["patient"] = index["sample"], index["patient"]
    thumbnails = []
    label_sets: dict[LabelSet, int] = {}
    for item, number in enumerate(numbers.tolist()):
        content = shards.read(task.shard, number)
        small, pixels = decode_packed(content)
        thumbnails.append(small)
        rows["content"][item], rows["pixels"][item] = _hash64(content.tobytes()), _hash64(pixels)
        labels = shards.metadata(task.shard, number)["labels"]
        present = tuple(sorted(name for name, value in labels.items() if value == 1))
        rows["labels"][item] = label_sets.setdefault(present, len(label_sets))
    rows["perceptual"] = perceptual_hashes(np.stack(thumbnails))
    return Fingerprints(rows, list(label_sets))


def _hash64(content: bytes) -> int:
    return int.from_bytes(blake2b(content, digest_size=8).digest(), "little")
