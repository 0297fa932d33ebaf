"""Tests that need a GPU; skipped without one."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from infra.monitoring.metrics import read_metrics
from infra.ranks.processes import Ranks
from sharding.reading.data_config import DataConfig
from sharding.reading.shard_set import ShardSet
from sharding.reading.stream import sample_order
from ssl_core.model.encoder import ModelConfig
from ssl_core.pretraining.config import PretrainConfig, TrainConfig
from ssl_core.pretraining.train import pretrain
from ssl_core.views import PIXEL_TOLERANCE
from ssl_core.views.batches import training_batches
from ssl_core.views.spec import ViewSpec

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no GPU"),
]

# nvJPEG and libjpeg-turbo round differently, by a level or two of gray.
_GPU_TOLERANCE = {"mean": PIXEL_TOLERANCE["mean"] + 0.5, "max": PIXEL_TOLERANCE["max"] + 4}


WITH_OPTIONS = ViewSpec(
    size_px=32, antialias=True, contrast_about="mean", clip=True, gamma_probability=0.5, erase_probability=0.5,
    small_views=2,
)  # fmt: skip


@pytest.mark.parametrize("spec", [ViewSpec(size_px=48), WITH_OPTIONS], ids=["default", "options"])
def test_views_made_on_the_gpu_equal_those_made_on_the_cpu(simulated_shards: Path, spec: ViewSpec) -> None:
    pytest.importorskip("nvidia.dali", reason="NVIDIA DALI is not installed")
    shards = ShardSet([simulated_shards])
    order = sample_order(shards, DataConfig([str(simulated_shards)], global_batch=32, lanes=8), seed=0)
    made = {}
    for device in ("cpu", "cuda"):
        batches = training_batches(shards, order, spec, seed=0, view_executor="dali", device=device)
        made[device] = next(batches).views
        batches.close()
    for on_gpu, on_cpu in zip(made["cuda"], made["cpu"], strict=True):
        assert on_gpu.device.type == "cuda"
        difference = (on_gpu.cpu() - on_cpu).abs() * shards.pixel_std * 255
        assert difference.mean() < _GPU_TOLERANCE["mean"]
        assert difference.max() < _GPU_TOLERANCE["max"]


def test_pretraining_on_the_gpu_follows_the_cpu(tmp_path: Path, simulated_shards: Path) -> None:
    config = PretrainConfig(
        run_folder=tmp_path / "gpu",
        data=DataConfig([str(simulated_shards)], global_batch=16, lanes=4),
        views=ViewSpec(size_px=32),
        model=ModelConfig("resnet18", projection_width=32, projection_size=16),
        train=TrainConfig(epochs=2, precision="fp32", log_every_steps=1, max_steps=3),
        executor="torchvision",
    )
    pretrain(config, Ranks())
    pretrain(replace(config, run_folder=tmp_path / "cpu", train=replace(config.train, device="cpu")), Ranks())
    losses = [[line["loss"] for line in read_metrics(tmp_path / name)] for name in ("gpu", "cpu")]
    assert losses[0] == pytest.approx(losses[1], rel=5e-3)
