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
from infra.ranks.process_group import process_group
from infra.ranks.processes import (
    Ranks,
    clock_skew_s,
    decoding_threads,
    gather_objects,
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
        r"another port: torchrun --master-port=PORT",
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


def threads(rank: int, world: int, cpus: list[list[int]]) -> int:
    with mock.patch("os.sched_getaffinity", lambda process: set(cpus[rank])):
        return decoding_threads(Ranks(rank, world, rank, world))


@pytest.mark.parametrize(
    ("cpus", "expected"),
    [
        ([[*range(12)]] * 3, [4, 4, 4]),  # unbound: all share the machine
        ([[*range(14)], [*range(14, 28)], [28]], [14, 14, 1]),  # bound by a launcher
        ([[*range(8)], [*range(8)], [*range(8, 16)]], [4, 4, 8]),  # bound to sockets
        ([[*range(224)], [0], [0]], [16, 1, 1]),
    ],
)
def test_ranks_share_only_the_cpus_that_several_may_use(cpus: list[list[int]], expected: list[int]) -> None:
    assert on_ranks(3, threads, cpus) == expected


@dataclass(frozen=True)
class TrainConfig:
    world_size: int | None = None


def test_another_number_of_processes_than_expected_is_refused() -> None:
    require_world(TrainConfig(), "world_size", 3)
    require_world(TrainConfig(4), "world_size", 4)
    with pytest.raises(UserError, match=r"^world_size=4 processes are expected, but 2 joined; .* change world_size$"):
        require_world(TrainConfig(4), "world_size", 2)


def without(variables: dict[str, str], *names: str) -> dict[str, str]:
    return {name: value for name, value in variables.items() if name not in names}


TORCHRUN = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}
TORCHRUN |= {"MASTER_ADDR": "node1", "MASTER_PORT": "29500"}
OTHER_LAUNCHERS = ["SLURM_STEP_NUM_TASKS", "SLURM_NTASKS", "SLURM_PROCID", "OMPI_COMM_WORLD_SIZE"]
OTHER_LAUNCHERS += ["OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_SIZE", "MV2_COMM_WORLD_RANK", "PMI_SIZE", "PMI_RANK"]


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """An environment without the variables of any launcher."""
    for name in (*TORCHRUN, "LOCAL_SIZE", *OTHER_LAUNCHERS):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def set_all(environment: pytest.MonkeyPatch, variables: dict[str, str]) -> None:
    for name, value in variables.items():
        environment.setenv(name, value)


@pytest.mark.parametrize(
    ("variables", "ranks"),
    [
        ({}, Ranks(0, 1, 0, 1)),
        (TORCHRUN, Ranks(5, 8, 1, 4)),
        (without(TORCHRUN, "LOCAL_WORLD_SIZE") | {"LOCAL_SIZE": "4"}, Ranks(5, 8, 1, 4)),  # DeepSpeed's name
        (without(TORCHRUN, "LOCAL_RANK", "LOCAL_WORLD_SIZE"), Ranks(5, 8, 0, 1)),  # one process on each machine
        (TORCHRUN | {"SLURM_NTASKS": "2", "SLURM_PROCID": "1"}, Ranks(5, 8, 1, 4)),  # srun started torchrun
        ({"SLURM_NTASKS": "8"}, Ranks(0, 1, 0, 1)),  # a shell in an allocation
        ({"SLURM_NTASKS": "1", "SLURM_PROCID": "0"}, Ranks(0, 1, 0, 1)),
        ({"SLURM_STEP_NUM_TASKS": "1", "SLURM_NTASKS": "8", "SLURM_PROCID": "0"}, Ranks(0, 1, 0, 1)),
        ({"SLURM_NTASKS": "8", "SLURM_PROCID": "0", "WORLD_SIZE": "1"}, Ranks(0, 1, 0, 1)),
    ],
)
def test_ranks_are_those_that_a_launcher_set(
    environment: pytest.MonkeyPatch, variables: dict[str, str], ranks: Ranks
) -> None:
    set_all(environment, variables)
    assert ranks_from_environment() == ranks


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"RANK": "1"}, "RANK=1 must be below WORLD_SIZE=1; start the processes with torchrun, or unset RANK"),
        ({"RANK": "-1", "WORLD_SIZE": "1"}, "RANK=-1 must be a whole number from 0 to 999999;"),
        ({"RANK": "0", "WORLD_SIZE": "0"}, "WORLD_SIZE=0 must be a whole number from 1 to 999999;"),
        ({"RANK": "", "WORLD_SIZE": "1"}, "RANK= must be a whole number from 0"),
        ({"WORLD_SIZE": "4"}, "WORLD_SIZE=4 needs RANK and MASTER_ADDR and MASTER_PORT; start the processes with"),
        (TORCHRUN | {"RANK": "8"}, "RANK=8 must be below WORLD_SIZE=8;"),
        (TORCHRUN | {"RANK": "x"}, "RANK=x must be a whole number from 0"),
        (TORCHRUN | {"WORLD_SIZE": "8.0"}, "WORLD_SIZE=8.0 must be a whole number from 1"),
        (TORCHRUN | {"LOCAL_RANK": "4"}, "LOCAL_RANK=4 must be below LOCAL_WORLD_SIZE=4;"),
        (TORCHRUN | {"LOCAL_WORLD_SIZE": "four"}, "LOCAL_WORLD_SIZE=four must be a whole number from 1"),
        (TORCHRUN | {"MASTER_PORT": "http"}, "MASTER_PORT=http must be a whole number from 1 to 65535;"),
        (TORCHRUN | {"MASTER_PORT": "70000"}, "MASTER_PORT=70000 must be a whole number from 1 to 65535;"),
        (TORCHRUN | {"MASTER_ADDR": ""}, "WORLD_SIZE=8 needs MASTER_ADDR;"),
        (without(TORCHRUN, "LOCAL_WORLD_SIZE"), "WORLD_SIZE=8 needs LOCAL_WORLD_SIZE;"),
        ({"SLURM_NTASKS": "4", "SLURM_PROCID": "0"}, "SLURM_NTASKS=4: each of 4 processes would train alone; let srun"),
        ({"SLURM_STEP_NUM_TASKS": "2", "SLURM_NTASKS": "8", "SLURM_PROCID": "1"}, "SLURM_STEP_NUM_TASKS=2: each of 2"),
        ({"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1"}, "OMPI_COMM_WORLD_SIZE=2: each of 2 processes"),
        ({"PMI_SIZE": "2", "PMI_RANK": "1"}, "PMI_SIZE=2: each of 2 processes would train alone; let mpiexec start"),
    ],
)
def test_variables_of_launchers_that_do_not_fit_are_one_line(
    environment: pytest.MonkeyPatch, variables: dict[str, str], message: str
) -> None:
    set_all(environment, variables)
    with pytest.raises(UserError) as raised:
        ranks_from_environment()
    assert str(raised.value).startswith(message)
    assert "\n" not in str(raised.value)
