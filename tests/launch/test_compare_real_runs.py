import csv
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from scipy.stats import t

from launch.cli import main as sternum
from sharding.simulation.datasets import write_cell, write_chexpert
from tests.support.recipes_by_hand import by_hand

SMALL = "--model.backbone=resnet18 --views.size_px=32 --data.global_batch=16 --data.lanes=8 --train.max_steps=6"
SHORT = "--checkpoints=last --controls=false --few_labels=false --presets=[rigorous] --folds=3 --search=serial"


class Scored(NamedTuple):
    classes: np.ndarray
    probabilities: np.ndarray
    patients: np.ndarray


def read_scored(run: Path) -> Scored:
    with (run / "predictions.csv").open(newline="") as file:
        lines = sorted(csv.DictReader(file), key=lambda line: line["key"])
    columns = ([line[name] for line in lines] for name in ("label", "score", "group"))
    labels, scores, groups = columns
    return Scored(np.array(labels, int), np.array(scores, float), np.array(groups))


@pytest.mark.slow
@pytest.mark.timeout(900)  # six pretrainings and six probes of a minute's work together
def test_two_pretrained_recipes_with_three_seeds_are_compared_as_by_hand(tmp_path: Path) -> None:
    write_chexpert(tmp_path / "chexpert", patients=60, seed=0, size_px=64)
    write_cell(tmp_path / "cell", {"train": 120, "val": 20, "test": 100}, seed=0, size_px=64)
    for name in ("chexpert", "cell"):
        words = [f"--root={tmp_path / name}", f"--out={tmp_path / 'shards' / name}", "--shorter_side_px=48"]
        assert sternum(["shard", name, *words, "--workers=1"]) == 0
    runs: dict[str, list[Path]] = {"warm": [], "cold": []}
    for (recipe, folders), temperature in zip(runs.items(), (0.5, 0.1), strict=True):
        for seed in range(3):
            run = tmp_path / f"{recipe}-{seed}"
            words = [f"--data.shards=[{tmp_path / 'shards/chexpert'}]", f"--loss.temperature={temperature}"]
            assert sternum(["pretrain", str(run), *SMALL.split(), *words, f"--seed={seed}"]) == 0
            assert sternum(["probe", str(run), f"--data.shards=[{tmp_path / 'shards/cell'}]", *SHORT.split()]) == 0
            folders.append(run)
    words = [f"{recipe}={','.join(map(str, folders))}" for recipe, folders in runs.items()]
    assert sternum(["compare", *words, f"--out={tmp_path}", "--bootstrap_resamples=2000"]) == 0
    [found] = json.loads((tmp_path / "compare.json").read_text())["differences"]
    first, second = ([read_scored(run) for run in folders] for folders in runs.values())
    value, error, freedom = by_hand(first, second, resamples=1000)
    estimate = found["difference"]
    assert estimate["value"] == pytest.approx(value, abs=1e-9)
    assert estimate["high"] - estimate["low"] == pytest.approx(2 * t.ppf(0.975, freedom) * error, rel=0.15)
    assert found["about"] == "this recipe"
    quoted = [
        json.loads((run / "results.json").read_text())["rows"][-1]["scores"]["auc"]["value"] for run in runs["warm"]
    ]
    scores = json.loads((tmp_path / "compare.json").read_text())["scores"]
    assert scores[0]["aucs"] == pytest.approx(quoted, abs=1e-9)
    mixed = f"mixed={runs['warm'][0]},{runs['cold'][1]}"
    assert sternum(["compare", mixed, words[1], f"--out={tmp_path}"]) == 2
