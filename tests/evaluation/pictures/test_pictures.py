"""Pictures of a real, small probe: what is in the folder, and that it belongs to the results beside it."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import save_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from evaluation.data.backbones.opened import InputOptions
from evaluation.data.labeled_sets import ProbeData
from evaluation.probing.config import ProbeConfig
from evaluation.probing.probe import probe
from evaluation.results.embedding_records import read_embeddings
from evaluation.results.picture_records import Attention, read_attention
from launch.cli import main as sternum
from ssl_core.model.architectures import build_network
from tests.evaluation.conftest import MakeRun


def config(shards: Path, **changes: Any) -> ProbeConfig:
    small: dict[str, Any] = {
        "data": ProbeData([str(shards)]),
        "controls": False,
        "few_labels": False,
        "search": "serial",
        "bootstrap_resamples": 100,
    }
    return ProbeConfig(**(small | changes))


@pytest.fixture(scope="module")
def probed(make_run: MakeRun, shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = make_run(tmp_path_factory.mktemp("pictures") / "run", shards, steps=(10,))
    probe(config(shards, run_folder=run))
    return run


def attention_of(run: Path) -> Attention:
    record = read_attention(run)
    assert record is not None
    return record


def test_correct_positives_and_negatives_have_maps(probed: Path) -> None:
    record = attention_of(probed)
    assert record.left_out == "" and record.cells == [4, 4]
    decisions = [(item.image.label, item.is_positive) for item in record.maps]
    assert decisions == [(1, True)] * 4 + [(0, False)] * 4
    for item in record.maps:
        assert (item.image.dataset, item.image.split) == ("cell", "test")
        image, map_ = (np.asarray(Image.open(probed / "pictures" / name)) for name in (item.image.file, item.file))
        assert image.shape == map_.shape == (40, 40) and image.std() > 5
        assert (map_.max() > 240) == (item.outside is not None)  # the intercept alone may decide
    assert any(item.outside for item in record.maps)


def test_maps_are_checked_by_random_weights_and_by_the_region_without_lungs(probed: Path) -> None:
    record = attention_of(probed)
    assert [item.images > 0 for item in record.randomized] == [True] * 5
    for item in record.randomized:
        assert item.rank_correlation is not None and item.ssim is not None
        assert item.rank_correlation.low is not None and item.rank_correlation.low < item.rank_correlation.value < 1
    [outside] = record.outside  # without controls there is no untrained backbone
    assert outside.images + outside.empty == 32 and outside.share is not None
    assert outside.uniform == pytest.approx(0.45, abs=0.03)


def test_the_features_of_the_test_images_have_a_map(probed: Path) -> None:
    record = read_embeddings(probed)
    assert record is not None
    [of_set] = record.sets
    assert (of_set.dataset, of_set.preset, sum(of_set.positive), len(of_set.keys)) == ("cell", "rigorous", 16, 32)
    shown = [(item.features, item.missing, len(item.x)) for item in of_set.maps]
    assert shown == [("epoch 2", "", 32)]
    assert len(list((probed / "events" / "probe").rglob("projector_config.pbtxt"))) == 1


def test_the_folder_is_that_of_the_results_beside_it(probed: Path, shards: Path) -> None:
    before = {path.name: path.read_bytes() for path in (probed / "pictures").iterdir()}
    probe(config(shards, run_folder=probed))
    assert before == {path.name: path.read_bytes() for path in (probed / "pictures").iterdir()}
    probe(config(shards, run_folder=probed, pictures=False))
    assert not (probed / "pictures").exists()


def test_predict_writes_a_map_for_each_image_and_keeps_a_folder_of_others(
    probed: Path, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images, maps = shards.parent / "raw" / "val", tmp_path / "maps"
    words = ["predict", str(images), f"--probe={probed}:cell", "--workers=1", f"--out={tmp_path / 'scores.csv'}"]
    for _ in range(2):  # the second one replaces the first
        assert sternum([*words, f"--maps={maps}"]) == 0
    listed = json.loads((maps / "maps.json").read_text())["maps"]
    with (tmp_path / "scores.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [(item["image"], item["score"]) for item in listed] == [
        (line["image"], float(line["score"])) for line in lines
    ]
    assert {path.name for path in maps.iterdir()} == {"maps.json", *(item["file"] for item in listed)}
    pictures = np.stack([np.asarray(Image.open(maps / item["file"])) for item in listed])
    assert pictures.shape == (4, 320, 320, 3) and (pictures.std(axis=3) > 10).any()  # some color on gray

    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").touch()
    assert sternum([*words, f"--maps={tmp_path / 'mine'}"]) == 2
    assert "mine exists and holds no maps.json of a prediction; name a new folder" in capsys.readouterr().err


@pytest.mark.slow
def test_backbones_without_a_run_and_cross_validation_have_pictures_too(
    make_run: MakeRun, shards: Path, tmp_path: Path
) -> None:
    """Each image's map goes through the classifier that did not see it, and the untrained backbone has its own."""
    run, out = make_run(tmp_path / "run", shards), tmp_path / "out"
    probe(config(shards, backbones=[f"mine={run}"], out=out, mirrored=True, controls=True, untrained_seeds=2))
    trained, untrained = attention_of(out).outside
    assert (trained.features, untrained.features) == ("mine", "untrained backbone, draw 1")
    assert trained.uniform == untrained.uniform
    probe(config(shards, run_folder=run, split="ignore", presets=["rigorous"], allow_overlap=True))
    assert {item.image.split for item in attention_of(run).maps} <= {"train", "val", "test"}


@pytest.mark.slow
def test_a_vision_transformer_has_pictures_and_a_network_without_maps_says_why(shards: Path, tmp_path: Path) -> None:
    for name, size_px in (("timm/vit_tiny_patch16_224", 64), ("timm/swin_tiny_patch4_window7_224", 224)):
        network = build_network(name, size_px).module
        weights = tmp_path / f"{size_px}.safetensors"
        save_file(network.state_dict(), weights)
        images = InputOptions(size_px, [0.5], [0.25])
        probe(config(shards, backbones=[f"x={weights}@{name}"], out=tmp_path / str(size_px), input=images))
    assert "attention" in attention_of(tmp_path / "64").method
    assert attention_of(tmp_path / "224").left_out.startswith("There is no map for timm/swin_tiny")


@pytest.mark.slow
def test_a_watched_run_shows_the_same_images_for_each_checkpoint(
    make_run: MakeRun, shards: Path, tmp_path: Path
) -> None:
    run = make_run(tmp_path / "run", shards)
    probe(config(shards, run_folder=run, presets=["rigorous"]))
    events = EventAccumulator(str(run / "events" / "probe"))
    events.Reload()
    shown = events.Images("probe/cell/rigorous/attention")
    assert [item.step for item in shown] == [5, 10]
    first, second = (np.asarray(Image.open(io.BytesIO(item.encoded_image_string))) for item in shown)
    assert first.shape == second.shape == (640, 1280, 3) and (first != second).any()
    dark = (first.astype(int).std(axis=2) < 1) & (second.astype(int).std(axis=2) < 1)  # no evidence, so the plain image
    assert dark.sum() > 1000 and (abs(first[dark].astype(int) - second[dark]) < 9).all()
