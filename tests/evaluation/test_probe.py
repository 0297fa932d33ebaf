import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from evaluation.probe import ProbeConfig, best_c, probe
from evaluation.results import read_results
from evaluation.search import Trial
from infra.errors import UserError
from launch.cli import main as sternum
from sharding.manifest import read_manifest, write_manifest
from ssl_core.checkpoint import CheckpointState, save_checkpoint
from ssl_core.model import ModelConfig, build_encoder

MakeRun = Callable[..., Path]


def config_of(run_folder: Path, folder: Path, **changes: object) -> ProbeConfig:
    small = ProbeConfig(
        run_folder,
        [folder],
        executor="torchvision",
        search="serial",
        c_grid=[0.1, 1.0],
        folds=3,
        bootstrap_resamples=100,
    )
    return replace(small, **changes)  # type: ignore[arg-type]


def test_every_checkpoint_and_control_is_scored_beside_the_paper_when_the_data_are_real(
    run: Path, shards: Path
) -> None:
    results = probe(config_of(run, shards), command="sternum probe ...")
    assert results == read_results(run)
    assert [(row.features, row.kind, row.step) for row in results.rows] == [
        ("32 x 32 raw pixels", "pixels", None),
        ("untrained backbone", "untrained", None),
        ("epoch 1", "checkpoint", 5),
        ("epoch 2", "checkpoint", 10),
    ]
    pixels, untrained, *_ = results.rows
    assert pixels.scores.auc > 0.99  # the patch stands at one place
    assert (pixels.size, untrained.size, pixels.fits) == (1024, 512, 6)
    (dataset,) = results.datasets
    assert (dataset.development.images, dataset.test.images, dataset.test.positive) == (84, 32, 16)
    assert dataset.pretrained_images == 0
    assert results.paper["table_iii"]["cell"]["100%"]["auc"] == 97.7
    assert results.command == "sternum probe ..."
    assert json.loads((run / "results.json").read_text())["config"]["folds"] == 3


def test_features_are_extracted_once_and_the_results_are_the_same_with_ray(run: Path, shards: Path, ray: None) -> None:
    serial = probe(config_of(run, shards))
    written = {path.name: path.stat().st_mtime_ns for path in (run / "features").glob("*.safetensors")}
    parallel = probe(config_of(run, shards, search="ray"))
    assert {path.name: path.stat().st_mtime_ns for path in (run / "features").glob("*.safetensors")} == written
    assert len(written) == 4
    assert parallel.rows == serial.rows


def test_simulated_data_are_called_so_and_never_stand_beside_the_paper(
    run: Path, simulated_cell: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [
        "probe",
        f"--run_folder={run}",
        f"--shards=[{simulated_cell}]",
        "--checkpoints=last",
        "--controls=false",
    ]
    assert sternum([*arguments, "--executor=torchvision", "--search=serial", "--c_grid=[1]", "--folds=2"]) == 0
    printed = capsys.readouterr().out
    assert "| cell (simulated) | epoch 2" in printed
    assert "prove nothing about medicine" in printed
    assert "paper, 100 %" not in printed
    results = read_results(run)
    assert results is not None
    assert results.paper == {}
    assert len(results.rows) == 1


def test_test_images_seen_in_pretraining_are_counted_and_said(tmp_path: Path, shards: Path, make_run: MakeRun) -> None:
    run = make_run(tmp_path / "run", shards, steps=(5,), splits=())
    results = probe(config_of(run, shards, controls=False))
    assert results.datasets[0].pretrained_images == 32
    assert any("32 test images" in note and "were in the pretraining" in note for note in results.notes)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"checkpoints": [7]}, "has none of epoch 7; its checkpoints are of 1, 2"),
        ({"folds": 60}, "fewer than the 60 parts"),
    ],
)
def test_probe_is_refused_in_one_line_when_it_cannot_be_done(
    run: Path, shards: Path, changes: dict[str, object], words: str
) -> None:
    with pytest.raises(UserError) as caught:
        probe(config_of(run, shards, **changes))
    assert words in str(caught.value)
    assert not (run / "results.json").exists()


def test_probe_is_refused_when_the_run_has_no_checkpoint(tmp_path: Path, shards: Path, make_run: MakeRun) -> None:
    with pytest.raises(UserError, match="holds no checkpoint; pretrain first"):
        probe(config_of(make_run(tmp_path / "run", shards, steps=()), shards))


def test_checkpoint_whose_weights_are_not_finite_is_named_and_nothing_is_written(run: Path, shards: Path) -> None:
    tensors = build_encoder(ModelConfig("resnet18", 16, 8), seed=0).state_dict()
    tensors["backbone.resnet.conv1.weight"].fill_(float("nan"))
    save_checkpoint(run, CheckpointState(15, 3.0, "resnet18", "-", 0.5, 0.25, 1, "-", "-"), tensors, {})
    with pytest.raises(UserError, match="epoch 3 on cell are not finite for 116 of 116 images"):
        probe(config_of(run, shards, checkpoints="last", controls=False))
    assert not (run / "results.json").exists()
    assert not list((run / "features").glob("*.safetensors"))


def test_dataset_that_has_no_task_or_stands_there_twice_is_refused(run: Path, shards: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="two of the folders in shards hold the dataset 'cell'"):
        probe(config_of(run, shards, shards=[shards, shards]))
    write_manifest(tmp_path, replace(read_manifest(shards), dataset="folder"))
    with pytest.raises(UserError, match="dataset 'folder' has no task"):
        probe(config_of(run, tmp_path))


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("c_grid", [1.0, 1.0], "c_grid"),
        ("c_grid", [-1.0], "c_grid"),
        ("folds", 1, "folds=1 must be at least 2"),
        ("shards", [], "must name at least one folder"),
        ("bootstrap_resamples", 5, "bootstrap_resamples=5"),
    ],
)
def test_option_out_of_range_is_refused_by_name(tmp_path: Path, key: str, value: object, words: str) -> None:
    with pytest.raises(UserError, match=words):
        config_of(tmp_path, tmp_path, **{key: value})


def test_c_is_the_one_of_the_best_mean_over_folds_and_the_smaller_of_equal_ones() -> None:
    aucs = {0.1: (0.7, 0.9), 0.5: (0.95, 0.6), 1.0: (0.9, 0.7)}
    trials = [Trial("x", c, fold, auc, True, 0.0) for c, pair in aucs.items() for fold, auc in enumerate(pair)]
    assert best_c(trials[::-1]) == (0.1, pytest.approx(0.8))
