"""Probing a live pretraining: each new checkpoint as it appears, so that TensorBoard shows what the backbone learns."""

import fcntl
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from evaluation.probe import Prober
from evaluation.probe_config import ProbeConfig
from evaluation.results.results import Results
from infra.errors import RunFailed, UserError, require
from infra.files import locked
from infra.log import say
from infra.status import Status, read_status
from ssl_core.checkpoints.checkpoint import find_checkpoints

POLL_S: Final = 5.0
RESTART_S: Final = 600.0  # in which a run that failed or was killed may be started again; supervise takes seconds


def watch(config: ProbeConfig, command: str = "", each: Callable[[Results], None] = lambda _: None) -> Results:
    """Probe as checkpoints appear, until the run has ended; then once more with all that only the last one is asked.

    `each` gets the results after every round. A run ends when its status says finished or refused. One that failed, or
    was killed, has ended when nobody takes it up for `RESTART_S`; one that is paused or preempted is waited for, since
    the same command goes on with it. Raises what `probe` raises, UserError when there is no such folder, and RunFailed
    when the run ended without a checkpoint.
    """
    run = config.run_folder
    require(run.is_dir(), f"run_folder={run} does not exist; name the folder of a pretraining that has been started")
    prober: Prober | None = None
    probed = -1
    held_s, looking_s = 0.0, time.time()  # when the run was last seen to be held, since when it is being looked at
    with locked(run / "features", "probing"):
        while True:
            status = read_status(run)
            if _is_held(run):
                held_s = time.time()
            ended = status is not None and _is_over(status, held_s, looking_s)
            there = find_checkpoints(run)
            newest = max((checkpoint.step for checkpoint in there), default=-1)
            if newest < 0 and ended:
                raise RunFailed(f"the run in {run} has ended without a checkpoint; {status.message if status else ''}")
            if newest > probed or (ended and prober is not None):
                prober = prober or Prober(config, command)
                say(f"probing the checkpoints up to step {newest}")
                try:
                    found = prober.probe(whole=ended)
                except (RunFailed, UserError):
                    # Retention may have removed a checkpoint between its discovery and its reading: look again.
                    if set(there) <= set(find_checkpoints(run)):
                        raise
                    continue
                probed = newest
                each(found)
                if ended:
                    return found
                looking_s = time.time()
            time.sleep(POLL_S)


def _is_over(status: Status, held_s: float, looking_s: float) -> bool:
    """Tell whether a run has ended; held_s: when it last was in use, looking_s: since when that is being looked at."""
    if status.state in ("finished", "refused"):
        return True
    if status.state not in ("failed", "running"):
        return False
    since_s = status.time_s if status.state == "failed" else looking_s  # a run that is killed leaves `running`
    return time.time() - max(since_s, held_s) > RESTART_S


def _is_held(run: Path) -> bool:
    """Tell whether a pretraining holds the lock of its folder (`infra.files.locked`).

    The lock is taken for microseconds only, since a run that starts in them would be refused. A lock that cannot be
    looked at counts as held.
    """
    try:
        with (run / ".lock").open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            fcntl.flock(lock, fcntl.LOCK_UN)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False
