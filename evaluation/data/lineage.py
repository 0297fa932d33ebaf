"""The data that weights were trained on: by a run, by the runs that it descends from, and by other runs of Sternum."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from evaluation.results.backbones import EarlierTraining
from infra.errors import RunFailed, UserError
from infra.urls import shown
from sharding.reading.data_config import DataConfig
from sharding.reading.fetch import FetchConfig
from sharding.reading.shard_set import ShardSet
from ssl_core.checkpoints.ancestor import Ancestor
from ssl_core.checkpoints.checkpoint import CheckpointState

Training = tuple[Ancestor, ShardSet | None]  # weights, and the shards that they were trained on if these are available


@dataclass(frozen=True)
class Lineage:
    """The shards of a pretraining and of those before it, and of other backbones that Sternum trained.

    Attributes:
        own: the shards of the run; None if they are unavailable or have changed, or without a run
        before: the weights that the run descends from, the latest first, each with its shards; None for those that are
            unavailable or were never known
        others: the trainings of each backbone that the run did not train, by its name, likewise; none if unknown
        has_run: whether a run is judged
    """

    own: ShardSet | None
    before: list[Training]
    others: Mapping[str, list[Training]] = field(default_factory=dict)
    has_run: bool = True

    @property
    def available(self) -> Iterator[tuple[str, ShardSet]]:
        """The available shards of each training, with the weights that it made; no name for the run itself."""
        known = {} if self.own is None else {self.own.identity: ("", self.own)}
        for ancestor, shards in self.before:
            if shards is not None:
                known.setdefault(shards.identity, (ancestor.weights, shards))
        yield from known.values()

    @property
    def available_of_all(self) -> Iterator[tuple[str, ShardSet]]:
        """The same, with the shards of the other backbones, each by the name of the first that saw them."""
        known = {shards.identity: (weights, shards) for weights, shards in self.available}
        for name, trainings in self.others.items():
            for _, shards in trainings:
                if shards is not None:
                    known.setdefault(shards.identity, (name, shards))
        yield from known.values()

    @property
    def is_whole(self) -> bool:
        """Whether the shards of each training of the run by Sternum are available."""
        known = [shards for ancestor, shards in self.before if ancestor.data_identity is not None]
        return self.own is not None and None not in known

    @property
    def knows_all_others(self) -> bool:
        """Whether the shards of each training of each other backbone are available."""
        return all(trainings and None not in [shards for _, shards in trainings] for trainings in self.others.values())

    @property
    def records(self) -> list[EarlierTraining]:
        """What `results.json` says of the trainings before that of the run."""
        return [_record(*training) for training in self.before]

    def records_of(self, name: str) -> list[EarlierTraining]:
        """Return what `results.json` says of the trainings of another backbone."""
        return [_record(*training) for training in self.others.get(name, [])]


def _record(ancestor: Ancestor, shards: ShardSet | None) -> EarlierTraining:
    return EarlierTraining(
        weights=ancestor.weights,
        sha256=ancestor.sha256,
        epochs=ancestor.epoch,
        shards=[shown(location) for location in ancestor.shards],
        data_identity=ancestor.data_identity,
        compared=shards is not None,
    )


def open_lineage(
    data: DataConfig, newest: CheckpointState, others: Mapping[str, Sequence[Ancestor]], fetch: FetchConfig
) -> Lineage:
    """Open the shards that a run, the runs before it, and other backbones were trained on.

    Args:
        data: the data of the run
        newest: the state of its newest checkpoint
        others: the trainings of other backbones, by their names
        fetch: how to download; not as the runs did, because a cache folder may be another machine's or a stranger's
    """
    own = pretraining_shards(data, newest.data_identity, fetch)
    return Lineage(own, _opened(newest.ancestors, fetch), open_trainings(others, fetch))


def open_trainings(others: Mapping[str, Sequence[Ancestor]], fetch: FetchConfig) -> dict[str, list[Training]]:
    """Open the shards that backbones were trained on, by their names."""
    return {name: _opened(trainings, fetch) for name, trainings in others.items()}


def _opened(ancestors: Sequence[Ancestor], fetch: FetchConfig) -> list[Training]:
    return [(ancestor, _shards_of_ancestor(ancestor, fetch)) for ancestor in ancestors]


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
