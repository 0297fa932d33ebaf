"""The data that the weights of a run were trained on: by the run, and by the runs that it descends from."""

from collections.abc import Iterator
from dataclasses import dataclass

from evaluation.results.backbones import EarlierTraining
from infra.errors import RunFailed, UserError
from infra.urls import shown
from sharding.reading.data_config import DataConfig
from sharding.reading.fetch import FetchConfig
from sharding.reading.shard_set import ShardSet
from ssl_core.checkpoints.ancestor import Ancestor
from ssl_core.checkpoints.checkpoint import CheckpointState


@dataclass(frozen=True)
class Lineage:
    """The shards of a pretraining and of those before it.

    Attributes:
        own: the shards of the run; None if they are unavailable or have changed
        before: the weights that the run descends from, the latest first, each with its shards; None for those that are
            unavailable or were never known
    """

    own: ShardSet | None
    before: list[tuple[Ancestor, ShardSet | None]]

    @property
    def available(self) -> Iterator[tuple[str, ShardSet]]:
        """The available shards of each training, with the weights that it made; no name for the run itself."""
        known = {} if self.own is None else {self.own.identity: ("", self.own)}
        for ancestor, shards in self.before:
            if shards is not None:
                known.setdefault(shards.identity, (ancestor.weights, shards))
        yield from known.values()

    @property
    def is_whole(self) -> bool:
        """Whether the shards of each training by Sternum are available."""
        known = [shards for ancestor, shards in self.before if ancestor.data_identity is not None]
        return self.own is not None and None not in known

    @property
    def records(self) -> list[EarlierTraining]:
        """What `results.json` says of the trainings before that of the run."""
        return [
            EarlierTraining(
                weights=ancestor.weights,
                sha256=ancestor.sha256,
                epochs=ancestor.epoch,
                shards=[shown(location) for location in ancestor.shards],
                data_identity=ancestor.data_identity,
                compared=shards is not None,
            )
            for ancestor, shards in self.before
        ]


def open_lineage(data: DataConfig, newest: CheckpointState, fetch: FetchConfig) -> Lineage:
    """Open the shards that a run and the runs before it were trained on.

    Args:
        data: the data of the run
        newest: the state of its newest checkpoint
        fetch: how to download; not as the runs did, because a cache folder may be another machine's or a stranger's
    """
    before = [(ancestor, _shards_of_ancestor(ancestor, fetch)) for ancestor in newest.ancestors]
    return Lineage(pretraining_shards(data, newest.data_identity, fetch), before)


def _shards_of_ancestor(ancestor: Ancestor, fetch: FetchConfig) -> ShardSet | None:
    if ancestor.data_identity is None or not ancestor.shards:
        return None
    try:
        data = DataConfig([*ancestor.shards], ancestor.splits, ancestor.fraction_percent)
    except UserError:
        return None
    return pretraining_shards(data, ancestor.data_identity, fetch)


def pretraining_shards(data: DataConfig, data_identity: str, fetch: FetchConfig) -> ShardSet | None:
    """Return the shards that a run was pretrained on; None if these are unavailable or have changed.

    Args:
        data: the data of the run
        data_identity: the identity of the run's shards
        fetch: how to download
    """
    try:
        shards = ShardSet(data.shards, data.splits, data.fraction_percent, fetch)
        if shards.identity != data_identity:
            return None
        shards.whole_index()
    except (UserError, RunFailed):
        return None
    return shards
