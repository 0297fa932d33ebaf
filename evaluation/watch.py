"""Probing a live pretraining: each new checkpoint as it appears, so that TensorBoard shows what the backbone learns."""

import time
from collections.abc import Callable
from typing import Final

from evaluation.probe import Prober
from evaluation.probe_config import ProbeConfig
from evaluation.results import Results
from infra.errors import RunFailed, UserError
from infra.files import locked
from infra.log import say
from infra.status import read_status
from ssl_core.checkpoint import find_checkpoints

POLL_S: Final = 5.0


def watch(config: ProbeConfig, command: str = "", each: Callable[[Results], None] = lambda _: None) -> Results:
    """Probe as checkpoints appear, until the run has ended; then once more with all that only the last one is asked.

    `each` gets the results after every round. A run ends when its status says finished, refused or failed; one that is
    paused or preempted is waited for, since the same command goes on with it. Raises what `probe` raises, and RunFailed
    when the run failed without a checkpoint.
    """
    run = config.run_folder
    prober: Prober | None = None
    probed = -1
    with locked(run / "features", "probing"):
        while True:
            status = read_status(run)
            ended = status is not None and status.state in ("finished", "refused", "failed")
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
            time.sleep(POLL_S)
