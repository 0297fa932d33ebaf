"""`sternum pretrain --check`: its facts against a run that is then trained, and what it refuses."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from infra.errors import UserError
from infra.ranks.processes import Ranks
from launch import pretrain as command
from sharding.datasets.folder import FolderOptions
from sharding.packing.pack import PackConfig, pack
from sharding.reading.data_config import DataConfig
from sharding.reading.fetch import FetchConfig
from sharding.simulation.datasets import write_cell
from ssl_core.checkpoints.checkpoint import find_checkpoints
from ssl_core.checkpoints.retention import CheckpointConfig
from ssl_core.engines.engine import AutocastEncoder
from ssl_core.model.encoder import ModelConfig, build_encoder
from ssl_core.pretraining.checks import require_all_sizes
from ssl_core.pretraining.config import PretrainConfig, TrainConfig
from ssl_core.pretraining.memory import checkpoint_bytes, step_memory
from ssl_core.pretraining.plan import check_plan
from ssl_core.pretraining.train import pretrain
from ssl_core.views.spec import ViewSpec
from tests.support.fault_server import serving
from tests.support.tiny_resnet import TINY_RESNET


@pytest.fixture
def small(tmp_path: Path, simulated_shards: Path) -> PretrainConfig:
    return PretrainConfig(
        run_folder=tmp_path / "run",
        data=DataConfig([str(simulated_shards)], global_batch=16, lanes=4),
        views=ViewSpec(size_px=32),
        model=ModelConfig(TINY_RESNET, projection_width=32, projection_size=16),
        train=TrainConfig(epochs=2, precision="fp32", checkpoint_every_steps=3),
    )


def facts(config: PretrainConfig, ranks: Ranks | None = None) -> dict[str, str]:
    """Return the lines of a check by the word before their colon."""
    return dict(line.split(": ", 1) for line in check_plan(config, ranks or Ranks()))


def test_a_plan_states_the_steps_and_checkpoints_of_the_run_and_writes_nothing(
    small: PretrainConfig, tmp_path: Path
) -> None:
    before = facts(small)
    assert not small.run_folder.exists()
    assert re.fullmatch(r"2 of 32 x 32 px for each image, made of 4 images", before["views"])
    assert "Pneumonia (" in before["labels of chexpert"]
    pretrain(small, Ranks())
    checkpoints = find_checkpoints(small.run_folder)
    assert before["steps"].startswith(f"{checkpoints[-1].step:,} in 2 epochs")
    assert before["disk"].startswith(f"{len(checkpoints)} checkpoints of ")
    expected = checkpoint_bytes(small, step_memory(small, 1))
    for checkpoint in checkpoints:
        sizes = [path.stat().st_size for path in checkpoint.path.glob("*.safetensors")]
        assert expected == pytest.approx(sum(sizes), rel=0.03)  # the names of the tensors come on top
    with pytest.raises(UserError, match=rf"is at step {checkpoints[-1].step} already, .* raise them"):
        facts(small)
    other = replace(small, run_folder=tmp_path / "other", model=replace(small.model, init=str(small.run_folder)))
    assert any(line.startswith(f"starting from {small.run_folder}/") for line in check_plan(other, Ranks()))
    longer = facts(replace(small, train=replace(small.train, epochs=3)))
    assert f"from step {checkpoints[-1].step} of the run" in longer["steps"]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_memory_without_content_is_that_of_a_real_forward_pass(small: PretrainConfig, precision: object) -> None:
    config = replace(small, data=replace(small.data, global_batch=8), train=TrainConfig(precision=precision))  # type: ignore[arg-type]
    memory = step_memory(config, world=2)
    encoder = build_encoder(config.model, config.seed).train()
    own = {tensor.data_ptr() for tensor in encoder.state_dict().values()}
    saved: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.data_ptr() not in own:
            saved[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        AutocastEncoder(encoder, config.train.settled_precision)(torch.zeros(8, 1, 32, 32))  # two views of 4 images
    real = sum(tensor.untyped_storage().nbytes() for tensor in saved.values())
    assert memory.activations == pytest.approx(real, rel=0.01)
    assert memory.parameters == sum(parameter.numel() for parameter in encoder.parameters())
    assert step_memory(config, world=2, zero_stage=1).optimizer * 2 == memory.optimizer


def test_small_views_take_memory_of_their_own_and_are_named(small: PretrainConfig) -> None:
    more = replace(small, views=replace(small.views, small_views=4, small_size_px=16))
    assert facts(more)["views"].startswith("2 of 32 x 32 px and 4 of 16 x 16 px for each image")
    large, both = (step_memory(config, world=2).activations for config in (small, more))
    assert 1.2 * large < both < 2 * large  # four small views have half of the pixels of two large ones


def test_small_views_that_a_network_does_not_take_are_refused(small: PretrainConfig) -> None:
    views = ViewSpec(size_px=32, small_views=2, small_size_px=16)
    vit = replace(small, views=views, model=ModelConfig("timm/vit_tiny_patch16_224", 16, 8))
    encoder = build_encoder(vit.model, 0, 32)
    with pytest.raises(UserError, match=r"views\.small_views=2 needs a network that takes views of 16 px and of 32 px"):
        require_all_sizes(vit, encoder)
    require_all_sizes(replace(vit, views=replace(views, small_views=0)), encoder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda config: replace(config, train=replace(config.train, world_size=3)), r"3 must divide data\.lanes=4"),
        (lambda config: replace(config, train=replace(config.train, micro_batches=5)), r"micro_batches=5 must divide"),
        (
            lambda config: replace(config, train=replace(config.train, checkpoint_every_epochs=1, epochs=10**5)),
            r"100,000 checkpoints of .* MB are free; .*, or keep fewer: --checkpoints\.keep_last=2",
        ),
    ],
)
def test_what_the_run_would_refuse_or_has_no_room_for_is_refused(
    change: Callable[[PretrainConfig], PretrainConfig], message: str, small: PretrainConfig
) -> None:
    config = replace(small, train=replace(small.train, checkpoint_every_steps=None))
    with pytest.raises(UserError, match=message):
        facts(change(config))
    kept = replace(change(config), checkpoints=CheckpointConfig(keep_last=2))
    if kept.train.epochs > 2:
        assert facts(kept)["disk"].startswith("3 checkpoints of ")


def test_a_cache_too_small_for_the_lanes_is_refused_as_the_run_refuses_it(
    small: PretrainConfig, tmp_path: Path
) -> None:
    write_cell(tmp_path / "raw", {"train": 40, "test": 12}, seed=0, size_px=64)
    pack(PackConfig("cell", tmp_path / "raw", tmp_path / "cell", shorter_side_px=64, shard_size_mb=0.03, workers=1))
    with serving(tmp_path) as server:
        fetch = FetchConfig(tmp_path / "cache", limit_gb=100e-6)
        data = DataConfig([f"{server.url}/cell"], global_batch=16, lanes=4, shuffle_window=8, fetch=fetch)
        messages = []
        for start in (facts, lambda config: pretrain(config, Ranks())):
            with pytest.raises(UserError, match=r"^data\.fetch\.limit_gb=0\.0001 is less than .* 4 lanes") as caught:
                start(replace(small, data=data))
            messages.append(str(caught.value))
    assert messages[0] == messages[1]


def test_a_set_without_labels_is_said_to_be_beyond_probing_by_the_command(
    simulated_shards: Path, tmp_path: Path, radiographs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pack(PackConfig("folder", radiographs, tmp_path / "set", name="hospital", shorter_side_px=64, workers=1))
    options = "--model.backbone=resnet18 --views.size_px=32 --data.global_batch=4 --data.lanes=4 --train.epochs=1"
    shards = f"--data.shards=[{tmp_path / 'set'},{simulated_shards}]"
    assert command.main([str(tmp_path / "run"), *options.split(), shards, "--check"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in printed] == [
        "data",
        "labels of hospital",
        "labels of chexpert",
        "views",
        "steps",
        "model",
        "memory",
        "disk",
    ]
    assert "one class only, unlabeled (8 present, 0 absent), and a probe needs two, so it cannot" in printed[1]
    assert not (tmp_path / "run").exists()


def test_a_set_without_labels_differs_from_one_with_a_single_class(small: PretrainConfig, radiographs: Path) -> None:
    (radiographs / "t.csv").write_text("path\n" + "".join(f"unlabeled/{number}.jpg\n" for number in range(8)))
    out = radiographs.parent / "bare"
    options = FolderOptions(csv=Path("t.csv"))
    pack(PackConfig("folder", radiographs, out, name="bare", shorter_side_px=64, workers=1, folder=options))
    data = DataConfig([str(out)], global_batch=4, lanes=4)
    said = facts(replace(small, data=data))["labels of bare"]
    assert said.startswith("none, so it cannot be probed; probe other sets, or give this one a table of labels")


@pytest.fixture
def radiographs(tmp_path: Path, simulated_shards: Path) -> Path:
    """A folder of one class with eight of the simulated images."""
    folder = tmp_path / "raw" / "unlabeled"
    folder.mkdir(parents=True)
    source = sorted((simulated_shards.parent / "raw").rglob("*.jpg"))[:8]
    for number, path in enumerate(source):
        (folder / f"{number}.jpg").write_bytes(path.read_bytes())
    return tmp_path / "raw"
