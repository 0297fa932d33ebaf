"""The files of `benchmarks.learning`: one small JSON and the scores of each image for every run.

A run's JSON appears when it is trained and scored, and is never changed; so a table grows by new runs alone. The
divisions into folds, which all runs share, are stored once. So any two runs can be compared without their weights.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np

from benchmarks.learning_probe import Task
from benchmarks.learning_training import Trained, Training
from infra.arrays import UInt8
from infra.errors import UserError, require
from infra.storage.files import atomic_file, write_atomic

TASKS: Final = "tasks.npz"
_ARRAYS: Final = ("classes", "patients", "folds")


class Probing(NamedTuple):
    """A training that is judged on images of a size. probe_px: their width and height."""

    training: Training
    probe_px: int

    @property
    def name(self) -> str:
        """Name of its files."""
        return f"{self.training.name}-probe{self.probe_px}px"


class Run(NamedTuple):
    """A finished run: its facts, and its kept scores by the name of the task."""

    facts: dict[str, Any]
    scores: dict[str, UInt8]

    @property
    def training(self) -> str:
        """Its recipe, size and length."""
        return Training(*(self.facts[name] for name in ("recipe", "seed", "size_px", "epochs"))).without_seed


def run_path(results: Path, probing: Probing) -> Path:
    """Return the JSON file of a run, which exists once the run is finished."""
    return results / f"{probing.name}.json"


def write_run(
    results: Path, probing: Probing, trained: Trained, scores: dict[str, UInt8], judged: dict[str, Any]
) -> None:
    """Write a run's scores and then its JSON.

    Args:
        results: the folder of all runs
        probing: what was trained and judged
        trained: how it went
        scores: the kept scores of each task
        judged: other numbers of each task
    """
    path = run_path(results, probing)
    with atomic_file(path.with_suffix(".npz")) as file:
        np.savez_compressed(file, **dict[str, Any](scores))
    facts = asdict(probing.training) | {"probe_px": probing.probe_px} | asdict(trained)
    facts |= {"tasks": judged, "tasks_sha256": _sha256(results / TASKS)}
    write_atomic(path, json.dumps(facts, indent=1) + "\n")


def write_tasks(results: Path, tasks: Sequence[Task]) -> None:
    """Write the tasks, or check that they are those of the runs that are there.

    Raises:
        UserError: if they differ
    """
    results.mkdir(parents=True, exist_ok=True)
    kept = dict[str, Any]()
    for task in tasks:
        kept |= {
            f"{task.name}/classes": task.classes.astype(np.uint8),
            f"{task.name}/patients": task.patients.astype(np.uint16),
            f"{task.name}/folds": task.folds.astype(np.uint8),
        }
    path = results / TASKS
    if not path.exists():
        with atomic_file(path) as file:
            np.savez_compressed(file, **kept)
    with np.load(path) as stored:
        is_same = set(stored) == set(kept) and all(np.array_equal(stored[name], kept[name]) for name in kept)
    require(is_same, f"{path} holds other images or folds than this ground; name another folder for the results")


def read_tasks(results: Path) -> dict[str, Task]:
    """Return the tasks of a folder by name, as far as comparing needs them."""
    path = results / TASKS
    require(path.exists(), f"results={results} has no {TASKS}; train and score a recipe first")
    with np.load(path) as stored:
        names = list(dict.fromkeys(name.split("/")[0] for name in stored))
        arrays = {name: stored[name].astype(np.int64) for name in stored}
    return {
        name: Task(name, np.empty(0, np.int64), *(arrays[f"{name}/{array}"] for array in _ARRAYS)) for name in names
    }


def read_runs(results: Path) -> list[Run]:
    """Return all runs of a folder.

    Raises:
        UserError: if a run was scored on other images or folds
    """
    identity, runs = _sha256(results / TASKS), []
    for path in sorted(results.glob("*-seed*-probe*px.json")):
        facts = json.loads(path.read_text(encoding="utf-8"))
        if facts["tasks_sha256"] != identity:
            raise UserError(f"{path} was scored on other images or folds than {TASKS} says; score it again")
        with np.load(path.with_suffix(".npz")) as stored:
            runs.append(Run(facts, {name: stored[name] for name in stored}))
    return runs


def _sha256(path: Path) -> str:
    """Return a hash of the arrays in a .npz file, whose own bytes hold times."""
    digest = hashlib.sha256()
    with np.load(path) as stored:
        for name in sorted(stored):
            digest.update(name.encode() + stored[name].tobytes())
    return digest.hexdigest()[:16]
