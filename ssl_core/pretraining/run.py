"""The parts of a run that every step of it needs, the same at each start."""

from dataclasses import dataclass

import torch

from infra.errors import require
from infra.options import key
from infra.processes import Ranks
from sharding.reading.order import SampleOrder
from sharding.reading.shard_set import ShardSet
from ssl_core.checkpoints.mirror import Mirror
from ssl_core.pretraining.config import PretrainConfig
from ssl_core.pretraining.session import Session


@dataclass(frozen=True)
class Run:
    """A run, as one rank knows it.

    Attributes:
        config: the configuration
        session: this process's part in the run
        shards: the samples
        order: their order
        mirror: the store that receives copies of checkpoints, on the first rank
        device: device of this rank
    """

    config: PretrainConfig
    session: Session
    shards: ShardSet
    order: SampleOrder
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

    def require_steps_left(self, step: int) -> None:
        """Raise UserError if the run is beyond its end after `step` steps."""
        train = self.config.train
        require(
            step <= self.last_step,
            f"the run in {self.config.run_folder} is already at step {step}, beyond step {self.last_step} where "
            f"{key(train, 'epochs')} and {key(train, 'max_steps')} end it; raise them, or choose another run folder",
        )
