"""Real launchers, killed and stopped: the run still ends in the same bits as the undisturbed run."""

import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from infra.monitoring.status import read_status
from infra.signals import STOP_SIGNALS
from ssl_core.checkpoints.retention import CheckpointConfig
from ssl_core.engines import EngineConfig
from ssl_core.pretraining.config import PretrainConfig
from tests.support.faulty_training import (
    Outcome,
    assert_same_bits,
    read_outcome,
    small_config,
    start_ranks,
    steps_done,
    total_steps,
    wait_for_ranks,
)
from tests.support.launchers import (
    DEEPSPEED,
    SEPARATE_STORE,
    launch,
    pretrain_arguments,
    supervise_command,
    torchrun_command,
)

pytestmark = pytest.mark.timeout(900)

WORLD = 2
EPOCHS = 5  # long enough for a fault in the middle


def run_of(folder: Path, shards: Path) -> PretrainConfig:
    return replace(
        small_config(folder / "run", shards, "resnet18", epochs=EPOCHS), checkpoints=CheckpointConfig(keep_last=2)
    )


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, simulated_shards: Path) -> Outcome:
    """The outcome of an undisturbed run, without a launcher."""
    config = run_of(tmp_path_factory.mktemp("undisturbed"), simulated_shards)
    assert wait_for_ranks(start_ranks(config, WORLD), timeout_s=600) == [0] * WORLD
    return read_outcome(config.run_folder)


def moment(config: PretrainConfig, seed: int) -> tuple[int, float, int]:
    """Draw the moment and target of a fault: a step, the seconds after it, and a rank."""
    random = np.random.default_rng(seed)
    return int(random.integers(1, total_steps(config) - 3)), float(random.uniform(0, 0.5)), int(random.integers(WORLD))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_torchrun_continues_after_a_worker_was_killed(
    tmp_path: Path, simulated_shards: Path, undisturbed: Outcome, seed: int
) -> None:
    config = run_of(tmp_path, simulated_shards)
    step, pause_s, rank = moment(config, seed)
    with launch(torchrun_command(config, "--max-restarts=3"), tmp_path / "log", **SEPARATE_STORE) as run:
        run.wait_for_step(config.run_folder, step)
        time.sleep(pause_s)
        run.workers()[rank].kill()
        assert run.end() == 0, run.output()
    assert_same_bits(read_outcome(config.run_folder), undisturbed)


@pytest.mark.slow
def test_torchrun_continues_after_a_worker_was_killed_at_its_start(
    tmp_path: Path, simulated_shards: Path, undisturbed: Outcome
) -> None:
    config = run_of(tmp_path, simulated_shards)
    with launch(torchrun_command(config, "--max-restarts=3"), tmp_path / "log", **SEPARATE_STORE) as run:
        while len(run.workers()) < WORLD:
            time.sleep(0.05)
        run.workers()[1].kill()
        assert run.end() == 0, run.output()
    assert_same_bits(read_outcome(config.run_folder), undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10, 13))
def test_supervise_continues_after_workers_and_then_torchrun_were_killed(
    tmp_path: Path, simulated_shards: Path, undisturbed: Outcome, seed: int
) -> None:
    config = run_of(tmp_path, simulated_shards)
    step, pause_s, rank = moment(config, seed)
    with launch(supervise_command(config, torchrun_command(config, "--max-restarts=3")), tmp_path / "log") as run:
        run.wait_for_step(config.run_folder, max(1, step // 2))
        run.workers()[rank].kill()
        run.wait_for_step(config.run_folder, step)
        time.sleep(pause_s)
        torchrun_itself = run.workers()[0].parent()
        assert torchrun_itself is not None
        torchrun_itself.kill()
        assert run.end() == 0, run.output()
        assert "torchrun ended with code -9; restarting" in run.output()
        assert not run.all()
    assert_same_bits(read_outcome(config.run_folder), undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize(
    "whom",
    [
        "torchrun",
        "torchrun with SIGINT",
        "supervise",
        "supervise with SIGINT",
        "supervise with SIGUSR1",
        "supervise of deepspeed",
    ],
)
def test_a_stop_signal_saves_and_the_same_command_resumes(
    tmp_path: Path, simulated_shards: Path, undisturbed: Outcome, free_port: int, whom: str
) -> None:
    """DeepSpeed's launcher keeps the signal to itself, so supervise signals its workers."""
    config = run_of(tmp_path, simulated_shards)
    command = torchrun_command(config)
    if "deepspeed" in whom:
        command = deepspeed(config, "--num_gpus=2", f"--master_port={free_port}")
    if "supervise" in whom:
        command = supervise_command(config, command)
    environment = {**SEPARATE_STORE, "DS_ACCELERATOR": "cpu"}
    with launch(command, tmp_path / "log", **environment) as run:
        run.wait_for_step(config.run_folder, 4)
        os.kill(run.process.pid, next((number for number in STOP_SIGNALS if number.name in whom), signal.SIGTERM))
        assert run.end() == 1  # the exit code of torchrun and supervise for an unfinished run
        assert not run.all()
    status = read_status(config.run_folder)
    assert status is not None
    assert status.state == "preempted", run.output()
    assert status.step == steps_done(config.run_folder) >= 4
    with launch(command, tmp_path / "log", **environment) as run:
        assert run.end() == 0, run.output()
    assert_same_bits(read_outcome(config.run_folder), undisturbed)


def deepspeed(config: PretrainConfig, *options: str) -> list[str]:
    return [*DEEPSPEED, *options, "--module", *pretrain_arguments(config)]


def by_deepspeed(folder: Path, shards: Path) -> PretrainConfig:
    config = small_config(folder / "run", shards, "resnet18")
    return replace(config, engine=EngineConfig(kind="deepspeed"), checkpoints=CheckpointConfig(keep_last=2))


@pytest.mark.slow
def test_the_deepspeed_launcher_starts_two_processes_and_a_hostfile_two_nodes(
    tmp_path: Path, simulated_shards: Path, free_port: int
) -> None:
    """All three ways give the same run: this machine alone, and two nodes of one process by hand, without ssh."""
    ends = []
    config = by_deepspeed(tmp_path, simulated_shards)
    assert wait_for_ranks(start_ranks(config, WORLD), timeout_s=600) == [0] * WORLD
    ends.append(read_outcome(config.run_folder))

    config = by_deepspeed(tmp_path / "alone", simulated_shards)
    config.run_folder.parent.mkdir()
    accelerator = {"DS_ACCELERATOR": "cpu"}
    with launch(
        deepspeed(config, "--num_gpus=2", f"--master_port={free_port}"), tmp_path / "log", **accelerator
    ) as run:
        assert run.end() == 0, run.output()
    ends.append(read_outcome(config.run_folder))

    config = by_deepspeed(tmp_path / "hosts", simulated_shards)
    config.run_folder.parent.mkdir()
    hosts = tmp_path / "hostfile"
    hosts.write_text("localhost slots=1\n127.0.0.1 slots=1\n")
    options = [f"--hostfile={hosts}", "--no_ssh", "--master_addr=127.0.0.1", f"--master_port={free_port}"]
    first, second = (deepspeed(config, *options, f"--node_rank={node}") for node in range(2))
    with (
        launch(first, tmp_path / "log-0", **accelerator) as run,
        launch(second, tmp_path / "log-1", **accelerator) as other,
    ):
        assert run.end() == 0, run.output()
        assert other.end() == 0, other.output()
    ends.append(read_outcome(config.run_folder))
    for other_end in ends[1:]:
        assert_same_bits(other_end, ends[0])


@pytest.mark.slow
def test_supervise_continues_after_a_worker_of_the_deepspeed_launcher_was_killed(
    tmp_path: Path, simulated_shards: Path, undisturbed: Outcome, free_port: int
) -> None:
    config = run_of(tmp_path, simulated_shards)
    command = supervise_command(config, deepspeed(config, "--num_gpus=2", f"--master_port={free_port}"))
    with launch(command, tmp_path / "log", DS_ACCELERATOR="cpu") as run:
        run.wait_for_step(config.run_folder, 5)
        run.workers()[1].kill()
        assert run.end() == 0, run.output()
    assert_same_bits(read_outcome(config.run_folder), undisturbed)
