import os
import re
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import psutil
import pytest
import torch

from infra.errors import RunFailed, UserError
from infra.processes import (
    Ranks,
    clock_skew_s,
    gather_objects,
    process_group,
    ranks_from_environment,
    require_world,
    sum_over_ranks,
)
from tests.support.fork_server import fork_context
from tests.support.process_group import on_ranks


def sums(rank: int, world: int) -> list[int]:
    return sum_over_ranks(rank, 1)


def skew_with_one_clock_ahead(rank: int, world: int, ahead_s: float) -> float:
    now = time.time
    with mock.patch("time.time", lambda: now() + ahead_s * (rank == 1)):
        return clock_skew_s()


def join_alone(rank: int, port: int, message: Path, local_world: int = 1) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    try:
        ranks = Ranks(rank, 2, local_world=local_world)
        with process_group(ranks, torch.device("cpu"), timeout_s=1.0, timeout_key="train.timeout_s"):
            pass
    except RunFailed as error:
        message.write_text(str(error))


@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_that_nobody_joins_ends_in_one_line(tmp_path: Path, free_port: int, rank: int) -> None:
    message = tmp_path / "message"
    process = fork_context().Process(target=join_alone, args=(rank, free_port, message))
    process.start()
    process.join(60)
    assert process.exitcode == 0
    assert message.read_text().startswith("not all of WORLD_SIZE=2 processes joined within train.timeout_s=1 (")
    assert message.read_text().endswith("raise train.timeout_s, and run the command again")
    assert "\n" not in message.read_text()


def test_a_port_that_is_taken_ends_in_one_line(tmp_path: Path) -> None:
    message = tmp_path / "message"
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        process = fork_context().Process(target=join_alone, args=(0, taken.getsockname()[1], message))
        process.start()
        process.join(60)
    assert process.exitcode == 0
    assert re.fullmatch(
        r"MASTER_PORT=\d+ is in use by another process on this machine \(EADDRINUSE\); end that process, or choose "
        r"another port: torchrun --standalone finds a free one, --master-port or MASTER_PORT sets one",
        message.read_text(),
    )


def gathered(rank: int, world: int) -> list[list[object]]:
    return [gather_objects(value) for value in (rank, ["ä" * rank, {"half": 0.5}], None)]


def test_values_of_all_ranks_arrive_in_their_order_on_every_rank() -> None:
    texts = [["", {"half": 0.5}], ["ä", {"half": 0.5}], ["ää", {"half": 0.5}]]
    assert on_ranks(3, gathered) == [[[0, 1, 2], texts, [None, None, None]]] * 3
    assert gather_objects({"alone": 1}) == [{"alone": 1}]


def note_listeners(rank: int, port: int, folder: Path) -> None:
    os.environ |= {"MASTER_ADDR": "host-that-does-not-resolve", "MASTER_PORT": str(port)}
    os.environ.pop("GLOO_SOCKET_IFNAME", None)
    with process_group(Ranks(rank, 2, rank, 2), torch.device("cpu"), timeout_s=30.0):
        assert gather_objects(rank) == [0, 1]
        listening = [item for item in psutil.Process().net_connections("inet") if item.status == psutil.CONN_LISTEN]
        (folder / str(rank)).write_text(" ".join(item.laddr[0] for item in listening))
        sum_over_ranks(0)


def test_processes_of_one_machine_meet_on_the_loopback_address_without_a_host_name(
    tmp_path: Path, free_port: int
) -> None:
    processes = [fork_context().Process(target=note_listeners, args=(rank, free_port, tmp_path)) for rank in (0, 1)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    for rank in (0, 1):
        assert set((tmp_path / str(rank)).read_text().split()) == {"127.0.0.1"}


def test_port_that_another_program_uses_is_named(tmp_path: Path) -> None:
    message = tmp_path / "message"
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        process = fork_context().Process(target=join_alone, args=(0, port, message, 2))
        process.start()
        process.join(60)
    assert process.exitcode == 0
    assert re.fullmatch(
        rf"MASTER_PORT={port} cannot be used \(EADDRINUSE: .*\); run the command again, or .*--master-port",
        message.read_text(),
    )


def test_counts_are_summed_over_all_ranks_and_alone() -> None:
    assert on_ranks(3, sums) == [[3, 3]] * 3
    assert sum_over_ranks(4, 5) == [4, 5]


def test_a_clock_that_is_ahead_shows_on_all_ranks() -> None:
    skews = on_ranks(2, skew_with_one_clock_ahead, 30.0)
    assert skews[0] == skews[1]
    assert 29 < skews[0] < 40
    assert clock_skew_s() == 0


@dataclass(frozen=True)
class TrainConfig:
    world_size: int | None = None


def test_another_number_of_processes_than_expected_is_refused() -> None:
    require_world(TrainConfig(), "world_size", 3)
    require_world(TrainConfig(4), "world_size", 4)
    with pytest.raises(UserError, match=r"^world_size=4 processes are expected, but 2 joined; .* change world_size$"):
        require_world(TrainConfig(4), "world_size", 2)


@pytest.mark.parametrize("local_world", ["LOCAL_WORLD_SIZE", "LOCAL_SIZE"])
def test_ranks_are_those_that_torchrun_or_the_deepspeed_launcher_set(
    monkeypatch: pytest.MonkeyPatch, local_world: str
) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "LOCAL_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert ranks_from_environment() == Ranks(0, 1, 0, 1)
    for name, value in {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", local_world: "4"}.items():
        monkeypatch.setenv(name, value)
    assert ranks_from_environment() == Ranks(5, 8, 1, 4)
    monkeypatch.setenv(local_world, "four")
    with pytest.raises(UserError, match="must be whole numbers"):
        ranks_from_environment()
