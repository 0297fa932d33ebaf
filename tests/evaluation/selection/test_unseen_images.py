from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from torch import nn

from evaluation.data.extractor import Extractor
from evaluation.data.feature_sources import FeatureSource
from evaluation.data.features import Preprocessing
from evaluation.data.labeled_sets import LabeledSet, ProbeData, open_labeled_sets
from evaluation.data.lineage import Lineage
from evaluation.data.overlap import Seen
from evaluation.data.probe_tasks import TaskOptions, open_probe_tasks
from evaluation.data.task_choice import choose_tasks
from evaluation.probing.config import ProbeConfig
from evaluation.probing.probe import probe
from evaluation.results.selection import SELECTION_NAME, CheckpointSelection
from evaluation.selection.label_free import MEASURES
from evaluation.selection.unseen_images import UnseenImages, measure_checkpoints, unseen_images
from infra.errors import UserError
from sharding.packing.pack import PackConfig, pack
from sharding.reading.data_config import DataConfig
from sharding.reading.fetch import FetchConfig
from sharding.reading.shard_set import ShardSet
from ssl_core.views.spec import ViewSpec
from tests.evaluation.conftest import write_blobs

MakeRun = Callable[..., Path]


def seen_but(labeled_set: LabeledSet, patients: int) -> dict[str, Seen]:
    """Pretraining saw all but so many patients: half of the others by name, half in a picture."""
    ids = labeled_set.samples.patient_ids
    seen = ~np.isin(ids, np.unique(ids)[:patients])
    by_name = seen & (ids % 2 == 0)
    return {labeled_set.label: Seen(seen & ~by_name, by_name, [""] * len(ids), pictures_compared=True)}


@pytest.fixture(scope="module")
def larger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Cell with 124 development images, each of another patient, and the usual 32 of the test part."""
    folder = tmp_path_factory.mktemp("larger")
    write_blobs(folder / "raw", training=60)
    pack(PackConfig("cell", folder / "raw", folder / "shards", shorter_side_px=40, workers=1))
    return folder / "shards"


def chosen(
    shards: Path, seen: Callable[[LabeledSet], dict[str, Seen]], splits: list[str], folder: Path
) -> tuple[UnseenImages, LabeledSet]:
    """The images to measure for a probe on these shards, after a pretraining on some of their splits."""
    [labeled_set] = open_labeled_sets(ProbeData([str(shards)]))
    options = TaskOptions(["gazda2021"], folder, seed=0)
    [divided] = open_probe_tasks([labeled_set], choose_tasks([labeled_set], []), {}, options)
    pretraining = DataConfig([str(shards)], splits)
    known = seen(labeled_set)
    lineage = Lineage(ShardSet([str(shards)], splits) if known else None, [])
    images = unseen_images([labeled_set], divided.questions, known, lineage, pretraining, FetchConfig(), seed=0)
    return images, labeled_set


def test_measured_images_are_of_patients_neither_pretrained_on_nor_tested(larger: Path, tmp_path: Path) -> None:
    images, labeled_set = chosen(larger, lambda item: seen_but(item, 145), ["train"], tmp_path)
    patients, splits = labeled_set.samples.patient_ids, np.array(labeled_set.samples.splits)
    expected = np.flatnonzero(np.isin(patients, np.unique(patients)[:145]) & (splits != "test"))
    [measured] = images.sets
    assert np.array_equal(measured.rows, expected)
    assert np.array_equal(measured.ids, labeled_set.samples.ids[expected])
    assert images.description == (
        f"images of patients that were neither pretrained on nor tested: {len(expected)} of cell"
    )
    unknown, _ = chosen(larger, lambda _: {}, ["train"], tmp_path)
    assert unknown.count == 124
    assert "it is unknown whether pretraining saw them" in unknown.description


def test_patients_whom_pretraining_left_out_of_its_own_folders_take_their_place(larger: Path, tmp_path: Path) -> None:
    images, labeled_set = chosen(larger, lambda item: seen_but(item, 0), ["val"], tmp_path)
    [measured] = images.sets
    assert np.array_equal(measured.rows, np.flatnonzero(np.array(labeled_set.samples.splits) == "train"))
    assert np.array_equal(measured.ids, labeled_set.samples.ids[measured.rows])
    assert not measured.labeled
    assert "the pretraining left out of its own folders and no task tests: 120 of cell" in images.description


def test_selection_is_refused_in_one_line_when_all_images_were_pretrained_on_or_tested(
    run: Path, shards: Path, tmp_path: Path
) -> None:
    config = ProbeConfig(run, ProbeData([str(shards)]), search="serial", executor="torchvision", select=True)
    with pytest.raises(UserError) as caught:
        probe(config)
    assert "there are 4 in --data.shards and 4 in the folders of the pretraining" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (run / "results.json").exists()


def test_features_with_fewer_dimensions_than_images_are_measured_by_all_measures(larger: Path, tmp_path: Path) -> None:
    images, labeled_set = chosen(larger, lambda _: {}, [], tmp_path)
    backbone = nn.Sequential(nn.Conv2d(1, 8, 5, stride=4), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten())
    source = FeatureSource("epoch 1", "checkpoint", lambda: backbone, 1.0, 5)
    preprocessing = Preprocessing(32, 0.5, 0.25, "TorchvisionExecutor", fit="pad", mirrored=False)
    extractor = Extractor(tmp_path, preprocessing, 64, "torchvision", torch.device("cpu"))
    features = {source: extractor.features(source, [labeled_set])}
    measured, left_out = measure_checkpoints(images, features, extractor, ViewSpec(size_px=32), seed=0)
    assert set(measured["epoch 1"]) == set(MEASURES)
    assert not left_out
    unlabeled = UnseenImages([replace(item, labeled=False) for item in images.sets], "")
    again, _ = measure_checkpoints(unlabeled, features, extractor, ViewSpec(size_px=32), seed=0)
    assert again["epoch 1"] == pytest.approx(measured["epoch 1"], rel=1e-3)


def test_selection_measures_every_checkpoint_and_judges_every_measure(
    tmp_path: Path, larger: Path, simulated_shards: Path, make_run: MakeRun
) -> None:
    run = make_run(tmp_path / "run", simulated_shards)
    config = ProbeConfig(
        run,
        ProbeData([str(larger)]),
        presets=["gazda2021"],
        executor="torchvision",
        search="serial",
        controls=False,
        few_labels=False,
        select=True,
        folds=2,
        bootstrap_resamples=100,
        pictures=False,
    )
    probe(config)
    selection = msgspec.json.decode((run / SELECTION_NAME).read_bytes(), type=CheckpointSelection)
    assert list(selection.measures) == ["epoch 1", "epoch 2"]
    names = [name for name in MEASURES if name != "LiDAR"]
    assert all(list(values) == names for values in selection.measures.values())
    assert selection.left_out == {"LiDAR": "124 images bound it below the 512 dimensions of the features"}
    assert selection.chosen in selection.measures
    judged = [verdict.measure for verdict in selection.verdicts]
    assert judged == [*names, "pretext loss", "last", "random"]


@pytest.mark.parametrize("checkpoints", ["last", [3]])
def test_choosing_among_one_checkpoint_is_refused(tmp_path: Path, checkpoints: Any) -> None:
    with pytest.raises(UserError, match="select=true needs several checkpoints"):
        ProbeConfig(tmp_path, ProbeData(["shards"]), checkpoints=checkpoints, select=True)
