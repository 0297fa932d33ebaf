from itertools import pairwise
from pathlib import Path

import pytest
import torch

from benchmarks.scaling import Machine, step_of, traffic_of
from benchmarks.scaling_here import Sent, differences, note_sent
from ssl_core.engines import EngineConfig, EngineSetup, build_engine
from ssl_core.loss.agreement import Identities, agree
from ssl_core.loss.ntxent import LossConfig
from ssl_core.model.optimizer import OptimConfig
from tests.support.benchmark_runs import run_benchmark
from tests.support.process_group import on_ranks
from tests.support.small_encoder import small_encoder, two_views

SHARE, SIZE = 6, 16


def sent_in_a_step(rank: int, world: int) -> Sent:
    """The bytes that a rank hands over to each collective, by collective and type; gradients travel in bf16."""
    sent: Sent = {}
    note_sent(sent)
    config = EngineConfig(average_in="bf16")
    setup = EngineSetup(config, OptimConfig(), LossConfig(), "fp32", torch.device("cpu"))
    engine = build_engine(setup, small_encoder())
    sent.clear()
    sample = torch.arange(SHARE) + SHARE * rank
    engine.backward(two_views(SHARE, seed=rank), agree(SHARE, LossConfig(), Identities(sample, sample, sample)))
    engine.update(1e-3)
    return sent


@pytest.mark.slow
def test_the_model_knows_the_bytes_of_every_collective() -> None:
    expected = traffic_of(small_encoder(), SHARE, SIZE)
    assert [differences(sent, expected) for sent in on_ranks(2, sent_in_a_step)] == [[], []]
    assert differences({}, expected)  # the comparison can fail


def test_a_step_never_becomes_faster_by_more_ranks_of_the_same_share() -> None:
    traffic = traffic_of(small_encoder(), SHARE, SIZE)
    steps = [step_of(2**power, 256, traffic, Machine()) for power in range(13)]
    assert steps[0]["step"] == steps[0]["compute"]
    assert all(later["step"] >= earlier["step"] for earlier, later in pairwise(steps))
    assert steps[-1]["hours_to_fault"] == pytest.approx(50_000 / 4096, rel=0.01)


@pytest.mark.slow
def test_the_estimates_are_marked_as_such(tmp_path: Path) -> None:
    result, text = run_benchmark("scaling", tmp_path / "s.json", "--backbone=resnet18", "--worlds", "1", "8")
    assert result["estimates"] is True
    assert [step["gpus"] for step in result["milliseconds_and_rates"]] == [1, 8]
    assert "efficiency_percent" in text


@pytest.mark.slow
def test_real_steps_are_compared_with_the_model(tmp_path: Path) -> None:
    words = ["--worlds", "1", "2", "--share=4", "--size_px=32", "--steps=2"]
    result, text = run_benchmark("scaling_here", tmp_path / "s.json", *words)
    assert [figure["processes"] for figure in result["figures"]] == [1, 2]
    assert all(figure["measured_to_model"] > 0 for figure in result["figures"])
    assert "model_ms" in text


@pytest.mark.slow
def test_the_work_of_the_host_is_measured_for_every_number_of_ranks(tmp_path: Path) -> None:
    result, text = run_benchmark("host_work", tmp_path / "h.json", "--worlds", "1", "64", "--images=8", "--repeats=2")
    assert [figure["world"] for figure in result["figures"]] == [1, 64]
    assert all(value >= 0 for figure in result["figures"] for value in figure["milliseconds"].values())
    assert "places" in text
