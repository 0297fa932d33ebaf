import threading
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError, Future
from functools import partial

import pytest

from infra.parallel.background import Background, call_within, read_ahead


def _threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "read-ahead"]


def test_read_ahead_gives_all_items_in_order_and_ends_its_thread() -> None:
    assert list(read_ahead(range(50), 3)) == list(range(50))
    assert not _threads()


def test_read_ahead_holds_no_more_than_its_depth_ready() -> None:
    taken = []

    def items() -> Iterator[int]:
        for item in range(100):
            taken.append(item)
            yield item

    ahead = read_ahead(items(), 3)
    assert next(ahead) == 0
    deadline_s = time.monotonic() + 5
    while len(taken) < 5 and time.monotonic() < deadline_s:
        time.sleep(0.01)
    time.sleep(0.1)
    assert len(taken) == 5  # one given out, three ready, and one that the thread holds
    ahead.close()


def test_read_ahead_raises_the_items_error_after_the_items_before_it() -> None:
    def items() -> Iterator[int]:
        yield from range(3)
        raise KeyError("lost")

    got = []
    with pytest.raises(KeyError, match="lost"):
        for item in read_ahead(items(), 10):
            got.append(item)
    assert got == [0, 1, 2]
    assert not _threads()


def test_read_ahead_closes_the_items_when_it_is_closed_early() -> None:
    closed = threading.Event()

    def items() -> Iterator[int]:
        try:
            while True:
                yield 1
        finally:
            closed.set()

    ahead = read_ahead(items(), 2)
    next(ahead)
    ahead.close()
    assert closed.is_set()
    assert not _threads()


def test_background_calls_in_order_and_hands_over_results_and_errors() -> None:
    background = Background(1, "test-background")
    called: list[int] = []
    futures = [background.submit(partial(called.append, number)) for number in range(20)]
    failing = background.submit(partial(int, "x"))
    assert [future.result(10) for future in futures] == [None] * 20
    with pytest.raises(ValueError, match="invalid literal"):
        failing.result(10)
    background.close()
    assert called == list(range(20))


def test_read_ahead_interrupted_does_not_wait_for_its_items() -> None:
    background = Background(1, "test-background")
    never = threading.Event()

    def items() -> Iterator[int]:
        yield 1
        background.submit(never.wait).result()
        yield 2

    ahead = read_ahead(items(), 2, background.close)
    assert next(ahead) == 1
    ahead.close()
    assert not _threads()
    never.set()


def test_background_closed_leaves_nobody_waiting() -> None:
    background = Background(1, "test-background")
    running, go_on = threading.Event(), threading.Event()

    def hang() -> None:
        running.set()
        go_on.wait(60)

    futures: list[Future[None] | Future[int]] = [background.submit(hang), background.submit(int)]
    assert running.wait(10)
    background.close()
    futures.append(background.submit(int))
    for future in futures:
        with pytest.raises(CancelledError):
            future.result(10)
    assert background.stop.is_set()
    go_on.set()


def test_call_within_gives_the_result_or_the_error_in_time() -> None:
    assert call_within(5, lambda: 7, lambda _: None) == 7
    with pytest.raises(ZeroDivisionError):
        call_within(5, lambda: 1 // 0, lambda _: None)


def test_call_within_discards_a_result_that_comes_too_late() -> None:
    release, discarded = threading.Event(), threading.Event()
    late: list[str] = []

    def discard(result: str) -> None:
        late.append(result)
        discarded.set()

    with pytest.raises(TimeoutError, match=r"no result within 0\.05 s"):
        call_within(0.05, lambda: str(release.wait(5)), discard)
    release.set()
    assert discarded.wait(5)
    assert late == ["True"]
