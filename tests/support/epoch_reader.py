"""Epochs read from shards anywhere, in a module that spawned processes can import."""

import os
import subprocess
import sys
from contextlib import closing
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from infra.errors import RunFailed, UserError
from sharding.reading.data_config import DataConfig
from sharding.reading.fetch import FetchConfig
from sharding.reading.shard_set import ShardSet
from sharding.reading.stream import sample_batches, sample_order


class Epoch(NamedTuple):
    """The samples of an epoch.

    Attributes:
        images: (sample, encoded image) in the order of consumption.
        valid: number of samples that were not masked.
    """

    images: list[tuple[int, bytes]]
    valid: int

    def __repr__(self) -> str:
        return f"Epoch({self.fingerprint})"

    @property
    def fingerprint(self) -> str:
        """A short text that differs for any two epochs that differ."""
        return f"{self.valid} valid, sha256 {sha256(repr(self.images).encode()).hexdigest()}"


class Stopped(NamedTuple):
    """The error that stopped reading before the end of an epoch, and the images read until then."""

    error: RunFailed | UserError
    images: list[tuple[int, bytes]]


def quick_fetch(cache_folder: Path, **values: Any) -> FetchConfig:
    """Return a download configuration with short timeouts; `values` override it."""
    quick = {"limit_gb": 1.0, "connections": 2, "attempts": 4, "stall_s": 2.0, "total_s": 30.0}
    return FetchConfig(cache_folder=cache_folder, **quick | values)


def read_until(folder: str, fetch: FetchConfig | None, lanes: int = 4) -> tuple[Epoch, RunFailed | UserError | None]:
    """Read epoch 0 and return it with the error that ended it early, if any."""
    images: list[tuple[int, bytes]] = []
    valid = 0
    try:
        shards = ShardSet([folder], fetch=fetch)
        data = DataConfig([folder], global_batch=2 * lanes, lanes=lanes, shuffle_window=4 * lanes)
        order = sample_order(shards, data, seed=3)
        with closing(sample_batches(shards, order)) as stream:
            for batch in islice(stream, order.first_step_after_epoch(0)):
                first = batch.epochs == 0  # the last step may hold samples of the next epoch
                samples = batch.rows["sample"][first].tolist()
                contents = [image.tobytes() for image, kept in zip(batch.encoded, first, strict=True) if kept]
                images += zip(samples, contents, strict=True)
                valid += int(batch.valid[first].sum())
    except (RunFailed, UserError) as error:
        return Epoch(images, valid), error
    return Epoch(images, valid), None


def read_epoch(folder: str, fetch: FetchConfig | None, lanes: int = 4) -> Epoch:
    """Read epoch 0.

    Raises:
        RunFailed, UserError: the error that ends it early.
    """
    epoch, error = read_until(folder, fetch, lanes)
    if error is not None:
        raise error
    return epoch


def read_until_stopped(folder: str, fetch: FetchConfig) -> Stopped:
    """Read an epoch that must stop early, with no sample masked before that."""
    epoch, error = read_until(folder, fetch)
    assert error is not None, "the epoch was read to its end"
    assert epoch.valid == len(epoch.images)
    return Stopped(error, epoch.images)


def reading_process(folder: str, cache_folder: Path) -> "subprocess.Popen[str]":
    """Start a process that reads epoch 0 and prints its fingerprint."""
    return subprocess.Popen(
        [
            sys.executable,
            "-c",
            "from tests.support import epoch_reader; epoch_reader._main()",
            folder,
            str(cache_folder),
        ],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _main() -> None:
    epoch, error = read_until(sys.argv[1], quick_fetch(Path(sys.argv[2])))
    sys.stdout.write(epoch.fingerprint if error is None else f"{type(error).__name__}: {error}")
