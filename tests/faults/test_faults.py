"""Each fault, in real processes; after each, the run ends in the same bits as the undisturbed run."""

import json
import os
import shutil
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import psutil
import pytest

from infra.monitoring.status import read_status
from ssl_core.checkpoints.checkpoint import find_checkpoints
from ssl_core.checkpoints.retention import CheckpointConfig
from ssl_core.pretraining.config import PretrainConfig
from tests.support.disk_faults import FILLER, NoDisk, cut, flip_a_bit, small_disk
from tests.support.faulty_training import (
    Fault,
    Outcome,
    assert_same_bits,
    assert_same_run,
    assert_same_samples,
    read_outcome,
    save_event_numbers,
    small_config,
    start_ranks,
    steps_done,
    total_steps,
    train_through,
    wait_for_ranks,
)

WORLD = 2


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, simulated_shards: Path) -> Outcome:
    config = small_config(tmp_path_factory.mktemp("undisturbed") / "run", simulated_shards)
    assert train_through(config, WORLD) == 1
    assert len(find_checkpoints(config.run_folder)) >= 3
    return read_outcome(config.run_folder)


def log_of(run: Path, rank: int) -> str:
    return run.with_name(f"{run.name}-rank-{rank}.log").read_text()


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 20))])
def test_a_run_whose_ranks_are_killed_at_random_steps_ends_in_the_same_bits(
    tmp_path: Path, simulated_shards: Path, undisturbed: Outcome, seed: int
) -> None:
    random = np.random.default_rng(seed)
    config = small_config(tmp_path / "run", simulated_shards)
    steps = random.integers(0, total_steps(config), 3).tolist()
    faults = [Fault("kill", int(random.integers(WORLD)), step) for step in steps]
    assert train_through(config, WORLD, faults) >= 2
    assert_same_bits(read_outcome(config.run_folder), undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["raise", "stop"])
def test_a_rank_that_raises_or_hangs_ends_the_start_and_the_next_one_continues(
    tmp_path: Path, simulated_shards: Path, undisturbed: Outcome, kind: str
) -> None:
    config = small_config(tmp_path / "run", simulated_shards, timeout_s=5.0)
    assert train_through(config, WORLD, [Fault(kind, 1, 7)]) == 2
    assert_same_bits(read_outcome(config.run_folder), undisturbed)
    assert "was lost or hangs" in log_of(config.run_folder, 0)


@pytest.mark.parametrize(
    ("kind", "rank"),
    [
        pytest.param("term", 0, marks=pytest.mark.slow),
        ("term", 1),
        pytest.param("usr1", 1, marks=pytest.mark.slow),
        pytest.param("int", 0, marks=pytest.mark.slow),
    ],
)
def test_a_stop_signal_to_one_rank_saves_at_one_step_and_leaves_a_marker(
    tmp_path: Path, simulated_shards: Path, undisturbed: Outcome, kind: str, rank: int
) -> None:
    config = small_config(tmp_path / "run", simulated_shards)
    exit_codes = wait_for_ranks(start_ranks(config, WORLD, [Fault(kind, rank, 7)]))
    assert exit_codes == ([130, 0] if kind == "int" else [0, 0])
    status = read_status(config.run_folder)
    assert status is not None
    # The ranks agree to stop as the step after the signal begins, and still make it.
    assert (status.state, status.step) == ("preempted", 9)
    assert steps_done(config.run_folder) == 9
    assert train_through(config, WORLD) == 1
    assert_same_bits(read_outcome(config.run_folder), undisturbed)


def test_a_step_with_nan_on_one_rank_is_left_out_on_all(tmp_path: Path, simulated_shards: Path) -> None:
    """The result equals that of NaN on every rank: a rank that continued alone would diverge, or hang the others."""
    ends = []
    for name, faults in (("one", [Fault("nan", 1, 7)]), ("all", [Fault("nan", 0, 7), Fault("nan", 1, 7)])):
        config = small_config(tmp_path / name, simulated_shards)
        assert train_through(config, WORLD, faults) == 1
        ends.append(read_outcome(config.run_folder))
    assert_same_samples(*ends)
    assert all(value.isfinite().all() for value in ends[0].weights.values())
    different = [name for name, value in ends[0].weights.items() if not value.equal(ends[1].weights[name])]
    assert not different


@pytest.mark.parametrize(
    "first", [pytest.param(4, marks=pytest.mark.slow), 5]
)  # with 5, a checkpoint is due while the first of the two is left out
def test_nan_that_stays_for_a_while_rolls_back_and_ends_in_the_same_bits(
    tmp_path: Path, simulated_shards: Path, undisturbed: Outcome, first: int
) -> None:
    config = small_config(tmp_path / "run", simulated_shards, skips=1)
    assert train_through(config, WORLD, [Fault("nan", 1, first), Fault("nan", 1, first + 1)]) == 1
    assert "returning to the last checkpoint" in log_of(config.run_folder, 0)
    assert_same_bits(read_outcome(config.run_folder), undisturbed)


@pytest.mark.slow
def test_deepspeed_rolls_back_too(tmp_path: Path, simulated_shards: Path) -> None:
    """A rollback builds a second engine in each process."""
    ends = []
    for name, faults in (("undisturbed", []), ("rolled-back", [Fault("nan", 1, 5), Fault("nan", 1, 6)])):
        config = small_config(tmp_path / name, simulated_shards, skips=1)
        config = replace(config, engine=replace(config.engine, kind="deepspeed"))
        assert train_through(config, WORLD, faults) == 1
        ends.append(read_outcome(config.run_folder))
    assert "returning to the last checkpoint" in log_of(config.run_folder, 0)
    assert_same_bits(*ends)


@pytest.mark.slow
def test_nan_that_never_ends_stops_all_ranks_with_one_line(tmp_path: Path, simulated_shards: Path) -> None:
    config = small_config(tmp_path / "run", simulated_shards, skips=1, rollbacks=1)
    faults = [Fault("nan", 1, step, times=100) for step in (4, 5)]
    assert wait_for_ranks(start_ranks(config, WORLD, faults)) == [1, 1]
    for rank in range(WORLD):
        assert "had no finite loss and gradient, even after train.rollbacks=1" in log_of(config.run_folder, rank)
    assert steps_done(config.run_folder) == 3


@pytest.mark.parametrize(
    ("harm", "name"),
    [
        (flip_a_bit, "model.safetensors"),
        pytest.param(cut, "model.safetensors", marks=pytest.mark.slow),
        pytest.param(Path.unlink, "model.safetensors", marks=pytest.mark.slow),
        pytest.param(flip_a_bit, "optimizer.safetensors", marks=pytest.mark.slow),
        pytest.param(cut, "state.json", marks=pytest.mark.slow),
        pytest.param(Path.unlink, "state.json", marks=pytest.mark.slow),
    ],
)
def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(
    tmp_path: Path, simulated_shards: Path, undisturbed: Outcome, harm: object, name: str
) -> None:
    config = small_config(tmp_path / "run", simulated_shards)
    # The third save waits for the second, so two checkpoints are complete.
    wait_for_ranks(start_ranks(config, WORLD, [Fault("kill", 0, 9)]))
    newest = find_checkpoints(config.run_folder)[-1]
    harm(newest.path / name)  # type: ignore[operator]
    assert train_through(config, WORLD) == 1
    assert f"{newest.path} is damaged" in log_of(config.run_folder, 0)
    assert_same_bits(read_outcome(config.run_folder), undisturbed)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_run_killed_at_any_disk_operation_of_a_save_ends_in_the_same_bits(
    tmp_path: Path, simulated_shards: Path, undisturbed: Outcome
) -> None:
    def config(name: str) -> PretrainConfig:
        return replace(small_config(tmp_path / name, simulated_shards), checkpoints=CheckpointConfig(keep_last=1))

    moments = save_event_numbers(config("looked-at"), WORLD, step=6)
    assert len(moments) > 30
    for moment in moments:
        run = config(f"killed-at-{moment}")
        assert train_through(run, WORLD, [Fault("save", 0, 6, event=moment)]) == 2
        assert_same_bits(read_outcome(run.run_folder), undisturbed)
        shutil.rmtree(run.run_folder)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "run"
    folder.mkdir()
    try:
        with small_disk(folder, size_mb=800):
            yield folder
    except NoDisk as error:
        pytest.skip(str(error))


@pytest.mark.slow
def test_training_continues_while_the_disk_is_full_and_nothing_is_missing_afterwards(
    disk: Path, simulated_shards: Path, undisturbed: Outcome
) -> None:
    config = small_config(disk, simulated_shards)
    faults = [Fault("fill", 0, 4), Fault("free", 0, total_steps(config) - 1)]
    assert train_through(config, WORLD, faults) == 1
    log = log_of(config.run_folder, 0)
    assert "ALARM: the checkpoint of step 6 was not saved, the older ones stay" in log
    assert ": No space left on device; its lines wait in memory" in log
    assert "is complete again" in log
    assert [checkpoint.step for checkpoint in find_checkpoints(config.run_folder)] == [3, total_steps(config)]
    assert_same_bits(read_outcome(config.run_folder), undisturbed)


@pytest.mark.slow
def test_a_disk_that_is_full_to_the_end_fails_the_run_which_continues_once_there_is_room(
    disk: Path, simulated_shards: Path, undisturbed: Outcome
) -> None:
    config = small_config(disk, simulated_shards)
    assert wait_for_ranks(start_ranks(config, WORLD, [Fault("fill", 0, 4)])) == [1, 1]
    assert "cannot write" in log_of(config.run_folder, 1)
    assert steps_done(config.run_folder) == 3
    (disk / FILLER).unlink()
    assert train_through(config, WORLD) == 1
    assert_same_bits(read_outcome(config.run_folder), undisturbed)


@pytest.mark.slow
def test_a_second_job_on_the_folder_of_a_running_one_is_refused_on_all_ranks(
    tmp_path: Path, simulated_shards: Path, undisturbed: Outcome
) -> None:
    config = small_config(tmp_path / "run", simulated_shards, timeout_s=60.0)
    first = start_ranks(config, WORLD, [Fault("stop", 1, 6)])
    while psutil.Process(first[1].pid).status() != psutil.STATUS_STOPPED:
        time.sleep(0.05)
    assert wait_for_ranks(start_ranks(config, WORLD)) == [2, 2]
    assert "is in use by another process" in log_of(config.run_folder, 1)
    os.kill(first[1].pid, signal.SIGCONT)
    assert wait_for_ranks(first) == [0, 0]
    assert_same_bits(read_outcome(config.run_folder), undisturbed)


def test_another_number_of_processes_than_promised_never_starts(tmp_path: Path, simulated_shards: Path) -> None:
    config = small_config(tmp_path / "run", simulated_shards, world_size=4)
    assert wait_for_ranks(start_ranks(config, WORLD)) == [2, 2]
    assert "train.world_size=4 processes are expected, but 2 joined" in log_of(config.run_folder, 1)
    assert not config.run_folder.exists()


@pytest.mark.slow
def test_a_lost_node_shrinks_the_run_when_the_lanes_allow_it_and_otherwise_fails_with_a_reason(
    tmp_path: Path, simulated_shards: Path, undisturbed: Outcome
) -> None:
    config = small_config(tmp_path / "run", simulated_shards)
    wait_for_ranks(start_ranks(config, 4, [Fault("kill", 3, 5)]))
    assert wait_for_ranks(start_ranks(config, 3)) == [2, 2, 2]
    assert "the world size 3 must divide data.lanes=8" in log_of(config.run_folder, 0)
    assert train_through(config, WORLD) == 1
    assert_same_run(read_outcome(config.run_folder), undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ddp", "deepspeed"])
def test_a_run_that_goes_from_one_to_two_to_four_ranks_and_back_sees_the_same_samples(
    tmp_path: Path, simulated_shards: Path, undisturbed: Outcome, kind: Literal["ddp", "deepspeed"]
) -> None:
    config = small_config(tmp_path / "run", simulated_shards)
    config = replace(config, engine=replace(config.engine, kind=kind))
    for world, steps in ((1, 3), (2, 6), (4, 9), (1, total_steps(config))):
        part = replace(config, train=replace(config.train, max_steps=steps))
        assert wait_for_ranks(start_ranks(part, world), timeout_s=240) == [0] * world, log_of(config.run_folder, 0)
    assert_same_run(read_outcome(config.run_folder), undisturbed)
    assert json.loads((find_checkpoints(config.run_folder)[-1].path / "state.json").read_text())["world_size"] == 1
