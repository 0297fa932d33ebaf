"""Changes to the manifest of a packed folder."""

from dataclasses import replace
from pathlib import Path

from infra.storage.files import write_atomic
from sharding.format.manifest import MANIFEST_NAME, Manifest, encode_manifest
from sharding.reading.manifests import read_manifest


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Replace `folder/manifest.json`."""
    write_atomic(folder / MANIFEST_NAME, encode_manifest(manifest))


def without_fingerprints(folder: Path) -> None:
    """Make a packed folder one that an older version packed."""
    manifest = read_manifest(folder)
    for shard in manifest.shards:
        (folder / shard.fingerprints_name).unlink()
    shards = [replace(shard, fingerprints_sha256=None) for shard in manifest.shards]
    write_manifest(folder, replace(manifest, shards=shards))
