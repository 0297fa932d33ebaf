"""`sternum views`: draws samples next to the views that pretraining makes of them."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Final, Literal

import numpy as np

from infra.configuration.config import parse
from infra.configuration.options import require_between, require_seed, setting
from infra.errors import require
from infra.storage.files import write_atomic
from infra.urls import Location
from launch.builtin_configs import PRETRAIN_CONFIGS
from sharding.reading.order import Positions
from sharding.reading.shard_set import ShardSet
from sharding.reading.siblings import NO_SIBLINGS
from sharding.reading.stream import read_batch
from ssl_core.pretraining.config import PretrainConfig
from ssl_core.views.second_images import siblings_of
from ssl_core.views.sheet import to_png, view_sheet
from ssl_core.views.spec import ViewSpec

_MOST_SAMPLES: Final = 20


@dataclass(frozen=True)
class ViewsConfig:
    """The samples and views to show.

    Args:
        shards: folders that sternum shard wrote
        out: the PNG file to write
        views: how to draw the views of a sample
        seed: seed of the run; the page shows the views that a run with this seed makes
        epoch: the epoch whose views are shown, counted from 0
        count: number of samples, 1 to 20, evenly spaced over all shards
        executor: library that decodes and augments: dali, torchvision, or auto (DALI if it is installed)
    """

    shards: list[Location]
    out: Path = Path("views.png")
    views: ViewSpec = field(default_factory=ViewSpec)
    seed: int = 0
    epoch: int = 0
    count: int = 6
    executor: Literal["auto", "dali", "torchvision"] = "auto"

    def __post_init__(self) -> None:
        require(self.out.suffix.lower() == ".png", f"{setting(self, 'out')} must end in .png; try {self.out.stem}.png")
        require_seed(self)
        require(0 <= self.epoch < 2**32, f"{setting(self, 'epoch')} must be between 0 and 2^32 - 1; use 0")
        require_between(self, "count", 1, _MOST_SAMPLES, "try 6")


def main(arguments: Sequence[str]) -> int:
    """Write the page and print its path."""
    shared = {option.name for option in fields(ViewsConfig)}
    config = parse(
        ViewsConfig,
        arguments,
        command="views",
        description=(
            "Draw samples next to their views, with the random parameters of each view. --config also "
            "accepts a pretraining configuration and uses its views, seed and executor."
        ),
        examples=[
            "sternum views shards/cell --out=views.png",
            "sternum views shards/cell --config=runs/first/config.yaml --epoch=3 --count=10",
            "sternum views shards/cell --config=gazda2021",
            "sternum views shards/cell --views.size_px=96 --views.crop_area=[0.2,1.0]",
        ],
        subject="shards",
        ignored=[option.name for option in fields(PretrainConfig) if option.name not in shared],
        configs=PRETRAIN_CONFIGS,
    )
    shards = ShardSet(config.shards)
    numbers = np.unique(np.linspace(0, shards.samples - 1, config.count).round().astype(np.int64))
    positions = Positions(np.full_like(numbers, config.epoch), *shards.locate(numbers))
    siblings = siblings_of(config.views, shards, config.seed)
    drawn = siblings.draw(positions) if siblings else NO_SIBLINGS
    batch = read_batch(shards, 0, positions, drawn, mask=False)
    names = {
        int(row["sample"]): shards.key(shard, number)
        for places in (positions, drawn.positions)
        for row, shard, number in zip(shards.rows(places), places.shard.tolist(), places.row.tolist(), strict=True)
    }
    sheet = view_sheet(batch, config.views, seed=config.seed, view_executor=config.executor, names=names)
    write_atomic(config.out, to_png(sheet))
    sys.stdout.write(f"{config.out}\n")
    return 0
