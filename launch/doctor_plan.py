"""What `sternum doctor` says of a pretraining command."""

import shlex
from collections.abc import Iterator, Sequence

from infra.configuration.config import parse
from infra.doctor.finding import Finding, finding_of
from infra.errors import RunFailed, UserError, require
from infra.ranks.processes import Ranks
from infra.urls import Location
from launch.builtin_configs import PRETRAIN_CONFIGS
from ssl_core.pretraining.config import PretrainConfig
from ssl_core.pretraining.plan import check_plan

_STARTS = ("pretrain", "launch.pretrain")  # by sternum, or by torchrun


class Plan:
    """A pretraining that is not started.

    Attributes:
        locations: the folder and the object store that it writes
    """

    def __init__(self, command: Sequence[str]) -> None:
        """Read a command line; raises UserError if it does not pretrain, or has a mistake."""
        start = next((number for number, word in enumerate(command) if word in _STARTS), None)
        require(
            start is not None,
            f"the command after -- is {shlex.join(command)!r}, but only sternum pretrain has a plan; leave it out",
        )
        assert start is not None
        self._config = parse(
            PretrainConfig,
            command[start + 1 :],
            command="pretrain",
            description="",
            examples=(),
            subject="run_folder",
            configs=PRETRAIN_CONFIGS,
        )
        mirror = self._config.checkpoints.mirror
        self.locations: list[Location] = [self._config.run_folder, *([mirror] if mirror else [])]

    def findings(self, ranks: Ranks) -> Iterator[Finding]:
        """Yield what `sternum pretrain --check` says: data, model, memory, steps, disk."""
        try:
            for line in check_plan(self._config, ranks):
                yield Finding("plan", line)
        except (UserError, RunFailed) as error:
            yield finding_of("plan", error)
