import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import closing
from itertools import count
from pathlib import Path

import pytest

from infra.errors import RunFailed
from infra.parallel.process_map import ordered_map, worker_count

# The functions that workers call are the standard library's, so that they need not import this file.


@pytest.mark.parametrize("workers", [1, 2])
def test_ordered_map_keeps_the_order_whatever_the_number_of_workers(workers: int) -> None:
    assert list(ordered_map(abs, range(-50, 0), workers, chunk=3)) == list(range(50, 0, -1))


def test_ordered_map_reads_a_bounded_number_of_items_ahead() -> None:
    items = count()
    with closing(ordered_map(abs, items, workers=2, chunk=3)) as results:
        assert next(results) == 0
    assert next(items) <= 2 * 4 * 3


def test_ordered_map_raises_what_the_function_raises_when_it_fails() -> None:
    with pytest.raises(ValueError, match="invalid literal"):
        list(ordered_map(int, ["1", "x"], workers=2))


def test_ordered_map_names_the_item_that_kills_its_worker_and_goes_on() -> None:
    harmless, deadly = [signal.SIGURG] * 20, signal.SIGKILL
    items = [*harmless, deadly, *harmless, deadly]
    results = list(ordered_map(signal.raise_signal, items, 2, chunk=3, crashed=lambda item: f"died of {item}"))
    assert results == [None] * 20 + ["died of 9"] + [None] * 20 + ["died of 9"]


def test_ordered_map_computes_all_items_when_a_worker_is_killed_from_outside(
    capsys: pytest.CaptureFixture[str],
) -> None:
    results = ordered_map(time.sleep, [0.01] * 40, 2, chunk=2, crashed=lambda _: "died")
    found = [next(results)]
    multiprocessing.active_children()[0].kill()
    assert [*found, *results] == [None] * 40
    assert capsys.readouterr().err.startswith("warning: a worker process died, because memory ran out or a file")


@pytest.mark.parametrize("repeats", [2, pytest.param(100, marks=pytest.mark.slow)])
def test_ordered_map_ends_when_a_worker_is_killed_while_the_next_one_starts(repeats: int) -> None:
    def kill_the_first() -> None:
        while not (children := multiprocessing.active_children()):
            time.sleep(0.001)
        children[0].kill()

    for _ in range(repeats):
        killer = threading.Thread(target=kill_the_first)
        killer.start()
        assert list(ordered_map(abs, range(60), 2, chunk=8, crashed=lambda _: -1)) == list(range(60))
        killer.join()


def test_ordered_map_fails_in_one_line_when_a_worker_dies() -> None:
    with pytest.raises(RunFailed, match="a worker process died"):
        list(ordered_map(os._exit, [3, 3], workers=2))


@pytest.mark.parametrize(("wanted", "items", "chunk", "expected"), [(4, 100, 8, 4), (4, 9, 8, 2), (3, 0, 1, 1)])
def test_worker_count_is_no_more_than_there_is_work(wanted: int, items: int, chunk: int, expected: int) -> None:
    assert worker_count(wanted, items, chunk) == expected


def test_worker_count_is_the_number_of_cpus_if_the_user_gives_0() -> None:
    assert worker_count(0, 10**6) == len(os.sched_getaffinity(0))


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads process states from /proc")
def test_workers_end_when_their_parent_is_killed() -> None:
    script = """
import multiprocessing, time
from infra.parallel.process_map import ordered_map
if __name__ == "__main__":
    for _ in ordered_map(time.sleep, [0, 0, 60], 2):
        print(*(child.pid for child in multiprocessing.active_children()), flush=True)
"""
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(pids) == 2
        assert all(is_alive(pid) for pid in pids)
        parent.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 20
    while any(is_alive(pid) for pid in pids):
        assert time.monotonic() < deadline, f"workers {pids} outlive their parent"
        time.sleep(0.1)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
