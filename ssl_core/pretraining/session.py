"""The frame around a pretraining: its processes, its folder, what it leaves for whoever starts it again."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

import torch

from infra import config as configuration
from infra.errors import RunFailed, UserError
from infra.files import locked
from infra.log import say
from infra.processes import Ranks, clock_skew_s, on_first_rank, process_group, require_same, require_world
from infra.signals import StopRequest
from infra.status import State, Status, write_status

_WARN_OF_SKEW_S: Final = 2.0


class Session:
    """A run that this process takes part in; `state`, `step` and `message` become `status.json` when it is written."""

    def __init__(self, run: Path, ranks: Ranks, stop: StopRequest) -> None:
        self.run, self.ranks, self.stop = run, ranks, stop
        self.state: State = "running"
        self.step = 0
        self.message = ""

    def ends(self, state: State, message: str) -> None:
        """Say how the run stands now that its last step for this time is done."""
        self.state, self.message = state, message

    def write(self) -> None:
        """Write how the run stands; only the first rank does.

        When the disk does not take it, that is said: it neither ends a training nor hides the error that did.
        """
        if not self.ranks.is_first:
            return
        try:
            write_status(self.run, Status(self.state, self.step, self.message))
        except (UserError, RunFailed, OSError) as error:
            say(f"ALARM: the run is {self.state} at step {self.step}, but its status.json does not say so: {error}")


@contextmanager
def session(config: Any, ranks: Ranks, device: torch.device) -> Iterator[Session]:
    """Join the other ranks and hold `config.run_folder` until the block ends; says in `status.json` how it ended.

    config: a PretrainConfig. Raises UserError on every rank when they were given different configurations, another
    number of them came than was promised, or the folder is in use.
    """
    require_world(config.train.world_size, ranks.world)
    with ExitStack() as stack:
        stop = stack.enter_context(StopRequest())
        stack.enter_context(process_group(ranks, device, config.train.timeout_s))
        require_same(configuration.to_yaml(config), "the configuration")
        skew_s = clock_skew_s()
        if skew_s > _WARN_OF_SKEW_S and ranks.is_first:
            say(f"warning: the ranks' clocks are {skew_s:.1f} s apart; synchronise them, or launchers lose machines")
        on_first_rank(ranks, lambda: stack.enter_context(locked(config.run_folder, "pretraining")))
        held = Session(config.run_folder, ranks, stop)
        try:
            yield held
        except BaseException as error:
            held.state = "refused" if isinstance(error, UserError) else "failed"
            held.message = " ".join(str(error).split()) or type(error).__name__
            raise
        finally:
            held.write()
