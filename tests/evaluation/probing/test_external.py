"""External validation from packing to the report: classifiers of one hospital, tested on the images of another."""

import csv
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from evaluation.data.labeled_sets import ProbeData, open_labeled_sets
from evaluation.fitting.finetuning.config import FinetuneConfig
from evaluation.pictures.projector import THUMBNAIL_PX
from evaluation.probing.config import ProbeConfig
from evaluation.probing.probe import probe
from evaluation.report.html.page import report
from evaluation.results.embedding_records import read_embeddings
from evaluation.results.kept_probes import KeptProbes
from evaluation.results.results import Results
from evaluation.results.rows import ProbeResult
from infra.arrays import Float32
from infra.errors import UserError
from launch.cli import main as sternum
from sharding.datasets.folder import FolderOptions
from sharding.packing.pack import PackConfig, pack
from sharding.reading.location import Location
from sharding.reading.shard_set import ShardSet

MakeRun = Callable[..., Path]


def write_hospital(root: Path, seed: int, count: int, brightness: int) -> None:
    """Noise of a hospital's own brightness, with a bright patch where the image is of somebody sick."""
    random = np.random.default_rng(seed)
    for name in ("sick", "well"):
        (root / name).mkdir(parents=True)
        for number in range(count):
            pixels = random.integers(60, 120, (40, 40)) + brightness
            pixels[10:24, 8:22] += 60 * (name == "sick")
            Image.fromarray(pixels.astype(np.uint8)).save(root / name / f"{seed}-{number}.png")


@pytest.fixture(scope="module")
def hospitals(tmp_path_factory: pytest.TempPathFactory) -> list[Location]:
    """Two sets; three images of the first are in the second too, under other names."""
    folder = tmp_path_factory.mktemp("hospitals")
    write_hospital(folder / "a", 1, 30, 0)
    write_hospital(folder / "b", 2, 25, 40)
    for number in range(3):
        (folder / "b" / "sick" / f"again-{number}.png").write_bytes(
            (folder / "a/sick" / f"1-{number}.png").read_bytes()
        )
    for name in "ab":
        config = PackConfig("folder", folder / name, folder / f"shards-{name}", shorter_side_px=40, workers=1)
        pack(replace(config, name=f"hospital-{name}"))
    return [str(folder / f"shards-{name}") for name in "ab"]


def config_of(run: Path, shards: list[Location], **changes: Any) -> ProbeConfig:
    small = ProbeConfig(
        run,
        ProbeData(shards),
        train_on="hospital-a",
        checkpoints="last",
        executor="torchvision",
        search="serial",
        untrained_seeds=1,
        few_labels=False,
        folds=2,
        bootstrap_resamples=100,
        pictures=False,
    )
    return replace(small, **changes)


@pytest.fixture(scope="module")
def probed(
    tmp_path_factory: pytest.TempPathFactory, shards: Path, hospitals: list[Location], make_run: MakeRun
) -> tuple[Path, Results]:
    run = make_run(tmp_path_factory.mktemp("external") / "run", shards, steps=(5,))
    return run, probe(config_of(run, hospitals))


LABEL = "hospital-b, fitted on hospital-a"


def test_one_hospital_is_fitted_and_the_other_tested_with_every_control(probed: tuple[Path, Results]) -> None:
    _, results = probed
    for dataset in results.datasets:
        assert (dataset.label, dataset.split, dataset.rounds) == (LABEL, "external", 1)
        assert (dataset.development.images, dataset.test.images, dataset.test.positive) == (60, 50, 25)
        assert dataset.excluded["of hospital-b, with a patient or picture of the development part"] == 3
        assert dataset.fitted_on is not None
        assert (dataset.fitted_on.label, dataset.fitted_on.positive) == ("hospital-a", "sick")
        assert [(row.features, row.kind) for row in results.rows_of(dataset)] == [
            ("32 x 32 raw pixels", "pixels"),
            ("border of the image", "border"),
            ("size, file and gray level", "attributes"),
            ("untrained backbone", "untrained"),
            ("epoch 1", "checkpoint"),
            ("epoch 1, labels shuffled within each part", "shuffled"),
            ("epoch 1, labels shuffled over all patients", "shuffled_over_all"),
        ]
        assert {item.other for item in results.comparisons_of(dataset)} >= {"32 x 32 raw pixels", "untrained backbone"}
    assert {item.group for item in results.shifts} == {"sick", "well"}
    assert all(item.auc.value > 0.9 for item in results.shifts)  # one hospital is brighter
    assert any(f"{LABEL}: a classifier tells the two sets apart within a class" in note for note in results.notes)
    assert any("come from images of hospital-a alone" in note for note in results.notes)


def stored_pixels(run: Path, shards: Location) -> Float32:
    """The raw pixels of a set that the probe has extracted."""
    ids = ShardSet([shards]).whole_index()["sample"]
    for path in (run / "features").glob("*.safetensors"):
        tensors = safetensors.numpy.load(path.read_bytes())
        if tensors["features"].shape == (len(ids), 1024) and np.array_equal(tensors["sample"], ids):
            found: Float32 = tensors["features"]
            return found
    raise AssertionError(f"no pixels of {shards}")


def test_scores_are_those_of_a_classifier_that_saw_only_the_fitted_set(
    probed: tuple[Path, Results], hospitals: list[Location]
) -> None:
    run, results = probed
    fitted, tested = (stored_pixels(run, shards) for shards in hospitals)
    first, second = (item.samples for item in open_labeled_sets(ProbeData(hospitals)))
    classes = [of_image["sick"] for of_image in first.labels]
    row: ProbeResult = next(r for r in results.rows if r.preset == "rigorous" and r.kind == "pixels")
    scaler = StandardScaler().fit(fitted.astype(np.float64))
    model = LogisticRegression(C=row.c[0], class_weight="balanced", max_iter=1000)
    model.fit(scaler.transform(fitted.astype(np.float64)), classes)
    expected = dict(
        zip(second.keys, model.predict_proba(scaler.transform(tested.astype(np.float64)))[:, 1], strict=True)
    )
    with (run / "predictions.csv").open(newline="") as file:
        lines = [
            line for line in csv.DictReader(file) if (line["preset"], line["features"]) == ("rigorous", row.features)
        ]
    assert len(lines) == 50
    for line in lines:
        assert (line["set"], line["question"], line["part"]) == (LABEL, "", "test")
        assert float(line["score"]) == pytest.approx(expected[line["key"]], abs=1e-6)
        assert float(line["threshold"]) == row.threshold[0]


def test_the_kept_classifiers_name_the_fitted_set_and_its_features(
    probed: tuple[Path, Results], hospitals: list[Location]
) -> None:
    run, _ = probed
    identity = ShardSet([hospitals[0]]).whole_index()["sample"]
    kept = KeptProbes(run)
    assert kept.probes
    for item in kept.probes:
        assert (item.dataset, item.set, item.images) == (LABEL, "hospital-a", 60)
        stored = safetensors.numpy.load((run / item.features_file).read_bytes())
        assert np.array_equal(stored["sample"], identity)
        assert np.array_equal(np.sort(kept.numbers(item).rows), np.arange(60))


def test_report_and_table_show_the_pair(probed: tuple[Path, Results], capsys: pytest.CaptureFixture[str]) -> None:
    run, _ = probed
    page = report(run).read_text()
    assert LABEL in page
    assert "tested set or fitted set?" in page
    assert sternum(["table", str(run), "--preset=rigorous"]) == 0
    assert f"| {LABEL}" in capsys.readouterr().out


def write_findings(root: Path, seed: int, names: tuple[str, str], brightness: int) -> None:
    """Noise with a bright patch for each of two findings, and a table with a column for each, by its local name."""
    random = np.random.default_rng(seed)
    (root / "films").mkdir(parents=True)
    lines = [f"path,person,{','.join(names)}"]
    for number in range(90):
        found = random.random(2) < 0.4
        pixels = random.integers(60, 120, (40, 40)) + brightness
        for is_found, corner in zip(found, (4, 22), strict=True):
            pixels[corner : corner + 12, 8:22] += 60 * int(is_found)
        Image.fromarray(pixels.astype(np.uint8)).save(root / "films" / f"{seed}-{number}.png")
        lines.append(f"films/{seed}-{number}.png,p{number},{int(found[0])},{int(found[1])}")
    (root / "table.csv").write_text("\n".join(lines) + "\n")


@pytest.mark.slow
def test_several_labels_fine_tuning_few_labels_and_the_own_test_part_work_too(
    tmp_path: Path, shards: Path, hospitals: list[Location], make_run: MakeRun, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, words, brightness in (("c", ("Effusion", "Mass"), 0), ("d", ("Pleural Effusion", "Mass"), 30)):
        write_findings(tmp_path / name, ord(name), words, brightness)
        options = FolderOptions(Path("table.csv"), patient="person", labels=list(words))
        packing = PackConfig("folder", tmp_path / name, tmp_path / f"shards-{name}", shorter_side_px=40, workers=1)
        pack(replace(packing, name=f"hospital-{name}", folder=options))
    task = tmp_path / "two.yaml"
    task.write_text("kind: multilabel\nlabels: [Effusion, Mass]\nnames: [[Effusion, Pleural Effusion]]\n")
    run = make_run(tmp_path / "run", shards, steps=(5, 10))
    findings: list[Location] = [str(tmp_path / f"shards-{name}") for name in "cd"]
    label = "hospital-d, fitted on hospital-c, two"
    config = config_of(run, findings, train_on="hospital-c", test_on=["hospital-d", "hospital-c"], tasks=[str(task)])
    results = probe(replace(config, few_labels=True, folds=3, checkpoints="all"))
    assert "90 patients of hospital-d have names of patients of hospital-c" in capsys.readouterr().err
    assert [task.label for task in results.tasks] == ["hospital-c, two"] * 2 + [label] * 2
    of_pair = results.tasks[-1]
    assert (of_pair.labels, of_pair.split, of_pair.images) == (["Effusion", "Mass"], "external", 90)
    pixels = next(row for row in of_pair.rows if row.kind == "pixels")
    assert pixels.auc.value > 0.9
    assert {item.dataset for item in results.few_labels} > {f"{label}: Mass", "hospital-c, two: Mass"}
    with (run / "predictions.csv").open(newline="") as file:
        named = {(line["set"], line["question"]) for line in csv.DictReader(file)}
    assert named == {(name, finding) for name in ("hospital-c, two", label) for finding in ("Effusion", "Mass")}
    assert sternum(["table", str(run), "--preset=rigorous"]) == 0
    assert label in (run / "table-hospital-d-fitted-on-hospital-c-two.md").read_text()

    tuned = probe(config_of(run, hospitals, folds=3, finetune=FinetuneConfig(epochs=1, local_batch=8)))
    assert [row.kind for row in tuned.rows_of(tuned.datasets[-1])][-1] == "finetuned"
    other = make_run(tmp_path / "other", shards, steps=(6,))
    probe(config_of(other, hospitals, folds=3))
    assert sternum(["compare", str(run), str(other), f"--dataset={LABEL}", f"--out={tmp_path / 'compare'}"]) == 0
    assert "50 images of 50 patients" in capsys.readouterr().out


def test_a_tested_set_that_was_pretrained_on_is_refused_without_the_advice_of_another_split(
    tmp_path: Path, hospitals: list[Location], make_run: MakeRun
) -> None:
    run = make_run(tmp_path / "run", Path(hospitals[1]), (5,), ())
    with pytest.raises(
        UserError, match=r"flatters the checkpoints; leave .* for --exclude\), or pass --allow_overlap="
    ):
        probe(config_of(run, hospitals))


def test_options_that_do_not_fit_are_refused_in_one_line(hospitals: list[Location]) -> None:
    with pytest.raises(UserError, match=r"test_on=\[a\] needs the set that classifiers are fitted to: train_on=NAME"):
        config_of(Path("run"), hospitals, train_on=None, test_on=["a"])
    with pytest.raises(UserError, match=r"test_on=\[a,a\] names a set twice"):
        config_of(Path("run"), hospitals, test_on=["a", "a"])


@pytest.mark.slow
def test_maps_and_projector_show_images_of_the_tested_hospital(
    probed: tuple[Path, Results], hospitals: list[Location]
) -> None:
    run, _ = probed
    probe(config_of(run, hospitals, pictures=True))
    record = read_embeddings(run)
    assert record is not None
    [of_set] = record.sets
    assert (of_set.dataset, of_set.classes, sum(of_set.positive)) == (LABEL, ("well", "sick"), 25)
    [_, tested] = open_labeled_sets(ProbeData(hospitals))
    assert len(of_set.keys) == 50 and set(of_set.keys) <= set(tested.samples.keys)
    assert [item.features for item in of_set.maps] == ["untrained backbone, draw 1", "epoch 1"]
    [sheet] = (run / "events" / "probe").rglob("*-thumbnails.png")
    cells = np.asarray(Image.open(sheet)).reshape(8, THUMBNAIL_PX, 8, THUMBNAIL_PX).swapaxes(1, 2)
    assert cells.mean(axis=(2, 3)).reshape(-1)[:50].min() > 120  # hospital-b is brighter
