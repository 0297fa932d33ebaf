"""Which shards of one or several packed folders a run reads."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from infra.errors import UserError, require
from sharding.format.fractions import FRACTIONS_PERCENT
from sharding.format.manifest import NAME, Manifest, Shard
from sharding.reading.location import LocalFolder, ShardFolder


class ShardSelection(NamedTuple):
    """The chosen shards, folder by folder.

    places: each with its folder. counts: how many of each folder. pixel_mean, pixel_std: of the mixture of the folders,
    each weighted by its chosen samples; scale 0 to 1.
    """

    places: list[tuple[ShardFolder, Shard]]
    counts: list[int]
    pixel_mean: float
    pixel_std: float


def choose_shards(
    sources: Sequence[ShardFolder], manifests: Sequence[Manifest], splits: Sequence[str], fraction_percent: int
) -> ShardSelection:
    """Choose splits (none: all) and fraction; a folder without official splits is taken whole.

    Raises UserError when a folder lacks them all, none has one of them, a folder is named twice, or a local one lacks
    a chosen shard in its full size.
    """
    require_fraction("fraction_percent", fraction_percent)
    _require_different(sources)
    _require_splits(manifests, splits)
    places: list[tuple[ShardFolder, Shard]] = []
    parts: list[tuple[int, Manifest]] = []
    counts: list[int] = []
    for found, manifest in zip(sources, manifests, strict=True):
        chosen = manifest.select([split for split in splits if split in _splits(manifest)], fraction_percent)
        places += [(found, shard) for shard in chosen]
        parts.append((sum(shard.samples for shard in chosen), manifest))
        counts.append(len(chosen))
    for found, shard in places:
        if isinstance(found, LocalFolder):
            _require_size(found.path, shard)
    return ShardSelection(places, counts, *_mix_pixels(parts))


def require_fraction(name: str, percent: int) -> None:
    """Raise UserError unless `percent` is a fraction that is packed."""
    require(percent in FRACTIONS_PERCENT, f"{name}={percent} must be one of {FRACTIONS_PERCENT}; try 100")


def _require_different(sources: Sequence[ShardFolder]) -> None:
    where = [found.path.resolve() if isinstance(found, LocalFolder) else found.name for found in sources]
    for place, found in zip(where, sources, strict=True):
        times = where.count(place)
        require(times == 1, f"shards name {found.name} {times} times; name each folder once")


def _splits(manifest: Manifest) -> set[str | None]:
    return {shard.split for shard in manifest.shards}


def _require_splits(manifests: Sequence[Manifest], splits: Sequence[str]) -> None:
    """Let every folder that has official splits have one of these, and every one of these be in a folder."""
    for manifest in manifests:
        if splits and _splits(manifest) != {None} and not _splits(manifest) & set(splits):
            manifest.select(splits)  # raises, naming what there is
    for split in splits:
        if not any(split in _splits(manifest) for manifest in manifests):
            manifests[0].select([split])


def _require_size(folder: Path, shard: Shard) -> None:
    path = folder / shard.name
    try:
        size_bytes = path.stat().st_size
    except OSError as error:
        raise UserError(
            f"{path}, which {NAME} lists, cannot be read: {error.strerror}; pack the dataset again"
        ) from error
    if size_bytes != shard.size_bytes:
        raise UserError(f"{path} has {size_bytes} bytes, {NAME} says {shard.size_bytes}; pack the dataset again")


def _mix_pixels(parts: Sequence[tuple[int, Manifest]]) -> tuple[float, float]:
    """Return mean and standard deviation of the mixture, each folder weighted by its chosen samples."""
    samples = sum(count for count, _ in parts)
    mean = sum(count * manifest.pixel_mean for count, manifest in parts) / samples
    square = sum(count * (manifest.pixel_std**2 + manifest.pixel_mean**2) for count, manifest in parts) / samples
    return mean, float(max(square - mean**2, 0.0) ** 0.5)
