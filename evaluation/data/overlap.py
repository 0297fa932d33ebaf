"""What a pretraining saw of labeled sets: the same images by their identities, and the same pictures under any name."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path

import numpy as np

from evaluation.data.features import load_stored, store
from evaluation.data.labeled_sets import LabeledSet
from evaluation.data.lineage import Lineage
from infra.arrays import Bool, Int64, Records
from infra.log import say
from sharding.auditing.duplicates import copies_of
from sharding.auditing.set_names import require_one_set_per_name
from sharding.reading.shard_set import ShardSet


@dataclass(frozen=True)
class Seen:
    """What a pretraining, or a run that it descends from, saw of a labeled set with N samples.

    Attributes:
        images: (N,) whether it saw the image: the sample itself, or one that shows the same picture
        patients: (N,) whether it saw the image's patient by name
        places: (N,) set and split in which it saw the image, such as "cell, test", and the weights of an earlier run
            that saw it there; empty for others
        pictures_compared: whether pictures were compared, not only identities
        is_whole: whether all trainings that are judged were compared; otherwise, unseen means only that these did not
            see it
    """

    images: Bool
    patients: Bool
    places: list[str]
    pictures_compared: bool
    is_whole: bool = True

    def joined(self, other: "Seen") -> "Seen":
        """Return what either of two trainings saw."""
        return Seen(
            self.images | other.images,
            self.patients | other.patients,
            [place or other_place for place, other_place in zip(self.places, other.places, strict=True)],
            self.pictures_compared and other.pictures_compared,
        )

    def followed_by(self, others: "Seen") -> "Seen":
        """Return what a pretraining saw of this set and of another one behind it."""
        return Seen(
            np.concatenate([self.images, others.images]),
            np.concatenate([self.patients, others.patients]),
            [*self.places, *others.places],
            self.pictures_compared and others.pictures_compared,
            self.is_whole and others.is_whole,
        )


def seen_by_pretraining(labeled_sets: Sequence[LabeledSet], lineage: Lineage, folder: Path) -> dict[str, Seen]:
    """Compare labeled sets with the shards of all trainings that are known.

    Args:
        labeled_sets: the sets
        lineage: these shards
        folder: folder that keeps the copies that were found

    Returns:
        What pretraining saw, by the label of the set; empty if the shards of the run itself are unavailable, or without
        a run, those of all backbones.

    Raises:
        UserError: if a labeled set has the name of a pretraining set but other pictures
        RunFailed: if an image is damaged
    """
    if lineage.has_run and lineage.own is None:
        return {}
    seen: dict[str, Seen] = {}
    for weights, shards in lineage.available_of_all:
        require_one_set_per_name(shards, *(labeled_set.shards for labeled_set in labeled_sets))
        index = shards.whole_index()
        for labeled_set in labeled_sets:
            now = _seen(labeled_set, shards, index, folder, weights)
            seen[labeled_set.label] = seen[labeled_set.label].joined(now) if labeled_set.label in seen else now
    is_whole = lineage.has_run or lineage.knows_all_others
    return {label: replace(of_set, is_whole=is_whole) for label, of_set in seen.items()}


def _seen(labeled_set: LabeledSet, pretraining: ShardSet, index: Records, folder: Path, weights: str) -> Seen:
    samples = labeled_set.samples
    by_identity = np.argsort(index["sample"], kind="stable")
    nearest = np.searchsorted(index["sample"], samples.ids, sorter=by_identity)
    numbers = by_identity[np.minimum(nearest, len(index) - 1)]
    numbers[index["sample"][numbers] != samples.ids] = -1
    pictures_compared = _can_compare(pretraining)
    if pictures_compared:
        numbers = np.maximum(numbers, _copies(labeled_set, np.flatnonzero(numbers < 0), pretraining, folder))
    places = [
        "" if number < 0 else _place(pretraining, shard) + (f" (by {weights})" if weights else "")
        for number, shard in zip(numbers.tolist(), pretraining.locate(numbers)[0].tolist(), strict=True)
    ]
    return Seen(
        images=numbers >= 0,
        patients=np.isin(samples.patient_ids, index["patient"]),
        places=places,
        pictures_compared=pictures_compared,
    )


def _can_compare(pretraining: ShardSet) -> bool:
    """Return whether all shards have fingerprints or are on this machine; warn if not."""
    for number, shard in enumerate(pretraining.shards):
        if shard.fingerprints_sha256 is None and pretraining.is_remote(number):
            say(
                f"warning: {pretraining.name(number)} was packed without fingerprints, so only names tell whether "
                "pretraining saw a test image, not the pictures; pack the dataset again"
            )
            return False
    return True


def _copies(labeled_set: LabeledSet, numbers: Int64, pretraining: ShardSet, folder: Path) -> Int64:
    """Return (N,) the number of the pretraining image that shows the same picture as one of these images, else -1."""
    ids = labeled_set.samples.ids
    inputs = f"{labeled_set.manifest.identity} {pretraining.identity} ".encode() + numbers.tobytes()
    path = folder / f"{sha256(inputs).hexdigest()[:32]}-copies.safetensors"
    copies: Int64 | None = load_stored(path, ids, np.int64)
    if copies is None or not np.all((copies >= -1) & (copies < pretraining.samples)):  # somebody else put it there
        copies = np.full(len(ids), -1)
        copies[numbers] = copies_of(labeled_set.shards, numbers, pretraining)
        store(path, copies, ids)
    return copies


def _place(pretraining: ShardSet, shard: int) -> str:
    split = pretraining.shards[shard].split
    return pretraining.names[shard] + (f", {split}" if split else "")
