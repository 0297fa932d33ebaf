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
from infra.log import say

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


def ordered_map(
    function: Callable[[A], B],
    items: Iterable[A],
    workers: int,
    chunk: int = 1,
    crashed: Callable[[A], B] | None = None,
) -> Generator[B]:
    """Yield function(item) for each item, in the order of the items.

    At most four chunks for each worker are computed ahead of the consumer, so memory is bounded however slow it is.
    Close the iterator if you leave it early.

    If a worker dies, the items that were in work are tried again one by one, each in a process with nothing beside it.
    So an item that kills its process (a decoder that crashes) is told from a machine that is short of memory.

    Args:
        function: the function; it and the items must pickle
        items: the items
        workers: number of processes; 1 computes in this one
        chunk: items that a process gets at a time
        crashed: returns the result for an item that kills a process that works on it alone; None raises RunFailed

    Raises:
        RunFailed: if a worker dies and `crashed` is None; an error of `function` is raised as it is
    """
    if workers == 1:
        yield from map(function, items)
        return
    remaining = iter(items)
    pending: deque[tuple[list[A], Future[list[B]]]] = deque()
    pool = _pool(workers)
    try:
        while True:
            try:
                while len(pending) < workers * _CHUNKS_IN_FLIGHT and (batch := list(islice(remaining, chunk))):
                    pending.append((batch, _submitted(pool, function, batch)))
                if not pending:
                    return
                results = pending[0][1].result()
            except BrokenProcessPool as error:
                _end(pool)
                if crashed is None:
                    raise RunFailed(
                        "a worker process died, probably because memory ran out; try again with fewer workers"
                    ) from error
                say(
                    "warning: a worker process died, because memory ran out or a file crashed it; its work is done "
                    "again, one item at a time; if this happens often, try again with fewer workers"
                )
                yield from _one_at_a_time(function, pending, crashed)
                pending.clear()
                pool = _pool(workers)
                continue
            pending.popleft()
            yield from results
    finally:
        pool.shutdown(cancel_futures=True)


def _pool(workers: int) -> ProcessPoolExecutor:
    """Start fresh interpreters, since a fork would copy the threads and locks of this process.

    All of them start before the executor's own thread does. CPython would start each one as work is submitted, while
    that thread goes over the workers whenever one dies; the two then meet in one dictionary.
    """
    pool = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"), initializer=_start_worker)
    pool._safe_to_dynamically_spawn_children = False  # type: ignore[attr-defined]
    return pool


def _end(pool: ProcessPoolExecutor) -> None:
    """End a broken pool.

    When a worker dies, CPython terminates the others, but not one that is just being started, and then waits for all.
    Python 3.14 has `kill_workers` for this.
    """
    for process in list(pool._processes.values()):
        process.kill()
    pool.shutdown(cancel_futures=True)


def _submitted(pool: ProcessPoolExecutor, function: Callable[[A], B], batch: list[A]) -> Future[list[B]]:
    """Submit a batch; a pool that is broken already gives a future that says so.

    CPython raises OSError if a worker dies while it starts the next one.
    """
    try:
        return pool.submit(_apply, function, batch)
    except (BrokenProcessPool, OSError) as error:
        future: Future[list[B]] = Future()
        future.set_exception(BrokenProcessPool(str(error)))
        return future


def _one_at_a_time(
    function: Callable[[A], B], pending: Iterable[tuple[list[A], Future[list[B]]]], crashed: Callable[[A], B]
) -> Generator[B]:
    """Yield the results of batches of which some ended with their pool."""
    pool = _pool(1)
    try:
        for batch, future in pending:
            if future.exception() is None:
                yield from future.result()
                continue
            for item in batch:
                try:
                    yield pool.submit(function, item).result()
                except BrokenProcessPool:
                    yield crashed(item)
                    pool.shutdown()
                    pool = _pool(1)
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
