"""Probes a live pretraining: each new checkpoint as it appears, so that TensorBoard shows what the backbone learns."""

import time
from collections.abc import Callable
from typing import Final

from evaluation.probing.config import ProbeConfig
from evaluation.probing.opened_subject import open_subject
from evaluation.probing.probe import Prober
from evaluation.results.results import Results
from infra.configuration.options import setting
from infra.errors import RunFailed, UserError, require
from infra.log import say
from infra.monitoring.status import Status, read_status
from infra.storage.locks import is_locked, locked
from ssl_core.checkpoints.checkpoint import find_checkpoints

POLL_S: Final = 5.0
RESTART_S: Final = 600.0  # time to restart a run that failed or was killed; supervise takes seconds


def watch(config: ProbeConfig, command: str = "", each: Callable[[Results], None] = lambda _: None) -> Results:
    """Probe checkpoints as they appear until the run has ended, then once more with everything for the last one.

    A run ends when its status says finished or refused. A run that failed or was killed has ended if it is not
    restarted within `RESTART_S`; so has one whose status is missing or damaged. For a paused or preempted run, the
    watch waits: the same command resumes it.

    Args:
        config: the options
        command: the command line, recorded in the results
        each: called with the results after every round

    Returns:
        The final results.

    Raises:
        UserError: if the folder does not exist, or as `probe` raises it.
        RunFailed: if the run ended without a checkpoint, or as `probe` raises it.
    """
    run = config.folder
    require(
        run.is_dir(),
        f"{setting(config, 'run_folder')} does not exist; name the folder of a pretraining that has started",
    )
    prober: Prober | None = None
    probed = -1
    held_s, watching_s = 0.0, time.time()  # when the run last held its lock, and since when it is watched
    with locked(run / "features", "probing"):
        while True:
            status = read_status(run)
            if is_locked(run):
                held_s = time.time()
            checkpoints = find_checkpoints(run)
            newest = max((checkpoint.step for checkpoint in checkpoints), default=-1)
            has_started = status is not None or newest >= 0  # a run with checkpoints may have lost its status
            ended = has_started and _is_over(status, held_s, watching_s)
            if newest < 0 and ended:
                raise RunFailed(f"the run in {run} has ended without a checkpoint; {status.message if status else ''}")
            if newest > probed or (ended and prober is not None):
                prober = prober or Prober(config, open_subject(config), command)
                say(f"probing the checkpoints up to step {newest}")
                try:
                    results = prober.probe(final=ended)
                except (RunFailed, UserError):
                    # Retention may have removed a checkpoint after it was listed: look again.
                    if set(checkpoints) <= set(find_checkpoints(run)):
                        raise
                    continue
                probed = newest
                each(results)
                if ended:
                    return results
                watching_s = time.time()
            time.sleep(POLL_S)


def _is_over(status: Status | None, held_s: float, watching_s: float) -> bool:
    """Return whether a run has ended, given when it last held its lock and since when it is watched."""
    if status and status.state in ("finished", "refused"):
        return True
    if status and status.state not in ("failed", "running"):
        return False
    # A killed run leaves the status `running`; one that is missing or damaged says nothing either.
    since_s = status.time_s if status and status.state == "failed" else watching_s
    return time.time() - max(since_s, held_s) > RESTART_S
