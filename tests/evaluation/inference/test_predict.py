"""Scores of new images: those of the probe itself for its own images, whatever file they come from."""

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from evaluation.inference.config import PredictConfig
from evaluation.inference.predict import Predictions, predict
from evaluation.inference.prediction_files import as_csv, as_json
from infra.errors import RunFailed, UserError
from sharding.datasets.dicom import DicomOptions
from sharding.packing.pack import PackConfig, pack
from ssl_core.checkpoints.checkpoint import MODEL, find_checkpoints
from tests.support.dicom_files import dicom_bytes
from tests.support.disk_faults import flip_a_bit

Key = tuple[str, int]  # key of an image in the shards, number of its test part


def own_scores(run: Path, label: str, features: str = "epoch 1") -> dict[Key, float]:
    with (run / "predictions.csv").open(newline="") as file:
        lines = [line for line in csv.DictReader(file) if (line["set"], line["features"]) == (label, features)]
    return {(line["key"], int(line["fold"])): float(line["score"]) for line in lines}


def key_of(path: str) -> str:
    """Return the key that Cell's reader gives to a file."""
    return "_".join(Path(path).with_suffix("").parts[-3:])


def predicted(run: Path, task: str, *images: Path, features: str | None = None) -> Predictions:
    return predict(PredictConfig(list(map(str, images)), f"{run}:{task}", workers=1, features=features))


@pytest.mark.parametrize("features", ["epoch 1", "checkpoint", "file"])
def test_files_of_the_test_part_get_the_very_scores_of_the_probe(probed: Path, raw: Path, features: str) -> None:
    own = own_scores(probed, "cell", features)
    result = predicted(probed, "cell", raw / "test", features=features)
    [answer] = result.answers
    scores = dict(zip((key_of(str(record.path)) for record in result.records), answer.score, strict=True))
    assert len(scores) == 32
    assert scores == pytest.approx({key: score for (key, _), score in own.items()}, abs=1e-6)
    threshold = answer.probe.threshold
    assert (answer.is_positive == (answer.score > threshold)).all()
    assert answer.probability is not None and ((answer.probability > 0) & (answer.probability < 1)).all()


def test_shards_get_the_score_of_each_classifier_of_a_cross_validation(probed: Path, shards: Path) -> None:
    own = own_scores(probed, "cell, split ignored")
    result = predicted(probed, "cell, split ignored", shards)
    [answer] = result.answers
    numbers = {record.key: number for number, record in enumerate(result.records)}
    assert len(own) == len(numbers) == 116
    again = {(key, fold): answer.of_classifiers[numbers[key], fold - 1] for key, fold in own}
    assert again == pytest.approx(own, abs=1e-12)
    np.testing.assert_allclose(answer.score, answer.of_classifiers.mean(axis=1))


def test_dicom_file_gets_the_score_of_its_packed_image(probed: Path, tmp_path: Path) -> None:
    random, films = np.random.default_rng(5), tmp_path / "films"
    films.mkdir()
    for number in range(3):
        pixels = (np.linspace(0, 3000, 90 * 70).reshape(90, 70) + random.normal(0, 99, (90, 70))).clip(0, 4095)
        content = dicom_bytes(pixels.astype(np.uint16), PatientID=f"patient {number}", BitsStored=12, HighBit=11)
        (films / f"{number}.dcm").write_bytes(content)
    key = tmp_path / "key"
    key.write_bytes(bytes(range(32)))
    key.chmod(0o600)
    pack(PackConfig("dicom", films, tmp_path / "packed", shorter_side_px=40, workers=1, dicom=DicomOptions(key)))
    [of_files], [of_shards] = (predicted(probed, "cell", path).answers for path in (films, tmp_path / "packed"))
    assert sorted(of_files.score) == pytest.approx(sorted(of_shards.score), abs=1e-6)
    assert len(set(of_files.score)) == 3


def test_training_images_and_images_unlike_them_are_noted(probed: Path, raw: Path, tmp_path: Path) -> None:
    trained = next((raw / "train" / "NORMAL").iterdir())
    shutil.copy(trained, tmp_path / "renamed.jpeg")
    stripes = 255 * (np.indices((60, 60))[0] % 2)
    stripes[:20] = np.arange(60)
    Image.fromarray(stripes.astype(np.uint8)).save(tmp_path / "stripes.png")
    result = predicted(probed, "cell", tmp_path, raw / "test" / "NORMAL")
    assert result.likeness is not None
    notes = {
        Path(str(record.path)).name: note for record, note in zip(result.records, result.likeness.notes, strict=True)
    }
    assert "has the features of a training image" in notes.pop("renamed.jpeg")
    assert "unlike the training images" in notes.pop("stripes.png")
    assert sum(map(bool, notes.values())) <= 1  # at most a few of 16 images like the training images


def test_features_that_are_gone_cost_only_the_distances(
    probed: Path, raw: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(probed, run)
    shutil.rmtree(run / "features")
    result = predicted(run, "cell", raw / "val" / "NORMAL")
    assert result.likeness is None
    assert "nothing is said of how like the training images" in capfd.readouterr().err
    assert json.loads(as_json(result))["images"][0]["distance"] is None


def test_refused_files_are_lines_with_the_reason(probed: Path, raw: Path, tmp_path: Path) -> None:
    whole = next((raw / "test" / "NORMAL").iterdir())
    shutil.copy(whole, tmp_path / "whole.jpeg")
    (tmp_path / "cut.jpeg").write_bytes(whole.read_bytes()[:300])
    result = predicted(probed, "cell", tmp_path)
    lines = {Path(line["image"]).name: line for line in csv.DictReader(as_csv(result).splitlines())}
    assert (lines["cut.jpeg"]["score"], lines["cut.jpeg"]["note"]) == ("", "refused: truncated or damaged image")
    assert 0 < float(lines["whole.jpeg"]["score"]) < 1
    written = json.loads(as_json(result))
    assert [item["reason"] for item in written["refused"]] == ["truncated or damaged image"]
    assert written["images"][0]["answers"][0]["score"] == float(lines["whole.jpeg"]["score"])
    assert "not a medical device" in written["warning"]
    with pytest.raises(RunFailed, match=r"no file is an image .* the first of 1, .*cut\.jpeg: truncated"):
        predicted(probed, "cell", tmp_path / "cut.jpeg")


def remove_checkpoint(run: Path) -> None:
    shutil.rmtree(find_checkpoints(run)[-1].path)


def train_again(run: Path) -> None:
    flip_a_bit(find_checkpoints(run)[-1].path / MODEL)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            remove_checkpoint,
            r"the weights of 'epoch 1', checkpoints/step-5/model\.safetensors, cannot be read: No",
        ),
        (train_again, "have changed since the probe; probe the run again"),
        (lambda run: shutil.rmtree(run / "probes"), r"keeps no fitted probes; probe it again .*: sternum probe run$"),
    ],
)
def test_probe_whose_run_has_changed_is_refused(
    probed: Path, raw: Path, tmp_path: Path, damage: Callable[[Path], None], message: str
) -> None:
    run = tmp_path / "run"
    shutil.copytree(probed, run)
    damage(run)
    with pytest.raises(UserError, match=message):
        predicted(run, "cell", raw / "val")


def test_source_without_images_is_one_line(probed: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no file; name a folder of images"):
        predicted(probed, "cell", tmp_path)
    with pytest.raises(UserError, match="does not exist; name image files"):
        predicted(probed, "cell", tmp_path / "nothing.png")
