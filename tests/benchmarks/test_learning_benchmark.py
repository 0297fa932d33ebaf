import csv
import json
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.learning import main
from benchmarks.learning_ground import Films
from benchmarks.learning_probe import cell_tasks, chestxray14_task, levels, one_standard_error
from benchmarks.learning_results import Run
from benchmarks.learning_table import rows
from infra.errors import UserError
from sharding.simulation.datasets import write_cell

RECIPE = "rate_0.0005_constant"  # no warm-up, so that a few steps are enough


def films(patients: int = 30) -> Films:
    """Three images of each patient, every third patient healthy, healthy ones more often AP."""
    patient = np.repeat(np.arange(patients), 3)
    classes = (patient % 3 > 0).astype(np.int64)
    views = (patient % 5 > 1 + (1 - classes)).astype(np.int64)
    return Films(np.zeros((len(patient), 1, 1), np.uint8), classes, patient, views)


def test_no_patient_is_in_the_training_and_the_tested_part_and_few_labels_are_few() -> None:
    for task in cell_tasks(films()):
        tested_times = np.zeros(len(task.images))
        for _, fitted, tested in task.training():
            assert not set(task.patients[fitted]) & set(task.patients[tested])
            assert set(task.classes[fitted]) == {0, 1}
            assert len(fitted) < 20 or task.labels_percent == 100
            tested_times[tested] += 1
        assert (tested_times == len(task.folds)).all()


def test_the_views_of_chestxray14_say_nothing_about_the_class() -> None:
    of = films()
    task = chestxray14_task(of)
    views = of.views[task.images]
    assert all((task.classes[views == view] == 1).mean() == 0.5 for view in (0, 1))


def test_the_smallest_c_within_one_standard_error_of_the_best_is_chosen() -> None:
    aucs = np.array([[0.5, 0.88, 0.90, 0.91], [0.5, 0.94, 0.95, 0.95], [0.5, 0.91, 0.92, 0.93]])
    assert one_standard_error(aucs) == 2
    assert one_standard_error(aucs + np.array([0, 0.02, 0.0, 0.0])) == 1


def test_kept_ranks_keep_the_order_and_ties() -> None:
    values = np.array([3.0, -1.0, 3.0, 0.5])
    kept = levels(values).astype(int)
    assert kept[0] == kept[2] > kept[3] > kept[1]


def test_a_table_compares_a_recipe_with_the_baseline_on_the_same_patients() -> None:
    [task] = [task for task in cell_tasks(films()) if task.labels_percent == 100]

    def run(recipe: str, seed: int, strength: float) -> Run:
        values = strength * task.classes + np.random.default_rng(seed).normal(size=len(task.classes))
        facts = {"recipe": recipe, "seed": seed, "size_px": 64, "epochs": 10, "probe_px": 64, "cpu_ms_per_image": 20.0}
        facts |= {"samples": 6000, "tasks": {task.name: {"knn_auc": 0.5}}}
        return Run(facts, {task.name: levels(values)[None]})

    runs = [run("former", seed, 0.5) for seed in (0, 1)] + [run("head_norm", seed, 3.0) for seed in (2, 3)]
    better, baseline = rows(runs, {task.name: task}, "former-64px-10epochs")
    assert (better.training, better.seeds, better.cpu_minutes) == ("head_norm-64px-10epochs", [2, 3], 2.0)
    assert baseline.training == "former-64px-10epochs"
    cell = better.cells[task.name]
    assert cell.difference is not None
    assert cell.difference.low is not None
    assert 0 < cell.difference.low < cell.difference.value
    assert cell.sd is not None
    assert baseline.cells[task.name].difference is None


def _write_chestxray14(root: Path, images: Sequence[Path]) -> None:
    """Write radiographs as ChestX-ray14: every second one with pneumonia, two of each patient."""
    (root / "images").mkdir(parents=True)
    with (root / "Data_Entry_2017.csv").open("w", newline="") as file:
        table = csv.writer(file)
        names = "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position"
        table.writerow(names.split(","))
        for number, path in enumerate(images):
            name, patient = f"{number:08d}_000.png", number // 2
            Image.open(path).save(root / "images" / name)
            finding = "Pneumonia" if patient % 2 else "No Finding"
            table.writerow([name, finding, 0, patient + 1, 50, "F", "PA" if patient % 4 > 1 else "AP"])


@pytest.mark.parametrize("run", ["former", "former:x", "former:0@", "former:0@x", "former:0@1@2"])
def test_runs_that_name_no_seed_or_no_epochs_are_refused(tmp_path: Path, run: str) -> None:
    with pytest.raises(UserError, match=f"{run} must be RECIPE:SEED or RECIPE:SEED@EPOCHS"):
        main(["queue", f"--ground={tmp_path}", f"--results={tmp_path / 'results'}", run])
    assert not list(tmp_path.iterdir())


def test_a_training_without_an_epoch_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="epochs=0 of lightly_simclr must be at least 1"):
        main(["queue", f"--ground={tmp_path}", f"--results={tmp_path / 'results'}", "lightly_simclr:0@0"])


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_whole_chain_trains_scores_and_tabulates_and_opens_the_test_part_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ground, results = tmp_path / "ground", tmp_path / "results"
    write_cell(tmp_path / "cell", {"train": 80, "val": 8, "test": 24}, seed=0, size_px=64)
    write_cell(tmp_path / "more", {"train": 80}, seed=1, size_px=64)
    _write_chestxray14(tmp_path / "nih", sorted((tmp_path / "more").rglob("*.jpeg")))
    main(["prepare", f"--ground={ground}", f"--cell={tmp_path / 'cell'}", f"--chestxray14={tmp_path / 'nih'}"])
    words = (f"--ground={ground}", f"--results={results}", "--size_px=32", "--epochs=9")
    probed = (*words, "--probe_px=32", "--probe_px=48")
    recipes = [RECIPE, "raw_pixels", *(["lightly_simclr"] if find_spec("lightly") else [])]
    queue = [f"{recipe}:0@2" for recipe in recipes]
    main(["queue", *probed, *queue])
    written = {path: path.stat().st_mtime_ns for path in results.iterdir()}
    assert len(written) == 1 + 2 * 2 * len(recipes)
    main(["queue", *probed, *queue])
    assert {path: path.stat().st_mtime_ns for path in results.iterdir()} == written

    facts = json.loads((results / f"{RECIPE}-32px-2epochs-seed0-probe48px.json").read_text())
    assert facts["samples"] == 6 * 64  # two epochs of 168 images end within the sixth step
    assert facts["loss_by_epoch"][0] > 0
    assert facts["cpu_ms_per_image"] > 0
    baseline = f"--baseline={RECIPE}-32px-2epochs"
    main(["table", f"--results={results}", baseline, "--baseline=raw_pixels"])
    text = capsys.readouterr().out
    assert all(recipe in text for recipe in recipes)
    table = json.loads((results / "table.json").read_text())
    found = table["differences_to"]
    assert {name: len(rows) for name, rows in found.items()} == dict.fromkeys(
        [f"{RECIPE}-32px-2epochs", "raw_pixels"], 2 * len(recipes)
    )
    gains = {item["weights"]: item["differences"]["cell 100 %"]["value"] for item in table["larger_images"]}
    assert gains["raw_pixels-seed0"] == 0 != gains[f"{RECIPE}-32px-2epochs-seed0"]
    with pytest.raises(UserError, match="baseline=else is none of the trainings; use one of"):
        main(["table", f"--results={results}", "--baseline=else"])

    main(["final", *probed, *queue, baseline])
    assert "cell test" in capsys.readouterr().out
    with pytest.raises(UserError, match="opened before"):
        main(["final", *probed, *queue, baseline])
