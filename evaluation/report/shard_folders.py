"""The folders of shards that a run was pretrained on, as far as this machine has them."""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np

from evaluation.data.labeled_sets import display_name
from infra.errors import RunFailed, UserError
from infra.urls import Location, shown
from sharding.format.manifest import Manifest, read_index
from sharding.reading.data_config import DataConfig
from sharding.reading.location import LocalFolder, open_location
from sharding.reading.manifests import read_manifest
from sharding.reading.shard_selection import choose_in_folder


@dataclass(frozen=True)
class UsedPart:
    """What a run took from one folder.

    Attributes:
        images: the number of images
        patients: the number of their patients
        sha256: SHA-256 of each shard
    """

    images: int
    patients: int
    sha256: list[str]


@dataclass(frozen=True)
class ShardFolder:
    """One folder of pretraining shards.

    Attributes:
        folder: path or URL
        label: name in the tables
        manifest: of the whole set; None if it cannot be read on this machine
        used: the part that the run was trained on; None if it cannot be counted on this machine
    """

    folder: str
    label: str
    manifest: Manifest | None
    used: UsedPart | None


def shard_folders(data: DataConfig) -> list[ShardFolder]:
    """Describe a run's folders. A URL is not opened: a run may come from a stranger, who would choose the server."""
    return [_shard_folder(location, data) for location in data.shards]


def are_of_run(folders: Sequence[ShardFolder], identity: str) -> bool:
    """Return whether the shards may be those with this identity; they are not if the set was packed again since."""
    if any(folder.used is None for folder in folders):
        return True  # the identity is that of all shards together
    hashes = [each for folder in folders if folder.used for each in folder.used.sha256]
    return sha256("".join(hashes).encode()).hexdigest() == identity


def _shard_folder(location: Location, data: DataConfig) -> ShardFolder:
    try:
        folder = open_location(location)
        if isinstance(folder, LocalFolder):
            manifest = read_manifest(folder.path)
            return ShardFolder(
                shown(location), display_name(manifest), manifest, _used_part(folder.path, manifest, data)
            )
    except (UserError, RunFailed):
        pass
    return ShardFolder(shown(location), "", None, None)


def _used_part(path: Path, manifest: Manifest, data: DataConfig) -> UsedPart | None:
    """Count what the splits and the fraction of a run choose; None if the indexes cannot be read."""
    try:
        shards = choose_in_folder(manifest, data.splits, data.fraction_percent)
        patients = np.concatenate([read_index(path, shard)["patient"] for shard in shards])
    except UserError:
        return None
    return UsedPart(len(patients), len(np.unique(patients)), [shard.sha256 for shard in shards])
