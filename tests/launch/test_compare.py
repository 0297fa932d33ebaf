import csv
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.special import expit
from sklearn.metrics import roc_auc_score

from evaluation.results.datasets import TaskKey
from evaluation.results.predictions import FeaturesKey, ImagePredictions, write_predictions
from evaluation.results.results import write_results
from launch.cli import main as sternum
from tests.support.probe_results import made_dataset, made_results

IMAGES, PATIENTS = 240, 120
KEYS = [f"test_{'PNEUMONIA' if number % 2 else 'NORMAL'}_image-{number:03d}" for number in range(IMAGES)]
LABELS = np.arange(IMAGES) % 2
PATIENT = np.arange(IMAGES) % PATIENTS

MakeRun = Callable[..., Path]


def scores_of(seed: int, distance: float) -> np.ndarray:
    """Return scores whose classes lie `distance` apart; half of their noise is the same for all seeds."""
    shared, own = np.random.default_rng(99).normal(size=IMAGES), np.random.default_rng(seed).normal(size=IMAGES)
    probabilities: np.ndarray = expit(distance * (LABELS - 0.5) + np.sqrt(0.5) * (shared + own))
    return probabilities


def auc_of(seed: int, distance: float) -> float:
    return float(roc_auc_score(LABELS, scores_of(seed, distance)))


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MakeRun:
    """Call it with a name, a seed and a distance: the relative path of a probed run folder."""
    monkeypatch.chdir(tmp_path)

    def make(
        name: str,
        seed: int,
        distance: float = 2.0,
        *,
        recipe: dict[str, Any] | None = None,
        sets: Sequence[str] = ("cell",),
        **changes: Any,
    ) -> Path:
        datasets = [made_dataset("rigorous", label=label) for label in sets]
        results = made_results(datasets)
        images = ImagePredictions(
            crossed=False,
            folds=np.ones(IMAGES, np.int64),
            keys=KEYS,
            patients=PATIENT.astype(np.uint64),
            groups=PATIENT.astype(np.uint64),
            labels=LABELS,
            scores=scores_of(seed, distance),
            thresholds=np.full(IMAGES, 0.5),
        )
        images = replace(images, **changes)
        other = replace(images, scores=1 - images.scores)
        rows = [
            (FeaturesKey(TaskKey(label, "rigorous"), "", features, 1), item)
            for label in sets
            for features, item in (("epoch 20", other), ("epoch 24", images))
        ]
        run = Path(name)
        file = write_predictions(run, rows)
        assert results.run is not None
        described = replace(results.run, seed=seed, recipe=recipe or {"loss.temperature": 0.5})
        write_results(run, replace(results, run=described, predictions=file))
        return run

    return make


def write_export(file: Path, seed: int, distance: float = 2.0, **columns: Sequence[object]) -> Path:
    cells: dict[str, Sequence[object]] = {
        "key": KEYS,
        "patient": [f"p{code}" for code in PATIENT],
        "label": LABELS.tolist(),
        "score": scores_of(seed, distance).tolist(),
    } | columns
    with file.open("w", newline="") as text:
        writer = csv.writer(text)
        writer.writerow([name for name, values in cells.items() if values])
        writer.writerows(zip(*(values for values in cells.values() if values), strict=True))
    return file


def refused(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    assert sternum(["compare", *map(str, words)]) == 2
    written = capsys.readouterr()
    assert written.out == ""
    assert written.err.count("\n") == 1
    assert not Path("compare").exists()
    return written.err


def test_two_recipes_with_three_seeds_are_compared_as_recipes(
    made: MakeRun, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed in range(3):
        made(f"a{seed}", seed, 3.2)
        made(f"b{seed}", seed + 10, 1.2, recipe={"loss.temperature": 0.1})
    assert sternum(["compare", "crop=a0,a1,a2", "base=b0,b1,b2", "--bootstrap_resamples=200"]) == 0
    printed = capsys.readouterr().out
    assert Path("compare/compare.md").read_text() == printed
    assert "| cell | crop" in printed
    content = json.loads(Path("compare/compare.json").read_text())
    ours, theirs = [auc_of(seed, 3.2) for seed in range(3)], [auc_of(seed, 1.2) for seed in range(10, 13)]
    for score, aucs in zip(content["scores"], (ours, theirs), strict=True):
        assert score["aucs"] == pytest.approx(aucs, abs=1e-12)
        assert score["sd"] == pytest.approx(np.std(aucs, ddof=1))
    [difference] = content["differences"]
    assert difference["difference"]["value"] == pytest.approx(np.mean(ours) - np.mean(theirs))
    assert (difference["about"], difference["verdict"]) == ("this recipe", "better")
    assert difference["p_holm"] == difference["difference"]["p"] < 0.05
    assert (content["images"], content["patients"]) == ({"cell": IMAGES}, {"cell": PATIENTS})
    with Path("compare/compare.csv").open(newline="") as file:
        [row] = csv.DictReader(file)
    assert (row["recipe"], row["other"], row["recipe runs"], row["about"]) == ("crop", "base", "3", "this recipe")
    assert float(row["recipe AUC"]) == content["scores"][0]["auc"]["value"]


def test_runs_with_one_seed_are_compared_pairwise_as_weights_with_holm_over_all_pairs(
    made: MakeRun, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [made("a", 1, 2.6), made("b", 2, 1.6), made("lr=0.1", 3, 1.6)]
    assert sternum(["compare", *map(str, runs), "--out=there"]) == 0
    printed = capsys.readouterr().out
    assert "Holm's adjustment over the 3 differences" in printed
    content = json.loads(Path("there/compare.json").read_text())
    assert [(item["recipe"], item["other"]) for item in content["differences"]] == [
        ("a", "b"), ("a", "lr=0.1"), ("b", "lr=0.1"),
    ]  # fmt: skip
    assert {item["about"] for item in content["differences"]} == {"these weights"}
    assert [item["verdict"] for item in content["differences"]] == ["better", "better", "not shown to differ"]
    assert all(item["p_holm"] >= item["difference"]["p"] for item in content["differences"])
    assert content["scores"][0]["features"] == ["epoch 24"]


@pytest.mark.parametrize("shuffled", [False, True])
def test_the_scores_of_another_program_are_compared_by_key_or_path(
    made: MakeRun, shuffled: bool, tmp_path: Path
) -> None:
    run = made("a", 1, 2.0)
    order = np.random.default_rng(0).permutation(IMAGES) if shuffled else np.arange(IMAGES)
    paths = [f"/data/chest_xray/{key.replace('_', '/', 2)}.jpeg" for key in KEYS]
    export = write_export(
        tmp_path / "scores.csv",
        seed=2,
        key=[] if shuffled else KEYS,
        path=[paths[row] for row in order],
        patient=[f"p{PATIENT[row]}" for row in order],
        label=[int(LABELS[row]) for row in order],
        score=[20 * float(scores_of(2, 1.0)[row]) for row in order],  # need not be probabilities
    )
    assert sternum(["compare", f"theirs={export}", str(run), "--bootstrap_resamples=0"]) == 0
    content = json.loads(Path("compare/compare.json").read_text())
    assert content["differences"][0]["difference"]["value"] == pytest.approx(auc_of(2, 1.0) - auc_of(1, 2.0))
    assert content["differences"][0]["verdict"] == ""


def test_two_files_of_other_programs_are_compared_without_a_run(made: MakeRun, tmp_path: Path) -> None:
    one, other = write_export(tmp_path / "1.csv", 1), write_export(tmp_path / "2.csv", 2)
    assert sternum(["compare", str(one), str(other), "--bootstrap_resamples=100"]) == 0
    assert json.loads(Path("compare/compare.json").read_text())["images"] == {"": IMAGES}


COLUMNS: dict[str, tuple[dict[str, Any], str]] = {
    "no label column": ({"label": []}, "lacks the column(s) 'label'"),
    "no names": ({"key": []}, "has neither a column key nor a column path"),
    "a key twice": ({"key": [*KEYS[:-1], KEYS[0]]}, f"names {KEYS[0]} again, after x.csv line 2"),
    "no number": ({"score": ["nan", *[0.5] * (IMAGES - 1)]}, "x.csv line 2 has no score; write a finite number"),
    "infinity": ({"score": [0.5, "inf", *[0.5] * (IMAGES - 2)]}, "x.csv line 3 has score=inf; write a finite"),
    "a label": ({"label": ["sick", *LABELS[1:]]}, "x.csv line 2 has label=sick; write 1 for positive"),
    "a blank patient": ({"patient": ["", *PATIENT[1:]]}, "x.csv line 2 has no patient"),
    "a fold": ({"fold": ["0"] * IMAGES}, "has fold=0; number the test parts from 1"),
    "other keys": ({"key": ["z", *KEYS[1:]]}, f"1 of 240 are only in a ({KEYS[0]}); 1 of 240 are only in x"),
    "other folds": ({"fold": [1, 2] * 120}, "the test parts of the images of a and"),
    "other labels": (
        {"label": [1, *LABELS[1:]]},
        f"the labels of a and x.csv differ for 1 of 240 test images ({KEYS[0]})",
    ),
    "other patients": (
        {"patient": [7, *range(1, IMAGES)]},
        "the patients of a and x.csv differ for 240 of 240 test images",
    ),
}


@pytest.mark.parametrize("case", COLUMNS)
def test_a_file_that_cannot_be_compared_is_refused_with_the_rows(
    made: MakeRun, capsys: pytest.CaptureFixture[str], case: str
) -> None:
    columns, words = COLUMNS[case]
    write_export(Path("x.csv"), 2, **columns)
    assert words in refused(capsys, made("a", 1), "x.csv")


def test_runs_that_were_tested_otherwise_are_refused_with_the_count(
    made: MakeRun, capsys: pytest.CaptureFixture[str]
) -> None:
    one = made("a", 1)
    labels = made("labels", 2, labels=np.where(np.arange(IMAGES) < 3, 1 - LABELS, LABELS))
    assert "the labels of a and labels differ for 3 of 240 test images" in refused(capsys, one, labels)
    parts = made("parts", 2, folds=np.repeat([1, 2], IMAGES // 2))
    assert "the test parts of the images of a and parts differ: 120 of 240 are only in a" in refused(capsys, one, parts)
    both = made("both", 2, sets=("cell", "hospital"))
    assert "a was probed on cell, but both on cell, hospital; name one" in refused(capsys, one, both)
    assert sternum(["compare", str(one), str(both), "--dataset=cell", "--bootstrap_resamples=0"]) == 0


def test_runs_of_one_recipe_differ_in_their_seed_alone(made: MakeRun, capsys: pytest.CaptureFixture[str]) -> None:
    one, same, warmer = made("a", 1), made("same", 1), made("warmer", 2, recipe={"loss.temperature": 0.7})
    assert "a and same have the same seed=1" in refused(capsys, f"r={one},{same}", warmer)
    assert "they differ in loss.temperature=0.5 and 0.7; put only runs together" in refused(
        capsys, f"r={one},{warmer}", same
    )
    copied = made("copied", 3, scores=scores_of(1, 2.0))
    assert "a and copied of r hold the same scores, so they are not two seeds" in refused(
        capsys, f"r={one},{copied}", warmer
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["a"], "recipes=[a] must be at least two"),
        (["a", "a"], "recipes has a twice"),
        (["a", "absent"], "absent is neither a CSV file with predictions nor a probed run"),
        (["a", "b/predictions.csv"], "name the run folder instead: b"),
        (["a", "=a"], "recipes==a has no name before the ="),
        (["a", "b=s3://bucket/run"], "must be a path on this machine, not a URL"),
        (["a", "b", "--preset=gazda2021"], "checkpoints of a were probed by rigorous"),
        (["a", "b", "--dataset=other"], "dataset=other: a was probed on cell by the preset rigorous"),
        (["a", "b", "--bootstrap_resamples=5"], "bootstrap_resamples=5 must be 0 or at least 100"),
    ],
)
def test_words_that_cannot_be_compared_are_refused(
    made: MakeRun, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    made("a", 1)
    made("b", 2)
    assert message in refused(capsys, *words)


def test_a_run_without_predictions_or_of_another_protocol_is_refused(
    made: MakeRun, capsys: pytest.CaptureFixture[str]
) -> None:
    one, other = made("a", 1), made("b", 2)
    content = json.loads((other / "results.json").read_text())
    content["protocol"]["rigorous"]["max_iterations"] = 7
    (other / "results.json").write_text(json.dumps(content))
    assert "different versions of the preset rigorous (max_iterations)" in refused(capsys, one, other)
    del content["predictions"]
    (other / "results.json").write_text(json.dumps(content))
    assert "is of a version without predictions for single images; probe the run again" in refused(capsys, one, other)
