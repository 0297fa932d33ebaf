import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from infra import config as configuration
from infra.errors import RunFailed, UserError
from infra.metrics import read_metrics
from infra.processes import Ranks
from sharding.stream import DataConfig
from ssl_core.checkpoint import find_checkpoints
from ssl_core.model import ModelConfig
from ssl_core.optim import OptimConfig
from ssl_core.train import PretrainConfig, TrainConfig, pretrain
from ssl_core.views.spec import ViewSpec


@pytest.fixture
def small(tmp_path: Path, simulated_shards: Path) -> PretrainConfig:
    return PretrainConfig(
        run_folder=tmp_path / "run",
        data=DataConfig([simulated_shards], global_batch=16, lanes=4),
        views=ViewSpec(size_px=32),
        model=ModelConfig("resnet18", projection_width=32, projection_size=16),
        train=TrainConfig(epochs=2, precision="fp32", log_every_steps=1),
    )


def last_weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(find_checkpoints(run)[-1].path / "model.safetensors")


def losses(run: Path) -> list[float]:
    return [line["loss"] for line in read_metrics(run)]


def torchrun(config: PretrainConfig, world: int) -> None:
    path = config.run_folder.with_suffix(".yaml")
    configuration.save(config, path)
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={world}", "--standalone"]
    done = subprocess.run(
        [*command, "-m", "launch.pretrain", f"--config={path}"],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]


def test_a_run_leaves_a_checkpoint_an_epoch_and_its_configuration(small: PretrainConfig) -> None:
    longer = replace(small, train=replace(small.train, epochs=5))
    pretrain(longer, Ranks())
    checkpoints = find_checkpoints(small.run_folder)
    assert [int(checkpoint.state.epoch) for checkpoint in checkpoints] == [1, 2, 3, 4, 5]
    found = losses(small.run_folder)
    assert len(found) == checkpoints[-1].step
    assert sum(found[-8:]) < sum(found[:8])
    assert configuration.load(PretrainConfig, small.run_folder / "config.yaml") == longer


def test_a_run_stopped_in_mid_epoch_and_resumed_ends_with_the_same_bits(small: PretrainConfig) -> None:
    pretrain(small, Ranks())
    stopped = replace(small, run_folder=small.run_folder.with_name("stopped"))
    pretrain(replace(stopped, train=replace(small.train, max_steps=3)), Ranks())
    pretrain(stopped, Ranks())
    assert losses(stopped.run_folder) == losses(small.run_folder)
    weights, expected = last_weights(stopped.run_folder), last_weights(small.run_folder)
    assert all(torch.equal(weights[name], value) for name, value in expected.items())


def test_two_processes_that_resume_the_run_of_one_go_on_with_the_same_losses(small: PretrainConfig) -> None:
    pretrain(small, Ranks())
    moved = replace(small, run_folder=small.run_folder.with_name("moved"))
    pretrain(replace(moved, train=replace(small.train, max_steps=2)), Ranks())
    torchrun(moved, world=2)
    # Rounding differs with the world size, and Adam amplifies it from step to step.
    assert losses(moved.run_folder)[:3] == pytest.approx(losses(small.run_folder)[:3], rel=1e-5)
    assert losses(moved.run_folder) == pytest.approx(losses(small.run_folder), rel=2e-2)
    assert find_checkpoints(moved.run_folder)[-1].state.world_size == 2


def test_another_configuration_is_not_continued(small: PretrainConfig) -> None:
    pretrain(replace(small, train=replace(small.train, max_steps=1)), Ranks())
    with pytest.raises(UserError, match=r"seed=1 differs from 0 of the run in .*; take seed=0 to resume it"):
        pretrain(replace(small, seed=1), Ranks())


def test_a_world_size_that_does_not_divide_the_lanes_is_refused(small: PretrainConfig) -> None:
    three = replace(small, data=replace(small.data, lanes=8))
    with pytest.raises(AssertionError, match=r"the world size 3 must divide data\.lanes=8"):
        torchrun(three, world=3)


def test_a_constant_schedule_lets_a_finished_run_be_made_longer(small: PretrainConfig) -> None:
    pretrain(replace(small, train=replace(small.train, epochs=1)), Ranks())
    pretrain(small, Ranks())
    assert [int(checkpoint.epoch) for checkpoint in find_checkpoints(small.run_folder)] == [1, 2]
    cosine = replace(small, run_folder=small.run_folder.with_name("cosine"), optim=OptimConfig(schedule="cosine"))
    pretrain(replace(cosine, train=replace(small.train, max_steps=1)), Ranks())
    with pytest.raises(UserError, match=r"train\.epochs=3 differs from 2"):
        pretrain(replace(cosine, train=replace(small.train, epochs=3)), Ranks())


def test_a_loss_that_is_not_finite_stops_the_run_before_it_is_saved(small: PretrainConfig) -> None:
    with pytest.raises(RunFailed, match=r"the loss is nan at step \d+; start again .*below 1e\+30"):
        pretrain(replace(small, optim=OptimConfig(learning_rate=1e30)), Ranks())
    assert find_checkpoints(small.run_folder) == []


def test_images_that_are_far_larger_than_the_views_are_warned_of(
    small: PretrainConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny = replace(small, views=ViewSpec(size_px=24), train=replace(small.train, max_steps=1))
    pretrain(tiny, Ranks())
    assert "views alias; pack with --shorter_side_px=36" in capsys.readouterr().err
