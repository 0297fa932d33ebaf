"""`sternum verify`: re-reads shards against their manifest."""

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from infra.config import parse
from infra.errors import require
from infra.log import say
from launch.cli import guarded
from sharding.packing.verify import verify
from sharding.reading.manifests import read_manifest


@dataclass(frozen=True)
class VerifyConfig:
    """What to check.

    Args:
        folder: folder of shards that sternum shard wrote
        workers: processes that read; 0 is one for each CPU
    """

    folder: Path
    workers: int = 0

    def __post_init__(self) -> None:
        """Check every value on its own."""
        require(self.workers >= 0, f"workers={self.workers} must not be negative; 0 is one for each CPU")


def main(arguments: Sequence[str]) -> int:
    """Say every difference, one a line; returns 1 when there are any."""
    config = parse(
        VerifyConfig,
        arguments,
        command="verify",
        description="Re-read every shard against the manifest; exit code 1 and a list when anything differs.",
        examples=("sternum verify shards/chexpert",),
        positional=("folder",),
    )
    start_s = time.perf_counter()
    differences = verify(config.folder, config.workers)
    for difference in differences:
        say(f"{config.folder}: {difference}")
    if differences:
        say(f"{config.folder} differs from its manifest in {len(differences)} ways; pack the dataset again")
        return 1
    manifest = read_manifest(config.folder)
    duration_s = time.perf_counter() - start_s
    say(f"{config.folder} is whole: {manifest.samples} samples in {len(manifest.shards)} shards, {duration_s:.1f} s")
    return 0


if __name__ == "__main__":
    sys.exit(guarded(main, sys.argv[1:]))
