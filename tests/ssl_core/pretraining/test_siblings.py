"""Runs whose second views show siblings use the same ones wherever they were stopped or killed, and continued."""

from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest

from infra.errors import UserError
from infra.ranks.processes import Ranks
from sharding.packing.pack import PackConfig, pack
from sharding.reading.shard_set import ShardSet
from sharding.simulation.datasets import write_cell
from ssl_core.pretraining.config import PretrainConfig
from ssl_core.pretraining.plan import check_plan
from ssl_core.pretraining.sample_log import read_sample_log
from ssl_core.pretraining.train import pretrain
from ssl_core.views.spec import ViewSpec
from tests.support.faulty_training import (
    Fault,
    assert_same_bits,
    assert_same_samples,
    read_outcome,
    small_config,
    start_ranks,
    train_through,
    wait_for_ranks,
)


def with_siblings(run: Path, shards: Path, **options: object) -> PretrainConfig:
    views = ViewSpec(size_px=32, **({"second_from": "same_patient", "second_probability": 0.8} | options))  # type: ignore[arg-type]
    return replace(small_config(run, shards), views=views)


@pytest.mark.parametrize("executor", ["torchvision", "dali"])
@pytest.mark.slow
def test_run_stopped_and_resumed_shows_the_same_siblings_and_ends_in_the_same_bits(
    tmp_path: Path, simulated_shards: Path, executor: Literal["torchvision", "dali"]
) -> None:
    whole, stopped = (
        replace(with_siblings(tmp_path / name, simulated_shards), executor=executor) for name in ("whole", "stopped")
    )
    pretrain(whole, Ranks())
    pretrain(replace(stopped, train=replace(stopped.train, max_steps=4)), Ranks())
    pretrain(stopped, Ranks())
    assert_same_bits(read_outcome(stopped.run_folder), read_outcome(whole.run_folder))
    patients = {int(row["sample"]): int(row["patient"]) for row in ShardSet([simulated_shards]).whole_index()}
    pairs = [
        pair
        for step in read_sample_log(whole.run_folder)
        for pair in zip(step.samples.tolist(), step.second_samples.tolist(), strict=True)
    ]
    assert all(patients[sample] == patients[other] for sample, other in pairs)
    assert sum(sample != other for sample, other in pairs) > len(pairs) / 4
    with pytest.raises(UserError, match=r"views\.second_from=same_study differs from same_patient"):
        pretrain(replace(stopped, views=replace(stopped.views, second_from="same_study")), Ranks())


@pytest.mark.slow
@pytest.mark.parametrize("world", [1, 4])
def test_run_killed_on_two_ranks_and_continued_on_others_shows_the_same_siblings(
    tmp_path: Path, simulated_shards: Path, world: int
) -> None:
    whole, killed = (with_siblings(tmp_path / name, simulated_shards) for name in ("whole", "killed"))
    train_through(whole, world=1)
    assert any(wait_for_ranks(start_ranks(killed, 2, [Fault("kill", rank=1, step=5)])))
    train_through(killed, world=world)
    assert_same_samples(read_outcome(killed.run_folder), read_outcome(whole.run_folder))


def test_plan_counts_the_siblings(tmp_path: Path, simulated_shards: Path) -> None:
    rows = ShardSet([simulated_shards]).whole_index()
    line = next(
        line
        for line in check_plan(with_siblings(tmp_path, simulated_shards), Ranks())
        if line.startswith("second views")
    )
    patients = rows["patient"].tolist()
    count = sum(patients.count(patient) > 1 for patient in patients)
    assert f"{count} of {len(rows)} images" in line


def test_set_without_siblings_and_a_probability_without_them_are_refused(tmp_path: Path) -> None:
    write_cell(tmp_path / "raw", {"train": 20}, seed=0, size_px=32)
    pack(PackConfig("cell", tmp_path / "raw", tmp_path / "packed", shorter_side_px=32, workers=1))
    config = with_siblings(tmp_path / "run", tmp_path / "packed", second_from="same_study")
    message = (
        r"views.second_from=same_study finds no study of two images in one split; try views\.second_from=same_patient"
    )
    for start in (lambda: pretrain(config, Ranks()), lambda: list(check_plan(config, Ranks()))):
        with pytest.raises(UserError, match=message):
            start()
    assert not config.run_folder.exists()
    with pytest.raises(
        UserError, match=r"views\.second_probability=0\.5 .* but views\.second_from=same_image; name one"
    ):
        ViewSpec(second_probability=0.5)
