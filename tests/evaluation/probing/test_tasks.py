"""Probes of images of one's own, with several labels or classes, from packing to the report."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from evaluation.data.labeled_sets import ProbeData
from evaluation.probing.config import ProbeConfig
from evaluation.probing.probe import probe
from evaluation.report.html.page import report
from evaluation.results.results import Results, read_results
from infra.errors import UserError
from launch.cli import main as sternum
from sharding.packing.pack import PackConfig, pack

MakeRun = Callable[..., Path]


def write_classes(root: Path) -> None:
    """Three classes with noise for images, each with a bright patch of its own, and one with a single image."""
    random = np.random.default_rng(0)
    for name, count, corner in (("clear", 40, 2), ("effusion", 30, 14), ("mass", 30, 26), ("rare", 1, 26)):
        (root / name).mkdir(parents=True)
        for number in range(count):
            pixels = random.integers(60, 120, (40, 40))
            pixels[corner : corner + 10, 8:22] += 60
            Image.fromarray(pixels.astype(np.uint8)).save(root / name / f"{number}.png")


@pytest.fixture(scope="module")
def classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("classes")
    write_classes(folder / "raw")
    pack(PackConfig("folder", folder / "raw", folder / "shards", shorter_side_px=40, workers=1))
    return folder / "shards"


def config_of(run: Path, shards: Path, **changes: Any) -> ProbeConfig:
    small = ProbeConfig(
        run,
        ProbeData([str(shards)]),
        presets=["gazda2021"],
        checkpoints="last",
        executor="torchvision",
        search="serial",
        untrained_seeds=1,
        folds=2,
        bootstrap_resamples=100,
        pictures=False,
    )
    return replace(small, **changes)


@pytest.fixture(scope="module")
def probed(tmp_path_factory: pytest.TempPathFactory, shards: Path, classes: Path, make_run: MakeRun) -> Path:
    run = make_run(tmp_path_factory.mktemp("tasks") / "run", shards, steps=(5,))
    probe(config_of(run, classes))
    return run


def results_of(run: Path) -> Results:
    results = read_results(run)
    assert results is not None
    return results


def test_classes_of_a_folder_are_told_apart_from_each_other_and_scored_together(probed: Path) -> None:
    results = results_of(probed)
    [task] = results.tasks
    assert (task.kind, task.labels) == ("multiclass", ["clear", "effusion", "mass"])
    assert list(task.left_out) == ["rare"]
    assert "1 patients with rare" in task.left_out["rare"]
    assert task.datasets == [f"folder: {name}" for name in task.labels] == [item.label for item in results.datasets]
    rows = {row.features: row for row in task.rows}
    pixels = rows["32 x 32 raw pixels"]
    for score in ("auc", "ap"):
        of_labels = [getattr(row.scores, score).value for row in results.rows if row.features == pixels.features]
        assert getattr(pixels, score).value == pytest.approx(np.mean(of_labels))
    assert pixels.auc.value > 0.95
    confusion = np.array(pixels.confusion)
    assert confusion.sum(axis=1).tolist() == [item.test.positive for item in results.datasets]
    recalls = np.diag(confusion) / confusion.sum(axis=1)
    assert pixels.balanced_accuracy is not None
    assert pixels.balanced_accuracy.value == pytest.approx(recalls.mean())
    compared = [item.other for item in results.comparisons if item.dataset == task.label]
    assert "32 x 32 raw pixels" in compared
    assert not any("shuffled" in other for other in compared)


def test_report_and_table_show_each_label_the_means_and_what_is_left_out(
    probed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = report(probed).read_text()
    for words in ("mean of 3", "balanced ACC", "effusion", "rare is not scored"):
        assert words in page
    assert sternum(["table", str(probed)]) == 0
    table = (probed / "table-folder.md").read_text()
    assert table in capsys.readouterr().out
    assert [line.split("|")[1].strip() for line in table.splitlines()[2:6]] == [
        "clear",
        "effusion",
        "mass",
        "mean of 3",
    ]
    assert r"\toprule" in (probed / "table-folder.tex").read_text()


def test_a_task_file_chooses_the_labels_and_its_mistakes_are_named_in_one_line(
    probed: Path, classes: Path, tmp_path: Path
) -> None:
    task = tmp_path / "mine.yaml"
    task.write_text("kind: multilabel\nlabels: [effusion, mas]\n")
    with pytest.raises(UserError, match=r"task 'mine': dataset 'folder' has no label 'mas' \(did you mean 'mass'\?\)"):
        probe(config_of(probed, classes, tasks=[str(task)]))
    task.write_text("kind: binary\npositive: effusion\nnegative: clear\n")
    results = probe(config_of(probed, classes, tasks=[str(task)], controls=False))
    assert results.tasks == []
    [dataset] = results.datasets
    assert (dataset.label, dataset.positive, dataset.test.images) == ("folder, mine", "effusion", 14)
