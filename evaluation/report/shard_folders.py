"""The folders of shards that a run was pretrained on, as far as this machine has them."""

from dataclasses import dataclass

from evaluation.data.labeled_sets import display_name
from infra.errors import RunFailed, UserError
from infra.urls import Location, shown
from sharding.format.manifest import Manifest
from sharding.reading.location import LocalFolder, open_location
from sharding.reading.manifests import read_manifest


@dataclass(frozen=True)
class ShardFolder:
    """One folder of pretraining shards; the manifest is None if it cannot be read on this machine."""

    folder: str
    label: str
    manifest: Manifest | None


def shard_folder(location: Location) -> ShardFolder:
    """Describe a folder of shards. A URL is not opened: a run may come from a stranger, who would choose the server."""
    try:
        folder = open_location(location)
        manifest = read_manifest(folder.path) if isinstance(folder, LocalFolder) else None
    except (UserError, RunFailed):
        manifest = None
    return ShardFolder(shown(location), display_name(manifest) if manifest else "", manifest)
