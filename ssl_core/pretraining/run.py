"""The parts of a run that every step of it needs, the same at each start."""

from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import torch

from infra.configuration.options import key
from infra.errors import require
from infra.ranks.processes import Ranks
from sharding.reading.order import SampleOrder
from sharding.reading.shard_set import ShardSet
from sharding.reading.siblings import Siblings
from ssl_core.checkpoints.mirror import Mirror
from ssl_core.pretraining.config import PretrainConfig
from ssl_core.pretraining.session import Session
from ssl_core.views.batches import Stage
from ssl_core.views.spec import ViewSpec


def early_stages(config: PretrainConfig, order: SampleOrder) -> list[Stage]:
    """Return the stages before the last one; a stage ends before the first step without a sample of its epochs."""
    ends = accumulate(stage.epochs for stage in config.train.early_stages)
    steps = [order.first_step_after_epoch(epochs - 1) for epochs in ends]
    return [Stage(*stage) for stage in zip(config.views_of_stages()[:-1], steps, strict=True)]


@dataclass(frozen=True)
class Run:
    """A run, as one rank knows it.

    Attributes:
        config: the configuration
        session: this process's part in the run
        shards: the samples
        order: their order
        siblings: draws the siblings that second views show; None if these show the samples
        mirror: the store that receives copies of checkpoints, on the first rank
        device: device of this rank
    """

    config: PretrainConfig
    session: Session
    shards: ShardSet
    order: SampleOrder
    siblings: Siblings | None
    mirror: Mirror | None
    device: torch.device

    @property
    def ranks(self) -> Ranks:
        """This process among all."""
        return self.session.ranks

    @property
    def total_steps(self) -> int:
        """Steps of the whole run."""
        return self.order.first_step_after_epoch(self.config.train.epochs - 1)

    @property
    def last_step(self) -> int:
        """Steps after which this start ends."""
        return min(self.total_steps, self.config.train.max_steps or self.total_steps)

    @cached_property
    def early_stages(self) -> list[Stage]:
        """The stages before the last one."""
        return early_stages(self.config, self.order)

    def views_at(self, step: int) -> ViewSpec:
        """Return the ranges and the size of the views of a step."""
        return next((stage.spec for stage in self.early_stages if step < stage.end_step), self.config.views)

    def require_steps_left(self, step: int) -> None:
        """Raise UserError if the run is beyond its end after `step` steps."""
        train = self.config.train
        require(
            step <= self.last_step,
            f"the run in {self.config.run_folder} is already at step {step}, beyond step {self.last_step} where "
            f"{key(train, 'epochs')} and {key(train, 'max_steps')} end it; raise them, or choose another run folder",
        )
