"""`sternum shard`: packs a dataset into shards."""

from collections import Counter
from collections.abc import Sequence

from infra.configuration.config import parse
from infra.log import say
from infra.words import counted
from sharding.format.manifest import Manifest
from sharding.packing.pack import PackConfig, pack


def main(arguments: Sequence[str]) -> int:
    """Pack the dataset and print how many images were packed and rejected."""
    config = parse(
        PackConfig,
        arguments,
        command="shard",
        description="Pack a dataset into WebDataset shards with a manifest. Run the same command again to resume.",
        examples=(
            "sternum shard chexpert --root=CheXpert-v1.0-small --out=shards/chexpert",
            "sternum shard cell --root=chest_xray --out=shards/cell --shorter_side_px=256 --seed=1",
            "sternum shard chexpert --root=CheXpert-v1.0-small --out=s3://bucket/chexpert --pass_through=true",
        ),
        subject="dataset",
    )
    say(f"{config.out}: {_summary(pack(config))}")
    return 0


def _summary(manifest: Manifest) -> str:
    splits: Counter[str] = Counter()
    for shard in manifest.shards:
        splits[shard.split or "no split"] += shard.samples
    reasons = Counter(rejection.reason for rejection in manifest.rejected)
    lines = [
        f"{manifest.samples} images of {manifest.patients} patients in {counted(len(manifest.shards), 'shard')} ("
        + ", ".join(f"{split} {samples}" for split, samples in splits.items())
        + ")",
        f"rejected: {len(manifest.rejected)}" + (", listed in manifest.json" if reasons else ""),
        *(f"  {count} x {reason}" for reason, count in reasons.most_common()),
        f"bytes: {manifest.source_bytes:,} in, {sum(shard.size_bytes for shard in manifest.shards):,} out",
        f"pixels (0 to 1): mean {manifest.pixel_mean:.4f}, standard deviation {manifest.pixel_std:.4f}",
    ]
    return "\n  ".join(lines)
