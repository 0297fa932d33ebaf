"""A map over a pool of processes that keeps the order of its items and bounds the work in flight."""

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

_CHUNKS_IN_FLIGHT: Final = 4  # for each worker


def worker_count(wanted: int, items: int, chunk: int = 1) -> int:
    """Return the number of processes to use, at least 1 and no more than there are chunks.

    Args:
        wanted: the number that the user asked for; 0 means one for each CPU that this process may use
        items: number of items
        chunk: items that a process gets at a time
    """
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(wanted or available, -(-items // chunk)))


def ordered_map(function: Callable[[A], B], items: Iterable[A], workers: int, chunk: int = 1) -> Generator[B]:
    """Yield function(item) for each item, in the order of the items.

    At most four chunks for each worker are computed ahead of the consumer, so memory is bounded however slow it is.
    Close the iterator if you leave it early.

    Args:
        function: the function; it and the items must pickle
        items: the items
        workers: number of processes; 1 computes in this one
        chunk: items that a process gets at a time

    Raises:
        RunFailed: if a worker dies; an error of `function` is raised as it is
    """
    if workers == 1:
        yield from map(function, items)
        return
    # Fresh interpreters, since a fork would copy the threads and locks of this process.
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
            "a worker process died, probably because memory ran out; try again with fewer workers"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _apply(function: Callable[[A], B], batch: list[A]) -> list[B]:
    return [function(item) for item in batch]


def _start_worker() -> None:
    """Leave Ctrl-C to the parent, and exit when the parent dies; otherwise the worker would wait forever."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
