"""docs/monitoring.md lists exactly the tags that runs write."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from infra.monitoring.metrics import read_metrics
from infra.ranks.processes import Ranks
from ssl_core.pretraining.config import PretrainConfig
from ssl_core.pretraining.train import pretrain
from tests.support.faulty_training import small_config

PAGE = Path(__file__).parents[3] / "docs" / "monitoring.md"
ON_A_GPU = {"speed/gpu_memory_max_gb", "speed/model_flop_utilization"}


def documented() -> set[str]:
    of_pretraining = PAGE.read_text(encoding="utf-8").split("\n## Probe\n")[0]
    rows = [line for line in of_pretraining.splitlines() if line.startswith("| `")]
    return {tag for row in rows for tag in re.findall(r"`([\w/]+)`", row.split(" | ")[0])}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory, simulated_shards: Path) -> PretrainConfig:
    """A run with every option that adds a tag."""
    config = small_config(tmp_path_factory.mktemp("run") / "run", simulated_shards, precision="fp16", stages=["24@1"])
    config = replace(config, train=replace(config.train, max_steps=6, log_samples=False))
    pretrain(config, Ranks())
    return config


def test_the_page_lists_every_tag_that_a_run_writes_and_no_other(written: PretrainConfig) -> None:
    events = EventAccumulator(str(written.run_folder / "events")).Reload()
    tags = {tag for kind in ("scalars", "histograms", "images") for tag in events.Tags()[kind]}
    assert tags == documented() - ON_A_GPU
    lines = read_metrics(written.run_folder)
    assert {tag for line in lines for tag in line} == {*events.Tags()["scalars"], "step", "time_s"}


def test_tensorboard_shows_the_similarities_and_the_chance_beside_the_loss(written: PretrainConfig) -> None:
    events = EventAccumulator(str(written.run_folder / "events")).Reload()
    [*_, positives] = events.Histograms("similarity/positives")
    line = read_metrics(written.run_folder)[-1]
    assert positives.step == line["step"]
    values = positives.histogram_value
    assert values.sum / values.num == pytest.approx(line["health/positive_similarity"], abs=1 / 32)
    assert b"^loss/chance$" in events.Tensors("custom_scalars__config__")[0].tensor_proto.string_val[0]
