"""What `status.json` says of a run, from its start to its end."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from infra.errors import RunFailed
from infra.processes import Ranks
from infra.status import Status, read_status, write_status
from ssl_core.checkpoints.checkpoint import find_checkpoints
from ssl_core.pretraining import train
from ssl_core.pretraining.session import session
from ssl_core.pretraining.train import pretrain
from tests.support.faulty_training import small_config


def no_room_for_the_status(run: Path) -> None:
    """Its next writing ends on a device that is always full."""
    run.mkdir(exist_ok=True)
    (run / f".status.json.partial-{os.getpid()}").symlink_to("/dev/full")


def after_each_step(monkeypatch: pytest.MonkeyPatch, look: Callable[[], object]) -> None:
    learn = train._learn

    def looked_at(*arguments: Any) -> Any:
        look()
        return learn(*arguments)

    monkeypatch.setattr(train, "_learn", looked_at)


def test_a_run_that_goes_on_says_so_over_what_an_earlier_start_has_left(
    tmp_path: Path, simulated_shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small_config(tmp_path / "run", simulated_shards, max_steps=3)
    pretrain(config, Ranks())
    write_status(config.run_folder, Status("failed", 3, "another rank was lost"))
    found: list[Status | None] = []
    after_each_step(monkeypatch, lambda: found.append(read_status(config.run_folder)))
    pretrain(replace(config, train=replace(config.train, max_steps=5)), Ranks())
    assert [status and (status.state, status.step, status.message) for status in found] == [("running", 3, "")] * 2
    status = read_status(config.run_folder)
    assert status is not None
    assert (status.state, status.step) == ("paused", 5)


def test_a_status_that_the_disk_does_not_take_raises_an_alarm_and_training_goes_on(
    tmp_path: Path, simulated_shards: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = small_config(tmp_path / "run", simulated_shards, max_steps=3)
    no_room_for_the_status(config.run_folder)
    pretrain(config, Ranks())
    assert "ALARM: the run is running at step 0, but its status.json does not say so" in capsys.readouterr().err
    assert find_checkpoints(config.run_folder)[-1].step == 3


def test_a_full_disk_does_not_hide_what_ended_the_run(
    tmp_path: Path, simulated_shards: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = small_config(tmp_path / "run", simulated_shards)

    def fail() -> None:
        with session(config, Ranks(), torch.device("cpu")):
            no_room_for_the_status(config.run_folder)
            raise RunFailed("shard 3 cannot be had")

    with pytest.raises(RunFailed, match="shard 3 cannot be had"):
        fail()
    assert "ALARM: the run is failed at step 0, but its status.json does not say so" in capsys.readouterr().err
