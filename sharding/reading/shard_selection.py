"""The choice of a run's shards from one or several packed folders."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from infra.errors import UserError, require
from sharding.format.manifest import MANIFEST_NAME, Manifest, Shard
from sharding.reading.data_config import require_fraction
from sharding.reading.location import LocalFolder, ShardFolder


class ShardSelection(NamedTuple):
    """The chosen shards, folder by folder.

    Attributes:
        shards: each with its folder
        counts: the number of shards chosen from each folder
        pixel_mean: mean of the mixture of the folders, each weighted by its chosen samples; scale 0 to 1
        pixel_std: standard deviation, likewise
    """

    shards: list[tuple[ShardFolder, Shard]]
    counts: list[int]
    pixel_mean: float
    pixel_std: float


def choose_shards(
    folders: Sequence[ShardFolder], manifests: Sequence[Manifest], splits: Sequence[str], fraction_percent: int
) -> ShardSelection:
    """Choose the shards of some splits and a fraction; a folder without official splits is taken whole.

    Args:
        folders: packed folders
        manifests: the manifest of each
        splits: official splits to take; none means all
        fraction_percent: the nested fraction of the patients: 1, 10 or 100

    Raises:
        UserError: if a folder has splits but none of these, if no folder has one of them, if a folder occurs twice,
            or if a chosen local shard is missing or not of its full size
    """
    require_fraction(fraction_percent)
    _require_different(folders)
    _require_splits(manifests, splits)
    shards: list[tuple[ShardFolder, Shard]] = []
    parts: list[tuple[int, Manifest]] = []
    counts: list[int] = []
    for folder, manifest in zip(folders, manifests, strict=True):
        chosen = choose_in_folder(manifest, splits, fraction_percent)
        shards += [(folder, shard) for shard in chosen]
        parts.append((sum(shard.samples for shard in chosen), manifest))
        counts.append(len(chosen))
    for folder, shard in shards:
        if isinstance(folder, LocalFolder):
            _require_size(folder.path, shard)
    return ShardSelection(shards, counts, *_mix_pixels(parts))


def choose_in_folder(manifest: Manifest, splits: Sequence[str], fraction_percent: int) -> list[Shard]:
    """Choose as `choose_shards` does, in one of the folders.

    Raises:
        UserError: if no shard is left
    """
    return manifest.select([split for split in splits if split in _splits(manifest)], fraction_percent)


def _require_different(folders: Sequence[ShardFolder]) -> None:
    identities = [folder.path.resolve() if isinstance(folder, LocalFolder) else folder.name for folder in folders]
    for identity, folder in zip(identities, folders, strict=True):
        times = identities.count(identity)
        require(times == 1, f"shards list {folder.name} {times} times; name each folder once")


def _splits(manifest: Manifest) -> set[str | None]:
    return {shard.split for shard in manifest.shards}


def _require_splits(manifests: Sequence[Manifest], splits: Sequence[str]) -> None:
    """Require every folder with official splits to have one of these, and each of these to be in a folder."""
    for manifest in manifests:
        if splits and _splits(manifest) != {None} and not _splits(manifest) & set(splits):
            manifest.select(splits)  # raises and names the splits that exist
    for split in splits:
        if not any(split in _splits(manifest) for manifest in manifests):
            manifests[0].select([split])


def _require_size(folder: Path, shard: Shard) -> None:
    path = folder / shard.name
    try:
        size_bytes = path.stat().st_size
    except OSError as error:
        raise UserError(
            f"{path}, which {MANIFEST_NAME} lists, cannot be read: {error.strerror}; pack the dataset again"
        ) from error
    if size_bytes != shard.size_bytes:
        raise UserError(
            f"{path} has {size_bytes} bytes, {MANIFEST_NAME} says {shard.size_bytes}; pack the dataset again"
        )


def _mix_pixels(parts: Sequence[tuple[int, Manifest]]) -> tuple[float, float]:
    """Return mean and standard deviation of the mixture, each folder weighted by its chosen samples."""
    samples = sum(count for count, _ in parts)
    mean = sum(count * manifest.pixel_mean for count, manifest in parts) / samples
    square = sum(count * (manifest.pixel_std**2 + manifest.pixel_mean**2) for count, manifest in parts) / samples
    return mean, float(max(square - mean**2, 0.0) ** 0.5)
