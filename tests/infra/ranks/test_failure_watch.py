"""One rank's error ends the others even where they wait deaf: in a CUDA call, or here in a sleep."""

import os
import signal
import socket
import time
from pathlib import Path

import psutil
import pytest
import torch
import torch.distributed as dist

from infra.errors import RunFailed, UserError
from infra.ranks.failure_watch import failures_shared
from infra.ranks.interfaces import interface_toward
from infra.ranks.process_group import end_process, process_group
from infra.ranks.processes import Ranks
from tests.support.fork_server import fork_context


def take_part(rank: int, port: int, folder: Path) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    signal.signal(signal.SIGTERM, signal.SIG_IGN)

    def note(error: RunFailed) -> None:
        (folder / str(rank)).write_text(str(error))

    def run() -> int:
        try:
            with process_group(Ranks(rank, 3, rank, 3), torch.device("cpu"), timeout_s=60.0, on_failure=note):
                if rank == 1:
                    raise ValueError("the disk is on fire")
                time.sleep(600)
        finally:
            (folder / "open").write_text(f"{rank}: {dist.is_initialized()}")
        return 0

    end_process(run)


def test_an_error_on_one_rank_ends_all_that_wait_where_no_error_reaches_them(tmp_path: Path, free_port: int) -> None:
    ranks = [fork_context().Process(target=take_part, args=(rank, free_port, tmp_path)) for rank in range(3)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(60)
    assert [process.exitcode for process in ranks] == [1, 1, 1]
    assert (tmp_path / "open").read_text() == "1: True"  # NCCL's orderly end would wait for the others
    for rank in (0, 2):
        line = (tmp_path / str(rank)).read_text()
        assert line == "rank 1 failed (ValueError: the disk is on fire); run the same command again to resume"


def test_a_rank_that_ends_by_itself_is_left_alone(free_port: int) -> None:
    store = dist.TCPStore("127.0.0.1", free_port, 1, is_master=True)  # type: ignore[attr-defined]
    store.set("sternum/failure", '[1, "gone"]')
    noticed: list[RunFailed] = []
    with pytest.raises(RunFailed, match="my own"), failures_shared(store, 0, noticed.append):
        time.sleep(1.5)  # the watch has seen the other's failure and gives this one time
        raise RunFailed("my own error says more")
    assert not noticed
    assert store.get("sternum/failure") == b'[1, "gone"]'


def join_with_device(rank: int, port: int, folder: Path) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    device = torch.device("cpu") if rank == 0 else torch.device("cuda", 0)
    torch.cuda.set_device = lambda device: None
    try:
        with process_group(Ranks(rank, 2, rank, 2), device, timeout_s=30.0):
            pass
    except UserError as error:
        (folder / str(rank)).write_text(str(error))


def test_ranks_on_gpus_do_not_wait_for_ranks_without_one(tmp_path: Path, free_port: int) -> None:
    ranks = [fork_context().Process(target=join_with_device, args=(rank, free_port, tmp_path)) for rank in range(2)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(60)
    for rank in range(2):
        assert (tmp_path / str(rank)).read_text() == (
            "ranks 0 of WORLD_SIZE=2 have no usable GPU and the others have one; check nvidia-smi on their machines, "
            "or hide all GPUs"
        )


def test_the_interface_toward_another_machine_is_not_the_loopback_one() -> None:
    assert interface_toward("127.0.0.1") is None
    assert interface_toward("host-that-does-not-resolve") is None
    addresses = [
        (name, entry.address)
        for name, entries in psutil.net_if_addrs().items()
        for entry in entries
        if entry.family == socket.AF_INET and not entry.address.startswith("127.")
    ]
    for name, address in addresses:  # none in a container without a network
        assert interface_toward(address) == name
