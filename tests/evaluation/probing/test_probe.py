import csv
import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from PIL import Image
from sklearn.metrics import roc_auc_score

from evaluation.data.backbones.opened import InputOptions
from evaluation.data.labeled_sets import ProbeData, open_labeled_sets
from evaluation.data.probe_tasks import TaskOptions, open_probe_tasks
from evaluation.data.task_choice import choose_tasks
from evaluation.fitting.finetuning.config import FinetuneConfig
from evaluation.fitting.finetuning.kept import read_predictions, read_record
from evaluation.fitting.threshold import youden_threshold
from evaluation.probing.config import ProbeConfig
from evaluation.probing.opened_subject import open_subject
from evaluation.probing.probe import Prober, probe
from evaluation.results.notes import describe
from evaluation.results.presets import PRESETS, Balance
from evaluation.results.results import Results, read_results
from evaluation.results.rows import ProbeResult
from evaluation.scoring.multiplicity import holm
from infra.configuration.options import registered
from infra.errors import UserError
from launch.cli import main as sternum
from sharding.packing.pack import PackConfig, pack
from sharding.reading.shard_set import ShardSet
from ssl_core.checkpoints.checkpoint import CheckpointState
from ssl_core.checkpoints.tensors import save_checkpoint
from ssl_core.model.encoder import ModelConfig, build_encoder

MakeRun = Callable[..., Path]


def config_of(run_folder: Path, folder: Path, **changes: Any) -> ProbeConfig:
    small = ProbeConfig(
        run_folder,
        ProbeData([str(folder)]),
        executor="torchvision",
        search="serial",
        untrained_seeds=1,
        few_labels=False,
        folds=2,
        bootstrap_resamples=100,
        pictures=False,
    )
    return replace(small, **changes)


def rows_of(results: Results, preset: str) -> dict[str, ProbeResult]:
    return {row.features: row for row in results.rows if row.preset == preset}


def write_nih(root: Path) -> None:
    """ChestX-ray14's layout with noise for images; the view tells the class in most cases, a bright patch in all."""
    random = np.random.default_rng(1)
    (root / "images").mkdir(parents=True)
    columns = "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position\n"
    lines = []
    for number in range(90):
        sick = number % 3 == 0  # 30 of 90
        pixels = random.integers(60, 120, (40, 40))
        pixels[10:24, 8:22] += 60 * sick
        Image.fromarray(pixels.astype(np.uint8)).save(root / "images" / f"{number:08d}_000.png")
        view = "PA" if random.random() < (0.8 if sick else 0.3) else "AP"
        sex, age = "MF"[number % 2], 20 + number % 60
        finding = "Pneumonia" if sick else "No Finding"
        lines.append(f"{number:08d}_000.png,{finding},0,{number + 1},{age},{sex},{view}\n")
    (root / "Data_Entry_2017.csv").write_text(columns + "".join(lines))


@pytest.fixture(scope="session")
def nih(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("nih")
    write_nih(folder / "raw")
    pack(PackConfig("chestxray14", folder / "raw", folder / "shards", shorter_side_px=40, workers=1))
    return folder / "shards"


@pytest.fixture(scope="module")
def strips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("strips")
    write_strips(folder / "raw")
    pack(PackConfig("cell", folder / "raw", folder / "shards", shorter_side_px=40, workers=1, allow_missing=True))
    return folder / "shards"


def write_strips(root: Path) -> None:
    """The Cell layout with noise twice as wide as high; a bright patch near the left side tells the class."""
    random = np.random.default_rng(2)
    for split, count in (("train", 24), ("test", 16)):
        for name in ("NORMAL", "PNEUMONIA"):
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = random.integers(60, 120, (40, 80))
                pixels[10:24, 2:14] += 60 * (name == "PNEUMONIA")
                person = number + (600 if split == "test" else 500)  # keys that the other set does not have
                stem = f"IM-{person:04d}-0001" if name == "NORMAL" else f"person{person}_bacteria_{person}"
                Image.fromarray(pixels.astype(np.uint8)).save(root / split / name / f"{stem}.jpeg")


@pytest.fixture
def one_c(monkeypatch: pytest.MonkeyPatch) -> None:
    """One value of C, for a test that is not about its choice."""
    for name in PRESETS:
        monkeypatch.setitem(PRESETS, name, replace(PRESETS[name], c_grid=(0.1,)))


def test_every_checkpoint_and_control_is_scored_by_both_presets(run: Path, shards: Path) -> None:
    results = probe(config_of(run, shards, untrained_seeds=2, folds=3), command="sternum probe ...")
    assert results == read_results(run)
    for preset in ("gazda2021", "rigorous"):
        assert [(row.features, row.kind, row.step) for row in results.rows if row.preset == preset] == [
            ("32 x 32 raw pixels", "pixels", None),
            ("border of the image", "border", None),
            ("size, file and gray level", "attributes", None),
            ("untrained backbone", "untrained", None),
            ("epoch 1", "checkpoint", 5),
            ("epoch 2", "checkpoint", 10),
            ("epoch 2, labels shuffled within each part", "shuffled", None),
            ("epoch 2, labels shuffled over all patients", "shuffled_over_all", None),
        ]
        rows = rows_of(results, preset)
        assert rows["32 x 32 raw pixels"].scores.auc.value > 0.95  # the patch is always in the same position
        assert rows["border of the image"].scores.auc.value < 0.9  # and not at the border
        for labels in ("shuffled within each part", "shuffled over all patients"):
            assert rows[f"epoch 2, labels {labels}"].scores.auc.value < 0.9  # of 32 images; see test_control_cases.py
    pixels = rows_of(results, "gazda2021")["32 x 32 raw pixels"]
    assert (pixels.size, pixels.fits, pixels.threshold, pixels.calibration) == (1024, 3 * 3 + 1, [0.5], None)
    pixels = rows_of(results, "rigorous")["32 x 32 raw pixels"]
    assert (pixels.fits, len(pixels.c)) == (3 * 3 + 1, 1)
    assert pixels.calibration is not None
    assert [(tried.c, tried.test_auc is not None) for tried in pixels.c_path] == [(c, True) for c in (0.001, 0.1, 10)]
    assert [(shift.preset, shift.features, shift.group, shift.test) for shift in results.shifts] == [
        ("rigorous", features, group, 16)
        for features in ("32 x 32 raw pixels", "epoch 2")
        for group in ("NORMAL", "PNEUMONIA")
    ]
    dataset, _ = results.datasets
    assert (dataset.development.images, dataset.test.images, dataset.test.positive) == (84, 32, 16)
    assert dataset.pretrained_images == 0
    assert [(item.other, item.features) for item in results.comparisons if item.preset == "rigorous"] == [
        (name, "epoch 2")
        for name in (
            "32 x 32 raw pixels",
            "border of the image",
            "size, file and gray level",
            "untrained backbone",
            "epoch 1",
        )
    ]
    for preset in ("gazda2021", "rigorous"):
        compared = [item for item in results.comparisons if item.preset == preset]
        assert [item.p_holm for item in compared] == holm([item.difference.p or 0.0 for item in compared])
    for row in results.rows:
        assert row.validation is not None and row.validation.value == row.validation_auc
        assert row.validation.low is not None and row.validation.low <= row.validation_auc
        assert row.scores.ap is not None and 0 < row.scores.ap.value <= 1
    attributes = [item for item in results.attribute_aucs if item.preset == "rigorous"]
    assert [item.attribute for item in attributes] == ["file bytes per pixel", "mean gray level", "SD of gray level"]
    assert [item.images for item in attributes] == [32, 32, 32]
    assert attributes[1].auc.value > 0.95  # the patch makes an image brighter
    assert results.run is not None and results.run.backbone == "resnet18"
    assert json.loads((run / "results.json").read_text())["config"]["folds"] == 3
    require_draws_and_predictions(results, run, shards)


def require_draws_and_predictions(results: Results, run: Path, shards: Path) -> None:
    """Check the row of two draws, and that predictions.csv gives the scores of every row again."""
    with (run / "predictions.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    patients = {f"{identity:016x}" for identity in ShardSet([str(shards)], ["test"]).whole_index()["patient"]}
    assert {line["patient"] for line in lines} == patients == {line["group"] for line in lines}
    assert {(line["set"], line["part"], line["fold"]) for line in lines} == {("cell", "test", "1")}

    def scored_again(row: ProbeResult, draw: int) -> dict[str, float]:
        chosen = [line for line in lines if (line["preset"], line["features"]) == (row.preset, row.features)]
        chosen = [line for line in chosen if line["draw"] == str(draw)]
        assert len({line["key"] for line in chosen}) == len(chosen) == 32
        labels = np.array([int(line["label"]) for line in chosen])
        scores = np.array([float(line["score"]) for line in chosen])
        decisions = scores > [float(line["threshold"]) for line in chosen]
        return {"auc": roc_auc_score(labels, scores), "acc": (decisions == labels).mean()}

    for row in results.rows:
        if row.kind.startswith("shuffled"):
            assert row.features not in {line["features"] for line in lines}
            continue
        assert len(row.draws) == (2 if row.kind == "untrained" else 0)
        again = [scored_again(row, draw) for draw in range(1, max(1, len(row.draws)) + 1)]
        for name in ("auc", "acc"):
            values = [scores[name] for scores in again]
            assert getattr(row.scores, name).value == pytest.approx(np.mean(values), abs=1e-12)
            assert [getattr(draw.scores, name).value for draw in row.draws] in (pytest.approx(values, abs=1e-12), [])
    untrained = next(row for row in results.rows if row.kind == "untrained")
    assert [draw.seed for draw in untrained.draws] == [0, 1]
    first, second = ([line["score"] for line in lines if line["draw"] == draw] for draw in ("1", "2"))
    assert set(first).isdisjoint(second)


@pytest.mark.usefixtures("one_c")
def test_two_datasets_are_balanced_matched_by_view_and_distinguished(run: Path, shards: Path, nih: Path) -> None:
    config = config_of(run, shards, data=ProbeData([str(shards), str(nih)]), checkpoints="last")
    results = probe(replace(config, presets=["rigorous"]))
    labels = {(item.label, item.preset): item for item in results.datasets}
    whole, by_class, by_view = (
        labels[f"chestxray14{task}", "rigorous"]
        for task in ("", ", against No Finding, balanced by class", ", against No Finding, balanced by view")
    )
    assert (whole.test.positive, whole.test.negative, whole.negative) == (30, 60, "no Pneumonia")
    assert (by_class.test.positive, by_class.test.negative, by_class.rounds) == (30, 30, 5)
    assert by_view.test.positive == by_view.test.negative < 30
    rows = {row.features: row for row in results.rows_of(by_class)}
    metadata_auc = rows["view, sex and age"].scores.auc.value
    assert metadata_auc > 0.6
    assert next(r for r in results.rows_of(by_view) if r.kind == "attributes").scores.auc.value < metadata_auc
    assert [[row.kind for row in results.rows_of(task)].count("source") for task in (whole, by_class, by_view)] == [
        1,
        0,
        0,
    ]
    attributes = {item.attribute: item.auc.value for item in results.attribute_aucs_of(by_class)}
    assert [name for name in attributes if name.startswith(("view", "sex"))] == ["view frontal-ap", "sex F"]
    assert attributes["view frontal-ap"] > 0.6
    assert {item.attribute for item in rows["epoch 2"].subgroups} == {"sex", "age", "view"}


@pytest.mark.parametrize(
    ("balance", "labels"),
    [
        (None, ["", ", against No Finding, balanced by class", ", against No Finding, balanced by view"]),
        ("class", ["", ", against No Finding"]),
    ],
)
def test_labels_of_tasks_say_how_they_differ(
    nih: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], balance: Balance | None, labels: list[str]
) -> None:
    sets = open_labeled_sets(ProbeData([str(nih)]))
    options = TaskOptions(["rigorous"], tmp_path, seed=0, balance=balance, split="ignore", folds=3)
    tasks = open_probe_tasks(sets, choose_tasks(sets, []), {}, options)
    assert [task.key.dataset for task in tasks] == [f"chestxray14{label}" for label in labels]
    balances = [question.record.balance for task in tasks for question in task.questions]
    assert balances == ([balance] * 2 if balance else ["development", "class", "view"])
    assert "chestxray14: has no official split to ignore" in capsys.readouterr().err


@pytest.mark.usefixtures("one_c")
def test_few_labels_are_probed_for_the_last_checkpoint_and_the_controls_with_features(run: Path, shards: Path) -> None:
    results = probe(config_of(run, shards, presets=["rigorous"], checkpoints="last", few_labels=True))
    named = list(dict.fromkeys(item.features for item in results.few_labels))
    assert named == ["32 x 32 raw pixels", "untrained backbone", "epoch 2"]
    for features in named:
        few = [item for item in results.few_labels if item.features == features]
        assert [item.percent for item in few] == [1, 5, 10, 25]
        assert few[0].images < few[-1].images
        assert all(len(item.aucs) == 5 for item in few)


def test_nothing_is_extracted_or_fitted_twice(run: Path, shards: Path) -> None:
    config = config_of(run, shards, checkpoints="last")
    serial = probe(config)
    written = {path: path.stat().st_mtime_ns for path in (run / "features").rglob("*.*s*") if path.is_file()}
    again = probe(config)
    assert {path: path.stat().st_mtime_ns for path in written} == written
    assert again.rows == serial.rows


@pytest.mark.usefixtures("one_c")
def test_results_that_a_probe_leaves_out_are_named_before_it_starts(
    run: Path, shards: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = config_of(run, shards, checkpoints="last", controls=False)
    probe(config)
    capsys.readouterr()
    Prober(config, open_subject(config))  # extracts and fits nothing yet
    assert "results.json" not in capsys.readouterr().err
    Prober(replace(config, presets=["rigorous"]), open_subject(config))
    assert f"{run}/results.json holds 'cell' by gazda2021, which this probe leaves out" in capsys.readouterr().err


@pytest.mark.slow  # by default, test_ray_search.py compares the searches, and test_demo.py probes with Ray
def test_results_are_the_same_with_ray(run: Path, shards: Path, ray: None) -> None:
    serial = probe(config_of(run, shards))
    for path in (run / "features" / "probes").iterdir():
        path.unlink()
    parallel = probe(config_of(run, shards, search="ray"))
    assert parallel.rows == serial.rows
    assert not list((run / "features" / "probes").glob("*.jsonl"))


@pytest.mark.slow
def test_probe_that_gets_sigterm_ends_in_one_line_and_resumes(run: Path, shards: Path, tmp_path: Path) -> None:
    words = ["probe", str(run), f"--data.shards=[{shards}]", "--executor=torchvision", "--bootstrap_resamples=0"]
    command = [sys.executable, "-m", "launch", *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        while not list((run / "features").glob("probes/*.jsonl")):
            assert process.poll() is None
            time.sleep(0.05)
        started = psutil.Process(process.pid).children(recursive=True)
        process.terminate()
        _, said = process.communicate(timeout=60)
    assert process.returncode == 143
    assert said.splitlines()[-1] == "sternum: stopped by SIGTERM; the same command continues"
    assert not [line for line in said.splitlines()[:-1] if "extracting" not in line]
    _, left = psutil.wait_procs(started, timeout=30)
    assert not left
    assert not (run / "results.json").exists()
    fits = {path: path.read_text() for path in (run / "features" / "probes").glob("*.jsonl")}
    assert any(fits.values())
    assert sternum([*words, "--search=serial"]) == 0


def test_simulated_data_are_labeled_and_never_compared_with_the_paper(
    run: Path, simulated_cell: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [
        "probe",
        str(run),
        f"--data.shards=[{simulated_cell}]",
        "--checkpoints=last",
        "--controls=false",
        "--few_labels=false",
        "--presets=[gazda2021]",
        "--pictures=false",
    ]
    assert sternum([*arguments, "--executor=torchvision", "--search=serial", "--folds=2"]) == 0
    printed = capsys.readouterr().out
    assert "| cell (simulated) | epoch 2" in printed
    assert "prove nothing about medicine" in printed
    assert "paper, 100 %" not in printed
    results = read_results(run)
    assert results is not None
    assert len(results.rows) == 1


def test_test_images_seen_in_pretraining_are_refused_or_allowed_and_marked(
    tmp_path: Path, shards: Path, make_run: MakeRun
) -> None:
    run = make_run(tmp_path / "run", shards, steps=(5,), splits=())
    with pytest.raises(UserError, match="pretraining saw 32 test images and 32 test patients"):
        probe(config_of(run, shards, controls=False))
    assert not (run / "results.json").exists()
    results = probe(config_of(run, shards, controls=False, allow_overlap=True, split="ignore"))
    assert results.datasets[0].pretrained_images == 32
    assert any("pretraining saw 32 test images" in note for note in results.notes)
    assert [(item.label, item.split, item.rounds, item.test.images) for item in results.datasets[1::2]] == [
        ("cell", "official", 1, 32),
        ("cell, split ignored", "5-fold by patient", 5, 116),
    ]


def test_near_identical_images_of_two_patients_stay_on_one_side_by_the_rigorous_preset(
    tmp_path: Path, run: Path, shards: Path
) -> None:
    raw = tmp_path / "raw"
    random = np.random.default_rng(0)
    for name in ("NORMAL", "PNEUMONIA"):
        (raw / "train" / name).mkdir(parents=True)
        (raw / "test" / name).mkdir(parents=True)
        for number in range(40):
            pixels = np.kron(random.integers(0, 255, (8, 8)), np.ones((8, 8))).astype(np.uint8)
            stem = f"IM-{number + 500:04d}-0001" if name == "NORMAL" else f"person{number}_virus_{number}"
            split = "test" if number >= 30 else "train"
            Image.fromarray(pixels).save(raw / split / name / f"{stem}.jpeg", quality=95)
            for person in (900, 800)[: (number < 5) + (number == 0)]:  # the picture under other names in the test part
                other = f"IM-{person + number:04d}-0001" if name == "NORMAL" else f"person{person + number}_virus_1"
                Image.fromarray(pixels).save(raw / "test" / name / f"{other}.jpeg", quality=80)
    pack(PackConfig("cell", raw, tmp_path / "shards", shorter_side_px=64, workers=1, allow_missing=True))
    results = probe(config_of(run, tmp_path / "shards", checkpoints="last", controls=False))
    by_paper, rigorous = results.datasets
    assert (by_paper.development.images, rigorous.development.images) == (60, 50)
    assert (by_paper.test.patients, by_paper.test.groups) == (32, None)
    assert (rigorous.test.patients, rigorous.test.groups) == (32, 30)
    assert "32 images of 32 patients in 30 groups" in describe(rigorous)
    assert rigorous.excluded["development image of a tested patient"] == 10


def test_finetuned_network_is_compared_with_the_frozen_one_on_the_same_patients(run: Path, shards: Path) -> None:
    finetune = FinetuneConfig(epochs=1, learning_rate=1e-3, local_batch=16)
    config = config_of(
        run, shards, presets=["rigorous"], checkpoints="last", controls=False, finetune=finetune, folds=3
    )
    results = probe(config)
    frozen, finetuned = results.rows
    assert (finetuned.features, finetuned.kind) == ("epoch 2, fine-tuned", "finetuned")
    [comparison] = results.comparisons
    assert (comparison.features, comparison.other) == (frozen.features, finetuned.features)
    difference = frozen.scores.auc.value - finetuned.scores.auc.value
    assert comparison.difference.value == pytest.approx(difference, abs=1e-12)
    assert comparison.difference.low is not None
    [task] = Prober(config, open_subject(config)).tasks
    classes, fold = task.cohort.classes, task.cohort.folds[0]
    kept = run / "finetuned" / "cell-rigorous"
    record, predictions = read_record(kept), read_predictions(kept)
    [validation], [test] = predictions["validation"], predictions["test"]
    assert roc_auc_score(classes[fold == 1], validation) == pytest.approx(finetuned.validation_auc, abs=1e-12)
    assert roc_auc_score(classes[fold == -1], test) == pytest.approx(finetuned.scores.auc.value, abs=1e-12)
    assert finetuned.threshold == record.thresholds == [youden_threshold(classes[fold == 1], validation)]


@pytest.mark.usefixtures("one_c")
@pytest.mark.parametrize("fit", ["pad", *(pytest.param(fit, marks=pytest.mark.slow) for fit in ("squash", "square"))])
def test_images_that_are_not_square_are_counted_and_probed_as_the_option_says(
    run: Path, strips: Path, fit: str
) -> None:
    results = probe(config_of(run, strips, presets=["gazda2021"], checkpoints=[], probe_fit=fit))
    pixels = rows_of(results, "gazda2021")["32 x 32 raw pixels"].scores.auc.value
    assert pixels < 0.8 if fit == "square" else pixels > 0.95  # the sign of disease lies beside the center square
    assert results.datasets[0].not_square == 80
    [note] = [note for note in results.notes if "80 images are not square" in note]
    assert {"pad": "padded", "squash": "squashed", "square": "cut"}[fit] in note
    assert results.config["probe_fit"] == fit


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"checkpoints": [7]}, "has only epochs 1, 2; choose among these"),
        ({"folds": 60}, "fewer than the 60 folds"),
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


def test_folder_without_a_run_is_refused_and_left_unchanged(tmp_path: Path, shards: Path) -> None:
    with pytest.raises(UserError, match=r"config\.yaml does not exist"):
        probe(config_of(tmp_path / "run", shards))
    assert not (tmp_path / "run").exists()


def test_checkpoint_of_another_architecture_is_refused_by_name(run: Path, shards: Path) -> None:
    tensors = build_encoder(ModelConfig("resnet34", 16, 8), seed=0).state_dict()
    save_checkpoint(run, CheckpointState(15, 3.0, "resnet34", "-", 0.5, 0.25, 1, "-", "-"), tensors, {})
    with pytest.raises(UserError, match=r"step-15 holds a resnet34, but model\.backbone .* is resnet18"):
        probe(config_of(run, shards))


def test_checkpoint_whose_weights_are_not_finite_is_named_and_nothing_is_written(run: Path, shards: Path) -> None:
    tensors = build_encoder(ModelConfig("resnet18", 16, 8), seed=0).state_dict()
    tensors["backbone.resnet.conv1.weight"].fill_(float("nan"))
    save_checkpoint(run, CheckpointState(15, 3.0, "resnet18", "-", 0.5, 0.25, 1, "-", "-"), tensors, {})
    with pytest.raises(UserError, match="epoch 3 on cell are not finite for 116 of 116 images"):
        probe(config_of(run, shards, checkpoints="last", controls=False, presets=["gazda2021"]))
    assert not (run / "results.json").exists()
    left = {path.name for path in (run / "features").glob("*.safetensors")}
    assert not {name for name in left if "near-duplicates" not in name}  # no features


def test_dataset_named_twice_is_refused(run: Path, shards: Path) -> None:
    doubled = pytest.raises(UserError, match=r"two folders of data\.shards hold the dataset 'cell'")
    with registered(ProbeConfig), doubled:
        probe(config_of(run, shards, data=ProbeData([str(shards), str(shards)])))


def test_probe_without_shards_is_refused() -> None:
    with registered(ProbeConfig), pytest.raises(UserError, match=r"data\.shards=\[\] must name a folder"):
        ProbeData([])


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("presets", [], "presets"),
        ("presets", ["rigorous", "rigorous"], "each once"),
        ("folds", 1, "folds=1 must be at least 2"),
        ("bootstrap_resamples", 5, "bootstrap_resamples=5"),
        ("address", "auto", "excludes search=serial"),
        ("repeats", 0, "repeats=0"),
        ("input", InputOptions(mean=[0.5]), r"mean=\[0\.5\] is for compare"),
    ],
)
def test_option_out_of_range_is_refused_by_name(tmp_path: Path, key: str, value: object, words: str) -> None:
    with pytest.raises(UserError, match=words):
        config_of(tmp_path, tmp_path, **{key: value})
