"""The check that packed folders of one name hold the same set.

Identities are hashes of the set's name and the key. Two sets with one name, such as the images of two hospitals, would
share samples and patients wherever their file names or numbers happen to be equal.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from typing import Final

import numpy as np

from infra.arrays import Records, UInt8
from infra.errors import UserError
from infra.log import say
from infra.urls import shown
from sharding.auditing.fingerprints import decode_packed
from sharding.images.perceptual import MIN_CORRELATION, center_thumbnail, correlation, thumbnail
from sharding.reading.shard_set import ShardSet

_COMPARED: Final = 32  # images of two folders; different sets differ in nearly all of them
_OWN_NUMBERING: Final = ("folder", "dicom")  # unnamed sets whose patient numbers mean nothing elsewhere


@dataclass(frozen=True)
class _Part:
    """The chosen shards of one packed folder, by their numbers in a shard set."""

    shards: ShardSet
    numbers: list[int]

    @property
    def folder(self) -> str:
        """The folder for messages."""
        return shown(self.shards.folders[self.numbers[0]])

    @cached_property
    def index(self) -> Records:
        """The INDEX_ROW rows of its shards."""
        return np.concatenate([self.shards.index(number) for number in self.numbers])

    def read(self, row: int) -> UInt8:
        """Return the encoded image of a row of the index."""
        starts = np.cumsum([0, *(self.shards.shard_samples[number] for number in self.numbers)])
        part = int(np.searchsorted(starts, row, side="right")) - 1
        return self.shards.read(self.numbers[part], row - int(starts[part]))


def require_one_set_per_name(*shard_sets: ShardSet) -> None:
    """Check that folders of one name hold the same images under the same keys.

    Folders may hold different parts of a set, or the same images in different sizes. Only if two folders of one name
    share keys whose bytes differ, some of these images are decoded and compared.

    Args:
        shard_sets: the folders; the same one may occur several times

    Raises:
        UserError: if most of the compared images of two folders are different pictures
        RunFailed: if an image is damaged or cannot be downloaded
    """
    by_name: dict[str, list[_Part]] = {}
    for part in (part for shards in shard_sets for part in _parts(shards)):
        by_name.setdefault(part.shards.names[part.numbers[0]], []).append(part)
    for name, parts in by_name.items():
        for first, second in combinations(parts, 2):
            _require_same_set(name, first, second)


def _parts(shards: ShardSet) -> Iterator[_Part]:
    for folder in dict.fromkeys(shards.folders):
        yield _Part(shards, [number for number, other in enumerate(shards.folders) if other == folder])


def _require_same_set(name: str, first: _Part, second: _Part) -> None:
    shared, in_first, in_second = np.intersect1d(first.index["sample"], second.index["sample"], return_indices=True)
    changed = first.index["image_crc32"][in_first] != second.index["image_crc32"][in_second]
    compared = np.flatnonzero(changed)[:_COMPARED].tolist()  # the order is that of hashes, so this is a random choice
    different = sum(
        not _is_same_picture(first.read(int(in_first[item])), second.read(int(in_second[item]))) for item in compared
    )
    if 2 * different > len(compared):
        raise UserError(
            f"{first.folder} and {second.folder} both have the name {name!r}, but their keys name different pictures "
            f"({different} of {len(compared)} compared); pack one of them with another --name, such as {name}-b"
        )
    patients = np.intersect1d(first.index["patient"], second.index["patient"])
    if len(patients) and not len(shared) and name in _OWN_NUMBERING:
        say(
            f"warning: {first.folder} and {second.folder} both have the name {name!r}, so their {len(patients)} "
            "patients of equal names count as the same; if they are not, pack one of them with another --name"
        )


def _is_same_picture(first: UInt8, second: UInt8) -> bool:
    images = decode_packed(first), decode_packed(second)
    return any(correlation(*map(reduced, images)) >= MIN_CORRELATION for reduced in (thumbnail, center_thumbnail))
