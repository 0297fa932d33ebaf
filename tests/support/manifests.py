"""Changes to the manifest of a packed folder."""

from pathlib import Path

from infra.files import write_atomic
from sharding.format.manifest import MANIFEST_NAME, Manifest, encode_manifest


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Replace `folder/manifest.json`."""
    write_atomic(folder / MANIFEST_NAME, encode_manifest(manifest))
