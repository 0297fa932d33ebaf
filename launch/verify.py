"""`sternum verify`: compares shards with their manifest."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from infra.configuration.config import parse
from infra.configuration.options import require_workers
from infra.errors import RunFailed
from infra.log import say
from infra.words import counted


@dataclass(frozen=True)
class VerifyConfig:
    """The folder to check.

    Args:
        shards: a folder that sternum shard wrote
        workers: number of reading processes; 0 means one for each CPU
    """

    shards: Path
    workers: int = 0

    def __post_init__(self) -> None:
        require_workers(self)


def main(arguments: Sequence[str]) -> int:
    """Print each difference as one line, or that there is none.

    Raises:
        RunFailed: if the shards differ from their manifest
    """
    config = parse(
        VerifyConfig,
        arguments,
        command="verify",
        description="Read every shard again and compare it with the manifest. The exit code is 1 if anything differs.",
        examples=("sternum verify shards/chexpert",),
        subject="shards",
    )
    from sharding.packing.verify import verify  # noqa: PLC0415  # --help and mistakes need no image libraries
    from sharding.reading.manifests import read_manifest  # noqa: PLC0415

    start_s = time.perf_counter()
    differences = verify(config.shards, config.workers)
    for difference in differences:
        say(f"{config.shards}: {difference}")
    if differences:
        raise RunFailed(
            f"{config.shards} differs from its manifest in {counted(len(differences), 'way')}; pack the dataset again"
        )
    manifest = read_manifest(config.shards)
    duration_s = time.perf_counter() - start_s
    shards = counted(len(manifest.shards), "shard")
    say(f"{config.shards} is whole: {manifest.samples} samples in {shards}, {duration_s:.1f} s")
    return 0
