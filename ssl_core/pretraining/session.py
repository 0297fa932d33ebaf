"""The session of a pretraining: it joins the ranks, locks the run folder, and writes `status.json`."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

import torch

from infra.configuration import config as configuration
from infra.configuration.options import key
from infra.errors import RunFailed, UserError
from infra.log import say
from infra.monitoring.status import State, Status, write_status
from infra.ranks.process_group import process_group
from infra.ranks.processes import Ranks, clock_skew_s, on_first_rank, require_same, require_world
from infra.signals import StopRequest
from infra.storage.locks import FolderLock, locked
from infra.urls import scrub
from ssl_core.pretraining.config import PretrainConfig

_LARGEST_SKEW_S: Final = 2.0


class Session:
    """This process's part in a run.

    Attributes:
        run: the run folder
        ranks: this process among all
        stop: whether a signal asked the run to stop
        state: the state for `status.json`
        step: steps done
        message: one line for people, for `status.json`
    """

    def __init__(self, run: Path, ranks: Ranks, stop: StopRequest) -> None:
        self.run, self.ranks, self.stop = run, ranks, stop
        self.state: State = "running"
        self.step = 0
        self.message = ""
        self._alarm = ""
        self._lock: FolderLock | None = None  # on the first rank

    def hold(self, lock: FolderLock) -> None:
        """Keep the lock of the run folder, to notice if the folder is replaced."""
        self._lock = lock

    def require_folder(self) -> None:
        """Check that nobody has removed or replaced the run folder. Collective.

        Raises:
            RunFailed: on all ranks, if it is no longer the one that this run has locked
        """
        on_first_rank(self.ranks, self._require_held)

    def _require_held(self) -> None:
        if self._lock:
            self._lock.require_held()

    def finish(self, state: State, message: str) -> None:
        """Set the final state of this start, after its last step."""
        self.state, self.message = state, f"{message}; {self._alarm}" if self._alarm else message

    def note_alarm(self, alarm: str) -> None:
        """Write to `status.json` that the run goes on, but will hardly be of use; its final state repeats this."""
        self._alarm = self.message = alarm
        self.write_status()

    def fail(self, error: BaseException) -> None:
        """Write to `status.json` that this error ended the run, unless another process may have locked the folder."""
        self.state = "refused" if isinstance(error, UserError) else "failed"
        self.message = scrub(" ".join(str(error).split())) or type(error).__name__
        if self._lock:
            self.write_status()

    def write_status(self) -> None:
        """Write `status.json`; only the first rank does.

        A full disk raises an alarm only: it neither ends the training nor hides the error that did.
        """
        if not self.ranks.is_first:
            return
        try:
            self._require_held()
            write_status(self.run, Status(self.state, self.step, self.message))
        except (UserError, RunFailed, OSError) as error:
            say(f"ALARM: the run is {self.state} at step {self.step}, but status.json could not be written: {error}")


@contextmanager
def open_session(config: PretrainConfig, ranks: Ranks, device: torch.device) -> Iterator[Session]:
    """Join the other ranks and lock `config.run_folder` within the block; at its end, write `status.json`.

    Raises:
        UserError: on every rank, if their configurations differ, their number is not train.world_size, or the folder
            is in use
    """
    require_world(config.train, "world_size", ranks.world)
    with ExitStack() as stack:
        stop = stack.enter_context(StopRequest(speak=ranks.is_first))
        session = Session(config.run_folder, ranks, stop)
        timeout_s, timeout_key = config.train.timeout_s, key(config.train, "timeout_s")
        stack.enter_context(process_group(ranks, device, timeout_s, timeout_key, on_failure=session.fail))
        require_same(configuration.to_yaml(config), "the configuration")
        skew_s = clock_skew_s()
        if skew_s > _LARGEST_SKEW_S and ranks.is_first:
            say(
                f"warning: the ranks' clocks differ by {skew_s:.1f} s; synchronize them, or launchers may lose machines"
            )
        on_first_rank(ranks, lambda: session.hold(stack.enter_context(locked(config.run_folder, "pretraining"))))
        try:
            yield session
        except BaseException as error:
            session.fail(error)
            raise
        session.write_status()
