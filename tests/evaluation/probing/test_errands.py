"""Whole errands with sets of others: packed, pretrained on for two steps, probed and reported, by the commands."""

import csv
import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import webdataset
from PIL import Image

from evaluation.results.results import Results, read_results
from infra.arrays import UInt8
from launch.cli import main as sternum
from tests.support.dicom_files import dicom_bytes
from tests.support.tiny_resnet import TINY_RESNET

PRETRAIN = [
    *("--config=cpu", f"--model.backbone={TINY_RESNET}", "--views.size_px=32", "--data.global_batch=8"),
    *("--data.lanes=4", "--optim.warmup_steps=1", "--train.max_steps=2"),
]
PROBE = [
    *("--executor=torchvision", "--search=serial", "--folds=2", "--few_labels=false", "--untrained_seeds=1"),
    *("--bootstrap_resamples=100", "--presets=[rigorous]", "--allow_overlap=true", "--pictures=false"),
]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def films(count: int) -> Iterator[tuple[int, UInt8, bool, bool]]:
    """Yield number, pixels (40, 40) and two findings of each film; each finding is a patch of its own."""
    random = np.random.default_rng(0)
    for number in range(count):
        effusion, mass = number % 2 == 0, number % 3 == 0
        pixels = random.integers(60, 120, (40, 40))
        pixels[24:38, 4:18] += 60 * effusion
        pixels[4:18, 24:38] += 60 * mass
        yield number, pixels.astype(np.uint8), effusion, mass


def probed(shards: str, *options: str, init: str | None = None) -> Results:
    """Pretrain on shards, probe and report; return the results."""
    start = [] if init is None else [f"--model.init={init}"]
    assert sternum(["pretrain", "run", f"--data.shards=[{shards}]", *PRETRAIN, *start]) == 0
    assert sternum(["probe", "run", f"--data.shards=[{shards}]", *PROBE, *options]) == 0
    assert sternum(["report", "run"]) == 0
    assert sternum(["table", "run", "--preset=rigorous"]) == 0
    results = read_results(Path("run"))
    assert results is not None
    return results


def require_two_labels(results: Results, page: str) -> None:
    """Both labels are scored, and pixels tell them, so that the labels are those of the images."""
    [task] = results.tasks
    assert (task.kind, task.labels) == ("multilabel", ["effusion", "mass"])
    assert all(row.scores.auc.value > 0.9 for row in results.rows if row.kind == "pixels")
    assert all(f">{label}<" in page for label in task.labels)


def test_dicom_files_with_a_table_of_labels(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "export").mkdir()
    table = ["PatientID,effusion,mass"]
    for number, pixels, effusion, mass in films(60):
        content = dicom_bytes(
            pixels,
            PatientID=f"patient-{number}",
            SOPInstanceUID=f"1.2.3.{number + 1}",
            StudyInstanceUID=f"1.2.4.{number + 1}",
        )
        (folder / "export" / f"{number}.dcm").write_bytes(content)
        table.append(f"patient-{number},{int(effusion)},{int(mass)}")
    (folder / "findings.csv").write_text("\n".join([*table, "patient-elsewhere,1,1"]) + "\n")
    (folder / "dicom.key").write_bytes(bytes(range(32)))
    (folder / "dicom.key").chmod(0o600)
    labels = ["csv=findings.csv", "join=PatientID", "columns=[effusion,mass]"]
    pack = ["shard", "dicom", "--root=export", "--dicom.pseudonym_key=dicom.key", "--shorter_side_px=40", "--workers=1"]

    assert sternum([*pack, "--out=shards/labeled", *(f"--labels.{label}" for label in labels)]) == 0
    at_packing = probed("shards/labeled")
    require_two_labels(at_packing, (folder / "run" / "report.html").read_text())

    assert sternum([*pack, "--out=shards/bare"]) == 0
    capsys.readouterr()
    (folder / "run").rename(folder / "first")
    at_probing = probed("shards/bare", *(f"--data.labels.{label}" for label in [*labels, "pseudonym_key=dicom.key"]))
    assert "patient-" not in capsys.readouterr().err
    assert at_probing.rows[0].scores.auc == at_packing.rows[0].scores.auc  # raw pixels


@pytest.mark.parametrize("source", ["json", "csv"])
def test_tars_of_others_with_labels_in_their_json_or_a_table(folder: Path, source: str) -> None:
    (folder / "tars").mkdir()
    table = ["path,effusion,mass"]
    with webdataset.TarWriter(str(folder / "tars" / "00000.tar")) as writer:
        for number, pixels, effusion, mass in films(60):
            image = io.BytesIO()
            Image.fromarray(pixels).save(image, "PNG")
            findings = {"effusion": int(effusion), "mass": int(mass)}
            writer.write({"__key__": f"{number:05d}", "png": image.getvalue(), "json": {"subject": number, **findings}})
            table.append(f"00000.tar/{number:05d}.png,{int(effusion)},{int(mass)}")
    (folder / "findings.csv").write_text("\n".join(table) + "\n")
    options = {
        "json": ["--webdataset.labels=[effusion,mass]"],
        "csv": ["--labels.csv=findings.csv", "--labels.join=path", "--labels.columns=[effusion,mass]"],
    }
    pack = [
        "shard",
        "webdataset",
        "--root=tars",
        "--out=shards",
        "--webdataset.patient=subject",
        "--shorter_side_px=40",
    ]
    assert sternum([*pack, "--shorter_side_px=40", "--workers=1", *options[source]]) == 0
    require_two_labels(probed("shards"), (folder / "run" / "report.html").read_text())


def test_an_export_starts_a_run_that_is_probed_beside_its_initial_weights(folder: Path) -> None:
    (folder / "films" / "chest").mkdir(parents=True)
    table = ["path,effusion,mass"]
    for number, pixels, effusion, mass in films(60):
        Image.fromarray(pixels).save(folder / "films" / "chest" / f"{number}.png")
        table.append(f"chest/{number}.png,{int(effusion)},{int(mass)}")
    (folder / "findings.csv").write_text("\n".join(table) + "\n")
    labels = ["--labels.csv=findings.csv", "--labels.join=path", "--labels.columns=[effusion,mass]"]
    pack = ["shard", "folder", "--root=films", "--out=shards", "--shorter_side_px=40", "--workers=1"]
    assert sternum([*pack, *labels]) == 0
    probed("shards")
    assert sternum(["export", "run", "--out=exported", "--onnx=false"]) == 0

    (folder / "run").rename(folder / "first")
    results = probed("shards", init="exported")
    assert "initial weights" in {row.features for row in results.rows}
    before, after = scores_of(folder / "first"), scores_of(folder / "run")
    [last_before], [last_after] = (
        [features for features in scores if features.startswith("epoch ") and "," not in features]
        for scores in (before, after)
    )
    assert len(before[last_before]) >= 2 * 60
    assert after["initial weights"] == before[last_before]
    assert after[last_after] != before[last_before]


def scores_of(run: Path) -> dict[str, list[tuple[str, str, str]]]:
    """Question, image and score of each row of predictions.csv, by the features."""
    scores: dict[str, list[tuple[str, str, str]]] = {}
    with (run / "predictions.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            scores.setdefault(row["features"], []).append((row["question"], row["key"], row["score"]))
    return scores
