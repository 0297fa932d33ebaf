"""Settings for the data of a training run, and their checks."""

from dataclasses import dataclass, field

from infra.configuration.options import key, require_between
from infra.errors import require
from infra.urls import Location, require_no_credentials
from sharding.format.fractions import FRACTIONS_PERCENT
from sharding.reading.fetch import FetchConfig


@dataclass(frozen=True)
class DataConfig:
    """The images to train on, and their order.

    Args:
        shards: folders written by sternum shard, or their URLs (http, https, s3, gs); all are trained on together
        splits: official splits to use, all if empty; a dataset without official splits is used whole
        fraction_percent: percentage of the patients to train on: 1, 10 or 100; each one contains the smaller ones
        global_batch: images per step over all ranks
        lanes: parallel streams that make up a batch; must divide global_batch and be a multiple of the process count
        shuffle_window: number of images shuffled together, over all lanes; a smaller dataset is shuffled whole
        max_masked_percent: largest percentage of damaged samples in an epoch, 0 to 100; above it the run stops
        fetch: how remote shards are downloaded and cached
    """

    shards: list[Location]
    splits: list[str] = field(default_factory=list)
    fraction_percent: int = 100
    global_batch: int = 256
    lanes: int = 64
    shuffle_window: int = 16384
    max_masked_percent: float = 0.1
    fetch: FetchConfig = field(default_factory=FetchConfig)

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            UserError: if a value is out of range
        """
        require(
            len(self.shards) > 0,
            f"{key(self, 'shards')}=[] must name a folder of shards; make one: sternum shard --help",
        )
        for location in self.shards:
            require_no_credentials(location, key(self, "shards"))
        require_fraction(self.fraction_percent)
        require_lanes(self.lanes, self.global_batch, self.shuffle_window)
        require_between(self, "max_masked_percent", 0, 100, "try 0.1")


def require_fraction(percent: int) -> None:
    """Raise UserError unless shards of this fraction exist."""
    require(
        percent in FRACTIONS_PERCENT,
        f"{key(DataConfig, 'fraction_percent')}={percent} must be one of {FRACTIONS_PERCENT}; try 100",
    )


def require_lanes(lanes: int, global_batch: int, shuffle_window: int) -> None:
    """Raise UserError unless a sample order can have these lanes, batch and window."""
    values = {"global_batch": (global_batch, 256), "lanes": (lanes, 64), "shuffle_window": (shuffle_window, 8192)}
    for name, (value, usual) in values.items():
        require(value >= 1, f"{key(DataConfig, name)}={value} must be at least 1; try {usual}")
    require(
        global_batch % lanes == 0,
        f"{key(DataConfig, 'lanes')}={lanes} must divide {key(DataConfig, 'global_batch')}={global_batch}; "
        f"try {nearest_divisors(lanes, global_batch)}",
    )


def divisors(number: int) -> list[int]:
    """Return the numbers that divide `number`, smallest first."""
    small = [divisor for divisor in range(1, int(number**0.5) + 1) if number % divisor == 0]
    return sorted({*small, *(number // divisor for divisor in small)})


def nearest_divisors(value: int, number: int) -> str:
    """Name the divisors of `number` next to `value`, one on each side if it exists: "8 or 16"."""
    fitting = divisors(number)
    below = [divisor for divisor in fitting if divisor < value][-1:]
    above = [divisor for divisor in fitting if divisor > value][:1]
    return " or ".join(map(str, below + above))
