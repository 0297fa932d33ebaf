"""`status.json` from the start of a run to its end."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from infra.errors import RunFailed
from infra.monitoring.status import Status, read_status, write_status
from infra.ranks.processes import Ranks
from ssl_core.checkpoints.checkpoint import find_checkpoints
from ssl_core.engines import Engine
from ssl_core.loss.agreement import GlobalBatch
from ssl_core.pretraining.learning_step import Learned, learn
from ssl_core.pretraining.session import open_session
from ssl_core.pretraining.train import pretrain
from ssl_core.views.batches import Batch
from tests.support.faulty_training import small_config


def no_room_for_the_status(run: Path) -> None:
    """Make the next write of status.json fail: something else has its name."""
    (run / "status.json" / "folder").mkdir(parents=True)


def test_a_resumed_run_replaces_the_status_of_an_earlier_start(tmp_path: Path, simulated_shards: Path) -> None:
    config = small_config(tmp_path / "run", simulated_shards, max_steps=3)
    pretrain(config, Ranks())
    write_status(config.run_folder, Status("failed", 3, "another rank was lost"))
    before_steps: list[Status | None] = []

    def read_and_learn(engine: Engine, batch: Batch, agreed: GlobalBatch, rate: float) -> Learned:
        before_steps.append(read_status(config.run_folder))
        return learn(engine, batch, agreed, rate)

    pretrain(replace(config, train=replace(config.train, max_steps=5)), Ranks(), learning_step=read_and_learn)
    assert [status and (status.state, status.step, status.message) for status in before_steps] == [
        ("running", 3, "")
    ] * 2
    status = read_status(config.run_folder)
    assert status is not None
    assert (status.state, status.step) == ("paused", 5)


def test_a_status_that_cannot_be_written_raises_an_alarm_and_training_continues(
    tmp_path: Path, simulated_shards: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = small_config(tmp_path / "run", simulated_shards, max_steps=3)
    no_room_for_the_status(config.run_folder)
    pretrain(config, Ranks())
    assert "ALARM: the run is running at step 0, but status.json could not be written" in capsys.readouterr().err
    assert find_checkpoints(config.run_folder)[-1].step == 3


def test_a_full_disk_does_not_hide_what_ended_the_run(
    tmp_path: Path, simulated_shards: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = small_config(tmp_path / "run", simulated_shards)

    def fail() -> None:
        with open_session(config, Ranks(), torch.device("cpu")):
            no_room_for_the_status(config.run_folder)
            raise RunFailed("shard 3 is unavailable")

    with pytest.raises(RunFailed, match="shard 3 is unavailable"):
        fail()
    assert "ALARM: the run is failed at step 0, but status.json could not be written" in capsys.readouterr().err


def test_a_run_ends_when_its_folder_is_replaced_and_writes_nothing_into_the_new_one(
    tmp_path: Path, simulated_shards: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = small_config(tmp_path / "run", simulated_shards)

    def replace_folder(engine: Engine, batch: Batch, agreed: GlobalBatch, rate: float) -> Learned:
        if batch.step == 4:
            config.run_folder.rename(tmp_path / "gone")  # at once, since a checkpoint is being written in it
            config.run_folder.mkdir()
        return learn(engine, batch, agreed, rate)

    with pytest.raises(RunFailed, match="run was removed or replaced while this process was using it"):
        pretrain(config, Ranks(), learning_step=replace_folder)
    assert list(config.run_folder.iterdir()) == []
    assert "ALARM: the run is failed at step 6, but status.json could not be written" in capsys.readouterr().err


def test_a_gpu_without_memory_ends_in_a_line_that_names_the_setting(tmp_path: Path, simulated_shards: Path) -> None:
    config = small_config(tmp_path / "run", simulated_shards, micro_batches=2)

    def run_out_of_memory(engine: Engine, batch: Batch, agreed: GlobalBatch, rate: float) -> Learned:
        if batch.step == 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity")
        return learn(engine, batch, agreed, rate)

    with pytest.raises(RunFailed) as raised:
        pretrain(config, Ranks(), learning_step=run_out_of_memory)
    assert str(raised.value) == (
        "the GPU of rank 0 has no memory left at step 1 with train.micro_batches=2 and 16 samples a rank (Tried to "
        "allocate 2.00 GiB); use train.micro_batches=4 in a new run folder, or more GPUs"
    )
    status = read_status(config.run_folder)
    assert status is not None
    assert (status.state, status.message) == ("failed", str(raised.value))


def test_an_alarm_stays_in_the_status_until_the_end_of_the_start(tmp_path: Path, simulated_shards: Path) -> None:
    config = small_config(tmp_path / "run", simulated_shards)
    with open_session(config, Ranks(), torch.device("cpu")) as session:
        session.note_alarm("the projections have collapsed")
        during = read_status(config.run_folder)
        session.finish("finished", "step 12 of 12")
    after = read_status(config.run_folder)
    assert [status and (status.state, status.message) for status in (during, after)] == [
        ("running", "the projections have collapsed"),
        ("finished", "step 12 of 12; the projections have collapsed"),
    ]
