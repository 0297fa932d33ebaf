"""What a pretraining saw of labeled sets: the same images by their identities, and the same pictures under any name."""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np

from evaluation.data.features import load_stored, store
from evaluation.data.labeled_sets import LabeledSet
from infra.arrays import Bool, Int64, Records
from infra.errors import RunFailed, UserError
from infra.log import say
from sharding.auditing.duplicates import copies_of
from sharding.auditing.set_names import require_one_set_per_name
from sharding.reading.data_config import DataConfig
from sharding.reading.fetch import FetchConfig
from sharding.reading.shard_set import ShardSet


@dataclass(frozen=True)
class Seen:
    """What a pretraining saw of a labeled set with N samples.

    Attributes:
        images: (N,) whether it saw the image: the sample itself, or one that shows the same picture
        patients: (N,) whether it saw the image's patient by name
        places: (N,) set and split in which it saw the image, such as "cell, test"; empty for others
        pictures_compared: whether pictures were compared, not only identities
    """

    images: Bool
    patients: Bool
    places: list[str]
    pictures_compared: bool


def pretraining_shards(data: DataConfig, data_identity: str, fetch: FetchConfig) -> ShardSet | None:
    """Return the shards that a run was pretrained on; None if these are unavailable or have changed.

    Args:
        data: the data of the run
        data_identity: the identity of the run's shards
        fetch: how to download; not as the run did, because its cache folder may be another machine's or a stranger's
    """
    try:
        shards = ShardSet(data.shards, data.splits, data.fraction_percent, fetch)
    except (UserError, RunFailed):
        return None
    return shards if shards.identity == data_identity else None


def seen_by_pretraining(
    labeled_sets: Sequence[LabeledSet], pretraining: ShardSet | None, folder: Path
) -> dict[str, Seen]:
    """Compare labeled sets with the shards of a pretraining.

    Args:
        labeled_sets: the sets
        pretraining: the shards that the run was pretrained on, if known
        folder: folder that keeps the copies that were found

    Returns:
        What pretraining saw, by the label of the set; empty if the shards of the pretraining are unavailable.

    Raises:
        UserError: if a labeled set has the name of a pretraining set but other pictures
        RunFailed: if an image is damaged
    """
    if pretraining is None:
        return {}
    try:
        index = pretraining.whole_index()
    except (UserError, RunFailed):
        return {}
    require_one_set_per_name(pretraining, *(labeled_set.shards for labeled_set in labeled_sets))
    return {labeled_set.label: _seen(labeled_set, pretraining, index, folder) for labeled_set in labeled_sets}


def _seen(labeled_set: LabeledSet, pretraining: ShardSet, index: Records, folder: Path) -> Seen:
    samples = labeled_set.samples
    by_identity = np.argsort(index["sample"], kind="stable")
    nearest = np.searchsorted(index["sample"], samples.ids, sorter=by_identity)
    numbers = by_identity[np.minimum(nearest, len(index) - 1)]
    numbers[index["sample"][numbers] != samples.ids] = -1
    pictures_compared = _can_compare(pretraining)
    if pictures_compared:
        numbers = np.maximum(numbers, _copies(labeled_set, np.flatnonzero(numbers < 0), pretraining, folder))
    places = [
        "" if number < 0 else _place(pretraining, shard)
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
