"""A map over processes that keeps the order of its items and bounds what is in flight."""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from typing import Final, TypeVar

from infra.errors import RunFailed

A = TypeVar("A")
B = TypeVar("B")

_CHUNKS_IN_FLIGHT: Final = 4  # a worker


def worker_count(asked: int, items: int, chunk: int = 1) -> int:
    """Return how many processes to use: `asked` (0: one for each CPU of this process), but none without work."""
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(asked or available, -(-items // chunk)))


def ordered_map(function: Callable[[A], B], items: Iterable[A], workers: int, chunk: int = 1) -> Generator[B]:
    """Yield function(item) for each item, in order, computed in `workers` processes (1: in this one).

    Items go out `chunk` at a time, and at most four chunks a worker are computed ahead of the consumer, so memory is
    bounded however slow it is. `function` and items must pickle. Close the iterator when leaving it early. Raises
    what `function` raises, and RunFailed when a worker dies.
    """
    if workers == 1:
        yield from map(function, items)
        return
    # Fresh interpreters: a fork would copy whatever threads and locks this process has.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker)
    remaining = iter(items)
    pending: deque[Future[list[B]]] = deque()
    try:
        while True:
            while len(pending) < workers * _CHUNKS_IN_FLIGHT and (batch := list(islice(remaining, chunk))):
                pending.append(pool.submit(_apply, function, batch))
            if not pending:
                return
            yield from pending.popleft().result()
    except BrokenProcessPool as error:
        raise RunFailed(
            "a worker process died, as happens when memory runs out; try again with fewer workers"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _apply(function: Callable[[A], B], batch: list[A]) -> list[B]:
    return [function(item) for item in batch]


def _start_worker() -> None:
    """Leave Ctrl-C to the parent, and end with it even when it is killed: a pool's workers would wait forever."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
