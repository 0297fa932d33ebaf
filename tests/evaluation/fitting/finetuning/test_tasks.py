"""Fine-tuning on tasks with several labels, from the probe to the network that stays with the run."""

import csv
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import roc_auc_score

from evaluation.data.labeled_sets import ProbeData
from evaluation.fitting.finetuning.config import FinetuneConfig
from evaluation.fitting.finetuning.kept import load_network, read_record
from evaluation.probing.config import ProbeConfig
from evaluation.probing.probe import probe
from evaluation.report.html.page import report
from evaluation.results.results import Results, read_results
from evaluation.results.rows import ProbeResult
from infra.errors import RunFailed
from sharding.datasets.folder import FolderOptions
from sharding.packing.pack import PackConfig, pack
from sharding.reading.shard_set import ShardSet
from sharding.reading.stream import packed_samples
from ssl_core.views.batches import WholeImage, image_batches

MakeRun = Callable[..., Path]

NAME = "epoch 1, fine-tuned"
LABELS = ("device", "effusion", "mass")


def write_findings(root: Path) -> None:
    """Noise with a bright patch for each of three findings, and a table that leaves one in six findings blank.

    A fourth finding has one patient only.
    """
    random = np.random.default_rng(0)
    root.mkdir()
    lines = [",".join(["path", *LABELS, "rare"])]
    for number in range(96):
        found = [bool(number >> bit & 1) for bit in range(3)]
        pixels = random.integers(60, 120, (40, 40))
        for corner, present in zip((2, 14, 26), found, strict=True):
            pixels[corner : corner + 10, 8:22] += 60 * present
        Image.fromarray(pixels.astype(np.uint8)).save(root / f"{number}.png")
        cells = ["" if random.random() < 1 / 6 else str(int(present)) for present in found]
        lines.append(",".join([f"{number}.png", *cells, str(int(number == 0))]))
    (root / "table.csv").write_text("\n".join(lines) + "\n")


@pytest.fixture(scope="module")
def findings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("findings")
    write_findings(folder / "raw")
    table = FolderOptions(Path("table.csv"), labels=[*LABELS, "rare"])
    pack(PackConfig("folder", folder / "raw", folder / "shards", shorter_side_px=40, workers=1, folder=table))
    return folder / "shards"


def config_of(run: Path, shards: Path, **changes: Any) -> ProbeConfig:
    small = ProbeConfig(
        run,
        ProbeData([str(shards)]),
        presets=["gazda2021"],
        checkpoints="last",
        controls=False,
        executor="torchvision",
        search="serial",
        folds=4,
        bootstrap_resamples=100,
        pictures=False,
        finetune=FinetuneConfig(epochs=2, learning_rate=3e-3, local_batch=8),
    )
    return replace(small, **changes)


def rows_of(results: Results) -> list[ProbeResult]:
    return [row for row in results.rows if row.kind == "finetuned"]


@pytest.fixture(scope="module")
def probed(tmp_path_factory: pytest.TempPathFactory, shards: Path, findings: Path, make_run: MakeRun) -> Path:
    run = make_run(tmp_path_factory.mktemp("finetuned") / "run", shards, steps=(5,))
    probe(config_of(run, findings))
    return run


@pytest.fixture(scope="module")
def results(probed: Path) -> Results:
    read = read_results(probed)
    assert read is not None
    return read


def test_one_network_is_scored_and_compared_for_each_label_and_for_their_mean(probed: Path, results: Results) -> None:
    [task] = results.tasks
    assert task.labels == list(LABELS)
    rows = rows_of(results)
    assert [(row.dataset, row.features) for row in rows] == [(name, NAME) for name in task.datasets]
    [mean] = [row for row in task.rows if row.kind == "finetuned"]
    assert mean.auc.value == pytest.approx(np.mean([row.scores.auc.value for row in rows]), abs=1e-12)
    assert mean.auc.value > 0.8
    assert mean.auc.low is not None
    compared = {item.dataset: item for item in results.comparisons if item.other == NAME}
    assert list(compared) == [*task.datasets, task.label]
    frozen = task.last
    assert frozen is not None
    assert compared[task.label].difference.value == pytest.approx(frozen.auc.value - mean.auc.value, abs=1e-12)
    [finding] = re.findall(r"(?:points above|points BELOW|level with) epoch 1, fine-tuned", report(probed).read_text())
    assert finding


def test_the_kept_network_says_of_each_test_image_what_the_probe_says(
    probed: Path, findings: Path, results: Results
) -> None:
    record, network = load_network(probed / "finetuned" / "folder-gazda2021")
    assert (record.kind, record.labels, record.others) == ("multilabel", list(LABELS), False)
    assert "rare" not in record.labels
    assert record.thresholds == [0.5] * 3
    shards, given = ShardSet([str(findings)]), record.input
    batches = image_batches(
        shards, WholeImage(given.size_px, given.fit), mean=given.mean, std=given.std, view_executor="torchvision"
    )
    with torch.inference_mode():
        logits = torch.cat([network(batch.views[0]) for batch in batches])
    keys = [shard.key(row) for shard, row in packed_samples(shards)]
    known = {
        (label, key): value
        for key, of_image in zip(keys, torch.sigmoid(logits.double()).tolist(), strict=True)
        for label, value in zip(record.labels, of_image, strict=True)
    }
    with (probed / "predictions.csv").open() as file:
        lines = [line for line in csv.DictReader(file) if line["features"] == NAME]
    assert len(lines) == sum(item.test.images for item in results.datasets)
    for line in lines:
        assert float(line["score"]) == pytest.approx(known[line["question"], line["key"]], abs=1e-5)
    for label, row in zip(LABELS, rows_of(results), strict=True):
        of_label = [line for line in lines if line["question"] == label]
        classes, scores = ([float(line[name]) for line in of_label] for name in ("label", "score"))
        assert row.scores.auc.value == pytest.approx(roc_auc_score(classes, scores), abs=1e-12)


@pytest.mark.slow
def test_a_kept_network_is_not_trained_again_unless_it_is_damaged_or_an_option_changes(
    probed: Path, findings: Path, results: Results, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = Path(shutil.copytree(probed, tmp_path / "run"))
    kept = run / "finetuned" / "folder-gazda2021"

    def said(**changes: Any) -> str:
        capfd.readouterr()
        again = probe(config_of(run, findings, **changes))
        if not changes:
            assert rows_of(again) == rows_of(results)
        return str(capfd.readouterr().err)

    assert "fine-tuning" not in said()
    model = kept / "model.safetensors"
    content = bytearray(model.read_bytes())
    content[-1] ^= 1
    model.write_bytes(content)
    with pytest.raises(RunFailed, match="is damaged"):
        read_record(kept)
    assert "model.safetensors is not the file that manifest.json lists" in said()
    assert "fine-tuning" not in said()
    shutil.rmtree(kept)
    assert "fine-tuning epoch 1 on folder, gazda2021" in said()
    faster = replace(config_of(run, findings).finetune, patience=1)
    assert "a new one replaces it" in said(finetune=faster)
    assert json.loads((kept / "network.json").read_bytes())["options"]["patience"] == 1
    assert sorted(path.name for path in kept.parent.iterdir()) == [kept.name]


@pytest.mark.slow
def test_classes_have_one_softmax_with_an_output_for_those_that_are_left_out(
    tmp_path: Path, shards: Path, make_run: MakeRun
) -> None:
    random = np.random.default_rng(0)
    for name, count, corner in (("clear", 40, 2), ("effusion", 30, 14), ("mass", 30, 26), ("rare", 4, 26)):
        (tmp_path / "raw" / name).mkdir(parents=True)
        for number in range(count):
            pixels = random.integers(60, 120, (40, 40))
            pixels[corner : corner + 10, 8:22] += 60
            Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "raw" / name / f"{number}.png")
    pack(PackConfig("folder", tmp_path / "raw", tmp_path / "shards", shorter_side_px=40, workers=1))
    run = make_run(tmp_path / "run", shards, steps=(5,))
    finetune = FinetuneConfig(epochs=2, learning_rate=1e-3, local_batch=8, layer_decay=0.9, probe_first=True)
    results = probe(config_of(run, tmp_path / "shards", finetune=finetune))
    [task] = results.tasks
    assert (task.kind, task.labels) == ("multiclass", ["clear", "effusion", "mass"])
    record, network = load_network(run / "finetuned" / "folder-gazda2021")
    assert (record.labels, record.others) == (task.labels, True)
    assert network.head.out_features == 4
    [mean] = [row for row in task.rows if row.kind == "finetuned"]
    assert mean.auc.value > 0.8
    confusion = np.array(mean.confusion)
    assert confusion.sum(axis=1).tolist() == [item.test.positive for item in results.datasets]
    assert mean.balanced_accuracy is not None
    recalls = np.diag(confusion) / confusion.sum(axis=1)
    assert mean.balanced_accuracy.value == pytest.approx(recalls.mean(), abs=1e-12)
    with (run / "predictions.csv").open() as file:
        lines = [line for line in csv.DictReader(file) if line["features"] == NAME]
    totals: dict[str, float] = {}
    for line in lines:
        totals[line["key"]] = totals.get(line["key"], 0.0) + float(line["score"])
    assert all(0 < total < 1 for total in totals.values())  # the rest is the share of other classes
