"""Growing resolution: every step has the views of its stage, wherever the run was stopped, on any number of ranks."""

from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from infra.errors import UserError
from infra.monitoring.metrics import read_metrics
from infra.ranks.processes import Ranks
from sharding.reading.data_config import DataConfig
from sharding.reading.shard_set import ShardSet
from sharding.reading.stream import sample_order
from ssl_core.checkpoints.checkpoint import MODEL, find_checkpoints
from ssl_core.checkpoints.computation import Computation
from ssl_core.model.encoder import ModelConfig
from ssl_core.pretraining.config import PretrainConfig
from ssl_core.pretraining.memory import step_memory
from ssl_core.pretraining.plan import check_plan
from ssl_core.pretraining.resume import computation_of
from ssl_core.pretraining.train import pretrain
from ssl_core.views import batches
from ssl_core.views.batches import Batch, Stage, training_batches
from ssl_core.views.drawing import draw_views
from ssl_core.views.spec import ViewSpec
from tests.support.faulty_training import (
    Fault,
    assert_same_bits,
    assert_same_samples,
    read_outcome,
    read_view_digests,
    small_config,
    start_ranks,
    train_through,
    wait_for_ranks,
)

SMALL, MIDDLE, LARGE = ViewSpec(size_px=16), ViewSpec(size_px=24), ViewSpec(size_px=32)


@pytest.fixture
def config(tmp_path: Path, simulated_shards: Path) -> PretrainConfig:
    """A run whose stages end at no checkpoint."""
    return growing(tmp_path / "run", simulated_shards)


def growing(run: Path, shards: Path) -> PretrainConfig:
    small = small_config(run, shards, epochs=3, checkpoint_every_steps=4, checkpoint_every_epochs=9)
    train = replace(small.train, stages=["16@1", "24@1"])
    return replace(small, train=train, executor="dali")  # its views are the same bits in any batch


def stopped_after(config: PretrainConfig, steps: int) -> PretrainConfig:
    return replace(config, train=replace(config.train, max_steps=steps))


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(find_checkpoints(run)[-1].path / MODEL)


@pytest.mark.parametrize("executor", ["dali", pytest.param("torchvision", marks=pytest.mark.slow)])
def test_each_step_has_the_views_of_its_stage_from_any_step_on(
    executor: str, simulated_shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = ShardSet([simulated_shards])
    order = sample_order(shards, DataConfig([str(simulated_shards)], global_batch=8, lanes=4), seed=3)
    stages = [Stage(SMALL, 2), Stage(MIDDLE, 4)]
    drawn: list[int] = []  # the size for each batch of views

    def draw_and_note(spec: ViewSpec, *others: Any) -> Any:
        drawn.append(spec.size_px)
        return draw_views(spec, *others)

    def taken(spec: ViewSpec, stages: list[Stage], first_step: int, rank: int = 0, world: int = 1) -> list[Batch]:
        made = training_batches(
            shards,
            order,
            spec,
            seed=1,
            stages=stages,
            first_step=first_step,
            rank=rank,
            world=world,
            view_executor=executor,
            threads=1,
        )
        with closing(made):
            return list(islice(made, 6 - first_step))

    alone = {spec.size_px: taken(spec, [], 0) for spec in (SMALL, MIDDLE, LARGE)}
    expected = [alone[size_px][step] for step, size_px in enumerate([16, 16, 24, 24, 32, 32])]
    monkeypatch.setattr(batches, "draw_views", draw_and_note)
    for first_step in (0, 2, 3):
        drawn.clear()
        made = taken(LARGE, stages, first_step)
        assert [batch.step for batch in made] == list(range(first_step, 6))
        for batch, whole in zip(made, expected[first_step:], strict=True):
            assert all(map(torch.equal, batch.views, whole.views))
        # No image is made twice, or ahead of its stage at another size.
        assert [size_px for size_px in drawn if size_px < 32] == [16, 16, 24, 24][first_step:]
    halves = [taken(LARGE, stages, 1, rank, 2) for rank in range(2)]
    for whole, *parts in zip(expected[1:], *halves, strict=True):
        for number, view in enumerate(whole.views):
            torch.testing.assert_close(torch.cat([part.views[number] for part in parts]), view, rtol=0, atol=1e-5)


def test_a_run_stopped_in_mid_stage_and_resumed_ends_with_the_same_bits(
    config: PretrainConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = replace(config, executor="torchvision")  # it starts sooner
    pretrain(config, Ranks())
    sizes = [line["views/size_px"] for line in read_metrics(config.run_folder)]
    ends = [sizes.count(16), sizes.count(16) + sizes.count(24)]
    assert sizes == sorted(sizes) and {*sizes} == {16, 24, 32}
    order = sample_order(ShardSet(config.data.shards), config.data, config.seed)
    assert ends == [order.first_step_after_epoch(epoch) for epoch in (0, 1)]
    assert not {*ends} & {checkpoint.step for checkpoint in find_checkpoints(config.run_folder)}
    printed = capsys.readouterr().err
    for end, size_px in zip(ends, (24, 32), strict=True):
        assert f"step {end}: views have {size_px} px from here on" in printed
    for checkpoint in find_checkpoints(config.run_folder):
        assert checkpoint.state.size_px == sizes[checkpoint.step - 1]
    again = replace(config, run_folder=tmp_path / "again")
    pretrain(stopped_after(again, ends[0] + 2), Ranks())
    pretrain(again, Ranks())
    expected = weights(config.run_folder)
    assert all(torch.equal(value, expected[name]) for name, value in weights(again.run_folder).items())
    assert [line["loss"] for line in read_metrics(again.run_folder)] == [
        line["loss"] for line in read_metrics(config.run_folder)
    ]


def test_other_stages_do_not_continue_a_run_and_more_epochs_do(config: PretrainConfig) -> None:
    begun = computed(config)
    assert computed(replace(config, train=replace(config.train, epochs=9))).difference(begun) is None
    other = computed(replace(config, train=replace(config.train, stages=["16@2"]))).difference(begun)
    assert other is not None
    assert other.what == "train.stages=['16@2'] differs from ['16@1', '24@1']"
    # A run of a version without stages had none.
    plain = computed(replace(config, train=replace(config.train, stages=[])))
    older = replace(plain, config={name: value for name, value in plain.config.items() if name != "train.stages"})
    assert plain.difference(older) is None
    assert begun.difference(older) is not None


def computed(config: PretrainConfig) -> Computation:
    return computation_of(config, "data")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stages": ["64"]}, r"train\.stages=\[64\]: '64' must be SIZE@EPOCHS with whole numbers; try \[64@4\]"),
        ({"stages": ["64@0.5"]}, r"'64@0\.5' must be SIZE@EPOCHS"),
        (
            {"stages": ["16@2"], "epochs": 2},
            r"stages=\[16@2\] takes 2 epochs, which leaves none of train\.epochs=2",
        ),
        ({"stages": ["8@1"]}, r"train\.stages=\[8@1\]: views\.size_px=8 must be between 16 and 4096"),
    ],
)
def test_stages_that_cannot_be_are_one_line(config: PretrainConfig, change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        replace(config, train=replace(config.train, **change))


def planned(config: PretrainConfig, ranks: Ranks) -> None:
    list(check_plan(config, ranks))


@pytest.mark.parametrize("backbone", ["timm/vit_tiny_patch16_224", pytest.param("vit_b_32", marks=pytest.mark.slow)])
@pytest.mark.parametrize("command", [pretrain, pytest.param(planned, marks=pytest.mark.slow)])
def test_a_network_that_is_bound_to_one_size_is_refused(
    backbone: str, command: Callable[[PretrainConfig, Ranks], None], config: PretrainConfig
) -> None:
    views, model = ViewSpec(size_px=64), ModelConfig(backbone, 32, 16)
    vit = replace(config, views=views, model=model, train=replace(config.train, stages=["32@1"]))
    with pytest.raises(UserError, match=r"stages=\[32@1\] needs a network that takes views of 32 px and of 64 px"):
        command(vit, Ranks())
    assert not find_checkpoints(config.run_folder)


def test_a_plan_names_the_stages_and_needs_the_memory_of_the_largest(config: PretrainConfig) -> None:
    facts = dict(line.split(": ", 1) for line in check_plan(config, Ranks()))
    assert facts["stages"].startswith("views of 16 px until step ")
    shrinking = replace(config, views=SMALL, train=replace(config.train, stages=["32@1"]))
    assert step_memory(shrinking, 1) == step_memory(config, 1)
    assert step_memory(config, 1).activations > step_memory(replace(config, views=MIDDLE), 1).activations


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory, simulated_shards: Path) -> dict[int, Path]:
    """Folders of runs that were trained to their end in one start, by the number of ranks."""
    folders = {world: tmp_path_factory.mktemp("unbroken") / f"on-{world}" for world in (1, 2)}
    for world, folder in folders.items():
        assert train_through(growing(folder, simulated_shards), world, log_views=True) == 1
    return folders


@pytest.mark.slow
@pytest.mark.parametrize("world", [1, 2, 4])
@pytest.mark.parametrize("killed_at", [5, 7, 10], ids=["in the first", "after its end", "in the second"])
def test_a_run_of_two_ranks_killed_in_mid_stage_and_continued_has_the_same_samples_and_views(
    world: int, killed_at: int, config: PretrainConfig, unbroken: dict[int, Path]
) -> None:
    killed = wait_for_ranks(start_ranks(config, 2, [Fault("kill", rank=1, step=killed_at)], log_views=True))
    assert killed != [0, 0]
    assert train_through(config, world, log_views=True) == 1
    outcome, expected = read_outcome(config.run_folder), read_outcome(unbroken[1])
    assert_same_samples(outcome, expected)
    assert read_view_digests(config.run_folder) == read_view_digests(unbroken[1])
    if world == 2:
        assert_same_bits(outcome, read_outcome(unbroken[2]))
