"""Probes on images of another size than the views of the pretraining: what sees it, and what is refused."""

import csv
from dataclasses import replace
from pathlib import Path

import pytest

from evaluation.fitting.finetuning.kept import NETWORK, read_record
from evaluation.inference.config import PredictConfig
from evaluation.inference.predict import predict
from evaluation.results.recipes import require_one_recipe
from evaluation.results.results import Results, read_results
from infra.configuration import config as configuration
from infra.errors import UserError
from launch.cli import main
from launch.probe import main as probe_command
from ssl_core.checkpoints.export.folder import open_export
from ssl_core.pretraining.config import PretrainConfig
from tests.evaluation.report.test_export import made_run

QUICK = (
    *("--presets=[gazda2021]", "--checkpoints=last", "--search=serial", "--executor=torchvision", "--folds=2"),
    *("--untrained_seeds=1", "--few_labels=false", "--pictures=false", "--bootstrap_resamples=0"),
)


def probed(run: Path, shards: Path, *more: str) -> Results:
    assert main(["probe", str(run), f"--data.shards=[{shards}]", *QUICK, *more]) == 0
    results = read_results(run)
    assert results is not None
    return results


def test_probe_export_and_prediction_take_images_of_the_probed_size(run: Path, shards: Path, tmp_path: Path) -> None:
    usual = probed(run, shards)
    results = probed(run, shards, "--input.size_px=48")
    assert [row.validation_auc for row in results.rows] != [row.validation_auc for row in usual.rows]
    assert any("The probed images have 48 x 48 px, the views of the pretraining 32 x 32 px" in x for x in results.notes)

    assert main(["export", str(run), f"--out={tmp_path / 'out'}", "--onnx=false"]) == 0
    assert open_export(tmp_path / "out", "out").preparation.size_px == 48

    with (run / "predictions.csv").open(newline="") as file:
        own = {line["key"]: float(line["score"]) for line in csv.DictReader(file) if line["features"] == "epoch 2"}
    predictions = predict(PredictConfig([str(shards)], f"{run}:cell", workers=1))
    [answer] = predictions.answers
    scores = {record.key: score for record, score in zip(predictions.records, answer.score, strict=True)}
    assert {key: scores[key] for key in own} == pytest.approx(own, abs=1e-6)

    assert usual.run is not None
    another_seed = replace(usual, run=replace(usual.run, seed=1))
    with pytest.raises(UserError, match=r"input\.size_px=48 and 32"):
        require_one_recipe([(run, results), (tmp_path / "other", another_seed)])


def test_a_finetuned_network_is_of_the_probed_size(run: Path, shards: Path) -> None:
    for size_px in (48, 64):
        probed(run, shards, "--finetune.epochs=1", "--folds=3", "--controls=false", f"--input.size_px={size_px}")
        [folder] = (path.parent for path in (run / "finetuned").rglob(NETWORK))
        assert read_record(folder).input.size_px == size_px


def test_a_probe_takes_images_smaller_than_views_with_a_wide_blur(run: Path, shards: Path) -> None:
    config = run / "config.yaml"
    pretraining = configuration.load(PretrainConfig, config, command="pretrain")
    configuration.save(replace(pretraining, views=replace(pretraining.views, blur_sigma_px=(0.1, 4.0))), config)
    results = probed(run, shards, "--input.size_px=16", "--controls=false")
    assert results.run is not None
    assert results.run.probed_px == 16


def test_a_size_that_no_view_can_have_is_refused_by_the_name_of_its_option(
    run: Path, shards: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["probe", str(run), f"--data.shards=[{shards}]", "--input.size_px=8"]) == 2
    assert "error: input.size_px=8 must be between 16 and 4096; try 224" in capsys.readouterr().err


def test_a_network_that_takes_one_size_only_is_refused_before_anything_is_written(shards: Path, tmp_path: Path) -> None:
    run = made_run(tmp_path / "vit", shards, "vit_b_16", 32)
    with pytest.raises(UserError, match=r"does not take images of 64 px .*; give another --input\.size_px"):
        probe_command([str(run), f"--data.shards=[{shards}]", *QUICK, "--input.size_px=64"])
    assert not (run / "results.json").exists()
