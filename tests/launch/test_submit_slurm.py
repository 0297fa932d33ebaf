"""Batch scripts of `sternum submit slurm`, run by stand-ins of SLURM's tools on two network namespaces."""

import os
import signal
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from infra import config as configuration
from infra.status import read_status
from launch.cli import main
from ssl_core.engines import EngineConfig
from ssl_core.pretraining.config import PretrainConfig
from tests.support.faulty_training import (
    Outcome,
    assert_same_bits,
    read_outcome,
    start_ranks,
    steps_done,
    total_steps,
    wait_for_ranks,
)
from tests.support.network_namespaces import NODES, Network, two_machine_config
from tests.support.slurm import Slurm
from tests.support.slurm_tools import JOB

pytestmark = [pytest.mark.slow, pytest.mark.netns, pytest.mark.timeout(3600)]


@pytest.fixture
def slurm(tmp_path: Path, network: Network, monkeypatch: pytest.MonkeyPatch) -> Slurm:
    cluster = Slurm(tmp_path / "slurm", [(network.address(node), network.on(node, [])) for node in range(NODES)])
    for name, value in cluster.environment.items():
        monkeypatch.setenv(name, value)
    return cluster


def run_of(folder: Path, shards: Path, kind: str) -> PretrainConfig:
    config = two_machine_config(folder / "run", shards)
    return replace(config, engine=EngineConfig(kind="deepspeed" if kind == "deepspeed" else "ddp"))


@pytest.fixture(scope="module", params=["torchrun", "deepspeed"])
def launcher(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, simulated_shards: Path, launcher: str) -> Outcome:
    """The outcome of a run on one machine."""
    config = run_of(tmp_path_factory.mktemp("undisturbed"), simulated_shards, launcher)
    assert wait_for_ranks(start_ranks(config, NODES), timeout_s=600) == [0] * NODES
    return read_outcome(config.run_folder)


def submit(config: PretrainConfig, launcher: str) -> None:
    path = config.run_folder.with_name("run.yaml")
    configuration.save(config, path)
    words = ["--env=[GLOO_SOCKET_IFNAME=eth0,DS_ACCELERATOR=cpu]", f"--slurm.launcher={launcher}"]
    command = ["sternum", "pretrain", str(config.run_folder), f"--config={path}"]
    assert main(["submit", "slurm", f"--nodes={NODES}", *words, "--", *command]) == 0


def test_a_job_that_meets_its_time_limit_is_requeued_and_ends_as_if_nothing_had_been(
    tmp_path: Path,
    simulated_shards: Path,
    slurm: Slurm,
    launcher: str,
    undisturbed: Outcome,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Two nodes, one process each; the sample log, the losses and the weights are those of one machine."""
    config = run_of(tmp_path, simulated_shards, launcher)
    submit(config, launcher)
    assert capsys.readouterr().out == f"{JOB}\n"
    with slurm.start(tmp_path / "log") as job:
        job.wait_for_step(config.run_folder, 6, timeout_s=1200)
        os.kill(job.process.pid, signal.SIGUSR1)  # as --signal=B:USR1@300 does
        assert job.end(timeout_s=600) == 1, job.output()
    assert slurm.requeued() == [str(JOB)]
    status = read_status(config.run_folder)
    assert status is not None
    assert status.state == "preempted", job.output()
    assert 6 <= steps_done(config.run_folder) < total_steps(config)
    with slurm.start(tmp_path / "log", restarts=1) as job:
        assert job.end(timeout_s=1200) == 0, job.output()
    assert slurm.requeued() == [str(JOB)]
    assert_same_bits(read_outcome(config.run_folder), undisturbed)


def test_a_lost_node_ends_the_job_and_the_requeued_job_resumes(
    tmp_path: Path, simulated_shards: Path, network: Network, slurm: Slurm, launcher: str, undisturbed: Outcome
) -> None:
    """SLURM itself requeues a job (--requeue) when a node fails; the stand-in of that is the second start."""
    config = run_of(tmp_path, simulated_shards, launcher)
    submit(config, launcher)
    with slurm.start(tmp_path / "log") as job:
        job.wait_for_step(config.run_folder, 6, timeout_s=1200)
        network.unplug(1)
        network.kill(1)
    assert steps_done(config.run_folder) < total_steps(config)
    network.plug_in(1)
    with slurm.start(tmp_path / "log", restarts=1) as job:
        assert job.end(timeout_s=1200) == 0, job.output()
    assert_same_bits(read_outcome(config.run_folder), undisturbed)


def test_a_cancelled_job_saves_and_is_not_requeued(
    tmp_path: Path, simulated_shards: Path, slurm: Slurm, launcher: str
) -> None:
    """`scancel JOB` sends TERM to the tasks; the script must not take that for the time limit."""
    if launcher == "deepspeed":
        pytest.skip("the signal goes through the same supervisor")
    config = run_of(tmp_path, simulated_shards, launcher)
    submit(config, launcher)
    with slurm.start(tmp_path / "log") as job:
        job.wait_for_step(config.run_folder, 3, timeout_s=1200)
        subprocess.run(["scancel", "--signal=TERM", str(JOB)], check=True)
        assert job.end(timeout_s=600) == 1, job.output()
    assert slurm.requeued() == []
    assert steps_done(config.run_folder) >= 3
