"""The news that a rank failed, for ranks that wait where no error reaches them.

With gloo, a rank notices at once that another has closed its connection. With NCCL it does not: it waits for the GPU
inside a CUDA call, where neither an error nor a signal reaches Python, and the others wait until NCCL's timeout. So a
rank that fails says so in the store in which the ranks met, and a thread of every other rank looks there.
"""

import json
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final

from infra.errors import RunFailed, UserError
from infra.log import say
from infra.urls import scrub

_KEY: Final = "sternum/failure"
_LOOK_EVERY_S: Final = 1.0
# A rank that can still raise its own error gets the time to do so: it knows more, and leaves in good order.
_GRACE_S: Final = 5.0


@contextmanager
def failures_shared(store: Any, rank: int, on_failure: Callable[[RunFailed], None]) -> Iterator[None]:
    """Tell the other ranks if the block raises; if another rank's does, end this process within seconds.

    Args:
        store: torch's store in which the ranks met
        rank: this rank
        on_failure: called in a thread before the process ends, with the error to report; the main thread may hang
    """
    left = threading.Event()
    watch = threading.Thread(target=_watch, args=(store.clone(), left, on_failure), daemon=True, name="failure-watch")
    watch.start()
    try:
        yield
    except BaseException as error:
        left.set()
        tell = threading.Thread(target=_tell, args=(store, rank, error), daemon=True, name="failure-tell")
        tell.start()
        tell.join(_GRACE_S)  # no longer, because the store may be out of reach
        raise
    finally:
        left.set()
        watch.join(_LOOK_EVERY_S)


def _tell(store: Any, rank: int, error: BaseException) -> None:
    with suppress(RuntimeError):  # the store may be gone with its rank
        store.compare_set(_KEY, "", json.dumps([rank, _line(error)]))  # the first one counts


def _watch(store: Any, left: threading.Event, on_failure: Callable[[RunFailed], None]) -> None:
    while not left.wait(_LOOK_EVERY_S):
        try:
            if not store.check([_KEY]):
                continue
            rank, line = json.loads(store.get(_KEY))
        except RuntimeError:  # whoever keeps the store has left or was lost; collectives will tell which
            return
        if not left.wait(_GRACE_S):
            _end(RunFailed(f"rank {rank} failed ({line}); run the same command again to resume"), on_failure)


def _end(error: RunFailed, on_failure: Callable[[RunFailed], None]) -> None:
    try:
        on_failure(error)
        say(f"sternum: error: {error}")
    finally:
        sys.stdout.flush()
        os._exit(RunFailed.exit_code)


def _line(error: BaseException) -> str:
    text = scrub(" ".join(str(error).split()))
    return text if isinstance(error, UserError | RunFailed) else f"{type(error).__name__}: {text}"[:500]
