from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from infra.configuration import config as configuration
from infra.errors import RunFailed, UserError
from infra.monitoring.metrics import read_metrics
from infra.monitoring.status import read_status
from infra.ranks.processes import Ranks, on_first_rank, require_same
from sharding.packing.pack import PackConfig, pack
from sharding.reading.data_config import DataConfig
from sharding.reading.shard_set import ShardSet
from sharding.simulation.datasets import write_chexpert
from ssl_core.checkpoints.checkpoint import find_checkpoints
from ssl_core.checkpoints.retention import CheckpointConfig
from ssl_core.engines import EngineConfig
from ssl_core.loss.config import LossConfig
from ssl_core.model.encoder import ModelConfig
from ssl_core.model.optimizer import OptimConfig
from ssl_core.pretraining import resume, train
from ssl_core.pretraining.checks import aliasing_warning, require_graphs_possible
from ssl_core.pretraining.config import PretrainConfig, TrainConfig
from ssl_core.pretraining.failures import Diverged
from ssl_core.pretraining.resume import computation_of, fixed_settings
from ssl_core.pretraining.run import Run
from ssl_core.pretraining.train import pretrain
from ssl_core.views.spec import ViewSpec
from tests.support.faulty_training import start_ranks, wait_for_ranks
from tests.support.process_group import on_ranks
from tests.support.tiny_resnet import TINY_RESNET


def small_config(run_folder: Path, simulated_shards: Path) -> PretrainConfig:
    return PretrainConfig(
        run_folder=run_folder,
        data=DataConfig([str(simulated_shards)], global_batch=16, lanes=4),
        views=ViewSpec(size_px=32),
        model=ModelConfig(TINY_RESNET, projection_width=32, projection_size=16),
        train=TrainConfig(epochs=2, precision="fp32", log_every_steps=1),
    )


@pytest.fixture
def small(tmp_path: Path, simulated_shards: Path) -> PretrainConfig:
    return small_config(tmp_path / "run", simulated_shards)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, simulated_shards: Path) -> Path:
    """The folder of a run that was trained to its end in one start."""
    config = small_config(tmp_path_factory.mktemp("undisturbed") / "run", simulated_shards)
    pretrain(config, Ranks())
    return config.run_folder


def last_weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(find_checkpoints(run)[-1].path / "model.safetensors")


def losses(run: Path) -> list[float]:
    return [line["loss"] for line in read_metrics(run)]


def health(run: Path) -> list[dict[str, float]]:
    of_the_batch = ("health/", "loss/", "optim/")
    return [{tag: value for tag, value in line.items() if tag.startswith(of_the_batch)} for line in read_metrics(run)]


def test_a_run_leaves_a_checkpoint_an_epoch_and_its_configuration(small: PretrainConfig) -> None:
    longer = replace(small, train=replace(small.train, epochs=3))
    pretrain(longer, Ranks())
    checkpoints = find_checkpoints(small.run_folder)
    assert [int(checkpoint.state.epoch) for checkpoint in checkpoints] == [1, 2, 3]
    result = losses(small.run_folder)
    assert len(result) == checkpoints[-1].step
    assert sum(result[-6:]) < sum(result[:6])
    assert configuration.load(PretrainConfig, small.run_folder / "config.yaml", command="pretrain") == longer


def test_a_run_stopped_in_mid_epoch_and_resumed_ends_with_the_same_bits(
    small: PretrainConfig, undisturbed: Path
) -> None:
    """Its metrics are written less often afterwards, which must not matter either."""
    pretrain(replace(small, train=replace(small.train, max_steps=3)), Ranks())
    pretrain(replace(small, train=replace(small.train, log_every_steps=100)), Ranks())
    assert losses(small.run_folder)[:3] == losses(undisturbed)[:3]
    assert losses(small.run_folder)[-1] == pytest.approx(np.mean(losses(undisturbed)[6:]), rel=1e-6)
    weights, expected = last_weights(small.run_folder), last_weights(undisturbed)
    assert all(torch.equal(weights[name], value) for name, value in expected.items())
    assert [line["run/restarts"] for line in read_metrics(small.run_folder)] == [0, 0, 0, 1, 1]


@pytest.mark.slow
def test_two_processes_that_resume_the_run_of_one_have_the_same_losses(
    small: PretrainConfig, undisturbed: Path
) -> None:
    pretrain(replace(small, train=replace(small.train, max_steps=2)), Ranks())
    assert wait_for_ranks(start_ranks(small, world=2)) == [0, 0]
    # Rounding differs with the world size, and Adam amplifies it from step to step.
    assert losses(small.run_folder)[:3] == pytest.approx(losses(undisturbed)[:3], rel=1e-5)
    assert losses(small.run_folder) == pytest.approx(losses(undisturbed), rel=2e-2)
    assert health(small.run_folder)[2] == pytest.approx(health(undisturbed)[2], rel=1e-3)
    assert find_checkpoints(small.run_folder)[-1].state.world_size == 2


def test_a_run_in_the_fastest_precision_keeps_it_on_another_machine(
    small: PretrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    fastest = replace(small, train=replace(small.train, precision="auto"))
    for has_units, steps in ((True, 1), (False, 2)):
        monkeypatch.setattr(resume, "has_bf16_matrix_units", lambda device, has=has_units: has)
        pretrain(replace(fastest, train=replace(fastest.train, max_steps=steps)), Ranks())
        saved = configuration.load(PretrainConfig, small.run_folder / "config.yaml", command="pretrain")
        assert saved.train.precision == "bf16"
    with pytest.raises(
        UserError, match=r"^train\.precision=fp32 differs from bf16 of the run .*use train\.precision=bf16"
    ):
        pretrain(small, Ranks())


def with_every_option(small: PretrainConfig, run_folder: Path) -> PretrainConfig:
    views = ViewSpec(
        size_px=32, antialias=True, rotation_probability=0.5, jitter_probability=0.8, contrast_about="mean", clip=True,
        gamma_probability=0.5, erase_probability=0.5, small_views=2,
    )  # fmt: skip
    return replace(
        small,
        run_folder=run_folder,
        views=views,
        model=replace(small.model, head_norm=True),
        loss=LossConfig(decoupled=True),
        train=replace(small.train, epochs=1, micro_batches=2),
    )


@pytest.mark.slow
def test_a_run_with_every_option_of_views_loss_and_head_resumes_with_the_same_bits(
    small: PretrainConfig, tmp_path: Path
) -> None:
    whole, cut = (with_every_option(small, tmp_path / name) for name in ("whole", "cut"))
    pretrain(whole, Ranks())
    pretrain(replace(cut, train=replace(cut.train, max_steps=2)), Ranks())
    pretrain(cut, Ranks())
    assert losses(cut.run_folder) == losses(whole.run_folder)
    weights, expected = last_weights(cut.run_folder), last_weights(whole.run_folder)
    assert all(torch.equal(weights[name], value) for name, value in expected.items())


def test_a_run_of_a_version_without_the_options_continues_without_them_only(small: PretrainConfig) -> None:
    now, changed = (computation_of(config, "data") for config in (small, with_every_option(small, small.run_folder)))
    added = {name: value for name, value in changed.config.items() if value != now.config[name]}
    older = replace(now, config={name: value for name, value in now.config.items() if name not in added})
    assert now.difference(older) is None
    assert {name.partition(".")[0] for name in added} >= {"views", "loss", "model"}
    for name, value in added.items():
        difference = replace(now, config=now.config | {name: value}).difference(older)
        assert difference is not None
        assert difference.what.startswith(f"{name}={value} differs from ")


@pytest.mark.slow
@pytest.mark.parametrize("world", [2, 4])
def test_a_run_with_every_option_has_the_same_losses_on_any_number_of_processes(
    small: PretrainConfig, tmp_path: Path, world: int
) -> None:
    alone, spread = (with_every_option(small, tmp_path / name) for name in ("alone", "spread"))
    alone, spread = (replace(run, train=replace(run.train, micro_batches=1)) for run in (alone, spread))
    pretrain(alone, Ranks())
    assert wait_for_ranks(start_ranks(spread, world=world)) == [0] * world
    # Adam makes whole steps of gradients that are mere rounding, so later losses part.
    assert losses(spread.run_folder)[:2] == pytest.approx(losses(alone.run_folder)[:2], rel=1e-5)


def test_another_configuration_is_not_continued(small: PretrainConfig) -> None:
    pretrain(replace(small, train=replace(small.train, max_steps=1)), Ranks())
    with pytest.raises(UserError, match=r"seed=1 differs from 0 of the run in .*; use seed=0 to resume it"):
        pretrain(replace(small, seed=1), Ranks())


@pytest.fixture(scope="module")
def mirrored(tmp_path_factory: pytest.TempPathFactory, simulated_shards: Path) -> PretrainConfig:
    """A run with a mirror, which holds its first step."""
    folder = tmp_path_factory.mktemp("mirrored")
    config = small_config(folder / "run", simulated_shards)
    config = replace(config, checkpoints=CheckpointConfig(mirror=f"file://{folder}/bucket"))
    pretrain(replace(config, train=replace(config.train, max_steps=1)), Ranks())
    return config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda run: replace(run, seed=1), "seed=1 differs from 0 "),
        (lambda run: replace(run, data=replace(run.data, lanes=8)), r"data\.lanes=8 differs from 4 "),
        (
            lambda run: replace(run, views=replace(run.views, crop_area=(0.2, 1.0))),
            r"views\.crop_area=\[0\.2, 1\.0\] d",
        ),
        (lambda run: replace(run, model=replace(run.model, projection_size=8)), r"model\.projection_size=8 differs"),
        (
            lambda run: replace(run, engine=EngineConfig(max_gradient_norm=1.0)),
            r"engine\.max_gradient_norm=1\.0 differs",
        ),
    ],
)
def test_a_mirror_of_another_configuration_is_not_continued_on_a_fresh_machine(
    mirrored: PretrainConfig, tmp_path: Path, change: Callable[[PretrainConfig], PretrainConfig], message: str
) -> None:
    fresh = replace(mirrored, run_folder=tmp_path / "fresh")
    message += r".*of the run that owns it, .*, or another run folder and another checkpoints\.mirror"
    with pytest.raises(UserError, match=message):
        pretrain(change(fresh), Ranks())
    assert find_checkpoints(fresh.run_folder) == []  # nothing of the other run was fetched
    status = read_status(fresh.run_folder)
    assert status is not None
    assert status.state == "refused"


def test_a_mirror_is_continued_on_a_fresh_machine_after_another_configuration_was_refused(
    mirrored: PretrainConfig, tmp_path: Path
) -> None:
    fresh = replace(mirrored, run_folder=tmp_path / "fresh")
    with pytest.raises(UserError, match="seed=1 differs from 0 "):
        pretrain(replace(fresh, seed=1), Ranks())
    pretrain(replace(fresh, train=replace(fresh.train, max_steps=2), executor="torchvision"), Ranks())
    assert find_checkpoints(fresh.run_folder)[-1].step == 2


def test_a_gradient_norm_counts_wherever_it_is_set(small: PretrainConfig, tmp_path: Path) -> None:
    (tmp_path / "ds.json").write_text('{"gradient_clipping": 1.0}')
    spread = replace(small, engine=EngineConfig(kind="deepspeed", deepspeed_config=tmp_path / "ds.json"))
    assert fixed_settings(spread) == fixed_settings(replace(small, engine=EngineConfig(max_gradient_norm=1.0)))
    assert fixed_settings(spread) != fixed_settings(small)


def test_a_world_size_that_does_not_divide_the_lanes_is_refused(small: PretrainConfig) -> None:
    three = replace(small, data=replace(small.data, lanes=8))
    assert wait_for_ranks(start_ranks(three, world=3)) == [2, 2, 2]
    for rank in range(3):
        log = small.run_folder.with_name(f"run-rank-{rank}.log").read_text()
        assert "the world size 3 must divide data.lanes=8" in log


def test_a_constant_schedule_lets_a_finished_run_be_made_longer(small: PretrainConfig) -> None:
    pretrain(replace(small, train=replace(small.train, epochs=1)), Ranks())
    pretrain(small, Ranks())
    assert [int(checkpoint.epoch) for checkpoint in find_checkpoints(small.run_folder)] == [1, 2]
    cosine = replace(small, run_folder=small.run_folder.with_name("cosine"), optim=OptimConfig(schedule="cosine"))
    pretrain(replace(cosine, train=replace(small.train, max_steps=1)), Ranks())
    with pytest.raises(UserError, match=r"train\.epochs=3 differs from 2"):
        pretrain(replace(cosine, train=replace(small.train, epochs=3)), Ranks())


def hopeless(config: PretrainConfig) -> PretrainConfig:
    """The same run, but its weights explode in the first step."""
    return replace(config, optim=OptimConfig(learning_rate=1e30), train=replace(config.train, skips=1))


def test_a_loss_that_is_not_finite_stops_the_run_before_it_is_saved(small: PretrainConfig) -> None:
    with pytest.raises(RunFailed, match=r"no finite loss and gradient, even after .*a lower optim\.learning_rate"):
        pretrain(hopeless(small), Ranks())
    assert find_checkpoints(small.run_folder) == []


def test_rollbacks_are_counted_until_the_step_that_failed_is_passed(
    small: PretrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even if it fails earlier the second time: GPUs do not repeat a step to the bit."""
    failures = iter([20, 18, 19, 18, 19])

    def diverge(run: Run, _: object) -> None:
        run.session.step = next(failures)
        raise Diverged(f"step {run.session.step} diverged")

    monkeypatch.setattr(train, "_train", diverge)
    with pytest.raises(RunFailed, match=r"step 19 diverged, even after train\.rollbacks=2"):
        pretrain(small, Ranks())


def test_parts_that_do_not_divide_the_share_of_a_rank_are_refused(small: PretrainConfig) -> None:
    with pytest.raises(UserError, match=r"train\.micro_batches=6 must divide a rank's share of 16 samples.* try 2, or"):
        pretrain(replace(small, train=replace(small.train, micro_batches=6)), Ranks())


def test_cuda_graphs_are_refused_where_they_would_hang_or_overwrite_gradients(small: PretrainConfig) -> None:
    config = replace(small, engine=EngineConfig(compile=True, cuda_graphs=True))
    in_parts = replace(config, train=replace(config.train, micro_batches=2))
    gpu = torch.device("cuda")
    with pytest.raises(UserError, match=r"engine\.cuda_graphs=true needs a GPU, not the CPU; leave it out"):
        pretrain(config, Ranks())
    assert not config.run_folder.exists()
    with pytest.raises(UserError, match="needs one process, not 2; leave"):
        require_graphs_possible(config, gpu, world=2)
    with pytest.raises(UserError, match=r"needs train\.micro_batches=1, not 2; leave"):
        require_graphs_possible(in_parts, gpu, world=1)
    require_graphs_possible(config, gpu, world=1)
    require_graphs_possible(replace(small, train=in_parts.train), gpu, world=2)


def test_images_far_larger_than_the_views_cause_a_warning(
    small: PretrainConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny = replace(small, views=ViewSpec(size_px=24), train=replace(small.train, max_steps=1))
    pretrain(tiny, Ranks())
    warning = "views show aliasing; use views.antialias=true, or pack with --shorter_side_px=36"
    assert warning in capsys.readouterr().err


def test_antialiased_views_cause_no_warning(small: PretrainConfig) -> None:
    shards = ShardSet(small.data.shards)
    for antialias in (False, True):
        config = replace(small, views=ViewSpec(size_px=24, antialias=antialias))
        assert (aliasing_warning(shards, config) is None) == antialias
    growing = replace(small, train=replace(small.train, stages=["24@1"]))
    assert aliasing_warning(shards, small) is None
    assert "more than twice the 24 px of a view" in (aliasing_warning(shards, growing) or "")


def test_a_run_cannot_be_made_shorter_than_it_is(small: PretrainConfig) -> None:
    pretrain(replace(small, train=replace(small.train, max_steps=3)), Ranks())
    with pytest.raises(UserError, match=r"is already at step 3, beyond step 2 .*raise them"):
        pretrain(replace(small, train=replace(small.train, max_steps=2)), Ranks())


def test_a_run_without_a_checkpoint_may_still_be_changed(small: PretrainConfig) -> None:
    with pytest.raises(RunFailed, match="no finite loss"):
        pretrain(hopeless(small), Ranks())
    pretrain(replace(small, train=replace(small.train, max_steps=1)), Ranks())
    assert len(find_checkpoints(small.run_folder)) == 1


def test_other_data_is_refused_and_leaves_the_configuration_as_it_was(small: PretrainConfig, tmp_path: Path) -> None:
    pretrain(replace(small, train=replace(small.train, max_steps=1)), Ranks())
    before = (small.run_folder / "config.yaml").read_text()
    write_chexpert(tmp_path / "raw", patients=30, seed=5, size_px=64)
    pack(PackConfig("chexpert", tmp_path / "raw", tmp_path / "other", shorter_side_px=64, workers=1))
    with pytest.raises(UserError, match=r"the content of data\.shards differs"):
        pretrain(replace(small, data=replace(small.data, shards=[str(tmp_path / "other")])), Ranks())
    assert (small.run_folder / "config.yaml").read_text() == before


def start_with_own_data(rank: int, world: int, folder: str) -> str:
    shards = Path(folder) / f"shards-{rank}"
    write_chexpert(Path(folder) / f"raw-{rank}", patients=30, seed=rank, size_px=64)
    pack(PackConfig("chexpert", Path(folder) / f"raw-{rank}", shards, shorter_side_px=64, workers=1))
    identity = ShardSet([shards]).identity
    try:
        require_same(identity, "the content of data.shards")
    except UserError as error:
        return str(error)
    return ""


def test_ranks_with_other_data_under_the_same_name_all_stop(tmp_path: Path) -> None:
    for message in on_ranks(2, start_with_own_data, str(tmp_path)):
        assert "the content of data.shards differs between ranks" in message


def fail_on_the_first(rank: int, world: int) -> str:
    def action() -> None:
        raise UserError("this folder is in use")

    try:
        on_first_rank(Ranks(rank, world), action)
    except UserError as error:
        return str(error)
    return ""


def test_an_error_of_the_first_rank_is_every_ranks() -> None:
    assert on_ranks(2, fail_on_the_first) == ["this folder is in use"] * 2
