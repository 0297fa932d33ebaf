"""Batch scripts of `sternum submit slurm` for one node, run by stand-ins of SLURM's tools."""

import os
import signal
from pathlib import Path

import pytest

from infra.configuration import config as configuration
from infra.monitoring.status import read_status
from launch.cli import main
from tests.support.faulty_training import small_config, steps_done
from tests.support.slurm import Slurm
from tests.support.slurm_tools import JOB

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Slurm:
    cluster = Slurm(tmp_path / "slurm", [("localhost", [])])
    for name, value in cluster.environment.items():
        monkeypatch.setenv(name, value)
    return cluster


@pytest.mark.parametrize(("shards", "code"), [("there", 0), ("nowhere", 2)])
def test_the_exit_code_of_a_command_is_that_of_its_job(
    tmp_path: Path, slurm: Slurm, simulated_shards: Path, shards: str, code: int
) -> None:
    path = simulated_shards if shards == "there" else tmp_path / shards
    assert main(["submit", "slurm", "--", "sternum", "verify", str(path)]) == 0
    with slurm.start(tmp_path / "log") as job:
        assert job.end(timeout_s=600) == code, job.output()
    assert slurm.requeued() == []


def test_a_node_that_is_not_fit_ends_the_job_before_the_command(
    tmp_path: Path, slurm: Slurm, simulated_shards: Path
) -> None:
    assert main(["submit", "slurm", "--", "sternum", "audit", str(simulated_shards), "--out=/proc/audit"]) == 0
    with slurm.start(tmp_path / "log") as job:
        assert job.end(timeout_s=600) == 1, job.output()
    assert "WRONG folders: " in job.output()
    last = job.output().splitlines()[-1]
    assert last == "sternum: error: 1 thing must be mended before a run; each line above says how"
    assert slurm.requeued() == []


def test_a_task_of_an_array_pretrains_its_seed_and_is_requeued_alone(
    tmp_path: Path, slurm: Slurm, simulated_shards: Path
) -> None:
    config = small_config(tmp_path / "run", simulated_shards, "resnet18", epochs=6)
    path = tmp_path / "run.yaml"
    configuration.save(config, path)
    command = ["sternum", "pretrain", f"{tmp_path}/run-{{seed}}", "--seed={seed}", f"--config={path}"]
    assert main(["submit", "slurm", "--slurm.seeds=[3,5]", "--", *command]) == 0
    run = tmp_path / "run-5"
    with slurm.start(tmp_path / "log", task=1) as job:
        job.wait_for_step(run, 3, timeout_s=1200)
        [worker] = job.workers()
        listening = {connection.laddr[0] for connection in worker.net_connections() if connection.status == "LISTEN"}
        assert listening <= {"127.0.0.1"}
        os.kill(job.process.pid, signal.SIGUSR1)
        assert job.end(timeout_s=600) == 1, job.output()
    assert slurm.requeued() == [f"{JOB}_1"]
    status = read_status(run)
    assert status is not None
    assert status.state == "preempted", job.output()
    assert steps_done(run) >= 3
    assert "seed: 5" in (run / "config.yaml").read_text()
    assert not (tmp_path / "run-3").exists()
