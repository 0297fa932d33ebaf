"""`sternum views`: what pretraining makes of images."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Final, Literal

import numpy as np

from infra.config import parse
from infra.errors import require
from infra.files import write_atomic
from launch.cli import guarded
from sharding.reading.order import Positions
from sharding.reading.shard_set import ShardSet
from sharding.reading.stream import EncodedBatch
from ssl_core.pretraining.config import PretrainConfig
from ssl_core.views.sheet import to_png, view_sheet
from ssl_core.views.spec import ViewSpec

_MOST_SAMPLES: Final = 20


@dataclass(frozen=True)
class ViewsConfig:
    """What to show.

    Args:
        shards: folders that sternum shard wrote
        out: the PNG file to write
        views: how a sample becomes two views
        seed: the run's; the views are those that a run with this seed makes
        epoch: the epoch whose views are shown, from 0 on
        count: samples to show, taken at even distances from all
        executor: what decodes and augments: dali, torchvision, or auto (DALI where it is installed)
    """

    shards: list[str]
    out: Path = Path("views.png")
    views: ViewSpec = field(default_factory=ViewSpec)
    seed: int = 0
    epoch: int = 0
    count: int = 6
    executor: Literal["auto", "dali", "torchvision"] = "auto"

    def __post_init__(self) -> None:
        """Check every value on its own."""
        require(self.out.suffix.lower() == ".png", f"out={self.out} must end in .png; try {self.out.stem}.png")
        require(0 <= self.seed < 2**63, f"seed={self.seed} must be between 0 and 2^63 - 1; use 0")
        require(0 <= self.epoch < 2**32, f"epoch={self.epoch} must be between 0 and 2^32 - 1; use 0")
        require(1 <= self.count <= _MOST_SAMPLES, f"count={self.count} must be from 1 to {_MOST_SAMPLES}; try 6")


def main(arguments: Sequence[str]) -> int:
    """Write the page and print where it is."""
    own = {option.name for option in fields(ViewsConfig)}
    config = parse(
        ViewsConfig,
        arguments,
        command="views",
        description="Show samples beside their two views, with what was drawn for each. A pretraining's "
        "configuration may be given as --config: its views, seed and executor are taken.",
        examples=[
            "sternum views shards/cell --out=views.png",
            "sternum views shards/cell --config=runs/first/config.yaml --epoch=3 --count=10",
            "sternum views shards/cell --views.size_px=96 --views.crop_area=[0.2,1.0]",
        ],
        positional=["shards"],
        ignored=[option.name for option in fields(PretrainConfig) if option.name not in own],
    )
    shards = ShardSet(config.shards)
    numbers = np.unique(np.linspace(0, shards.samples - 1, config.count).round().astype(np.int64))
    positions = Positions(np.full_like(numbers, config.epoch), *shards.locate(numbers))
    places = list(zip(positions.shard.tolist(), positions.row.tolist(), strict=True))
    batch = EncodedBatch(
        step=0,
        encoded=[shards.read(*place) for place in places],
        rows=shards.rows(positions),
        epochs=positions.epoch,
        valid=np.ones(len(places), np.bool_),
    )
    names = [shards.key(*place) for place in places]
    sheet = view_sheet(batch, config.views, seed=config.seed, view_executor=config.executor, names=names)
    write_atomic(config.out, to_png(sheet))
    sys.stdout.write(f"{config.out}\n")
    return 0


if __name__ == "__main__":
    sys.exit(guarded(main, sys.argv[1:]))
