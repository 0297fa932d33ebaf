"""The test predictions of one run, from a probed run folder or from a CSV file of another program."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from evaluation.results.datasets import TaskKey
from evaluation.results.predictions import PLAIN, FeaturesKey, ImagePredictions, read_predictions
from evaluation.results.results import RESULTS_NAME, Results, read_results
from evaluation.results.rows import last_checkpoint
from infra.arrays import Float64, Int64
from infra.errors import UserError, require
from sharding.datasets.table import read_table

NO_TASK: Final = TaskKey("", "")  # of a file of another program, which may be about any task
_FOLD: Final = "fold"


@dataclass(frozen=True)
class TestedImages:
    """The m test images of one task with one score each.

    Attributes:
        features: name of the probed features; empty for a file of another program
        keys: (m,) keys of the images; with the fold they are unique
        folds: (m,) number of the test part, from 1
        patients: (m,) codes of the patients, or of groups of patients with a common image
        labels: (m,) 1 positive, 0 negative
        scores: (m,) finite; the higher, the more likely positive
        has_paths: whether the keys are paths, as a file of another program may have
    """

    features: str
    keys: list[str]
    folds: Int64
    patients: Int64
    labels: Int64
    scores: Float64
    has_paths: bool = False


@dataclass(frozen=True)
class TestedRun:
    """One run, or one file of another program.

    Attributes:
        path: the run folder or the file
        tasks: its last checkpoint's images by task; a file of another program has the task NO_TASK only
        results: the results of a run; None for a file of another program
    """

    path: Path
    tasks: Mapping[TaskKey, TestedImages]
    results: Results | None


def read_run(path: Path, preset: str) -> TestedRun:
    """Read the predictions of a run's last checkpoint by one preset, or the predictions in a CSV file.

    Raises:
        UserError: if the run has no predictions by this preset, or the file cannot be used; nothing is left out.
    """
    if path.is_file():
        require(
            not (path.name.startswith(PLAIN) and (path.parent / RESULTS_NAME).exists()),
            f"{path} holds all features of a probe; name the run folder instead: {path.parent}",
        )
        return TestedRun(path, {NO_TASK: _read_export(path)}, None)
    results = read_results(path) if path.is_dir() else None
    if results is None:
        raise UserError(
            f"{path} is neither a CSV file with predictions nor a probed run; probe a run first: sternum probe {path}"
        )
    require(
        results.predictions is not None,
        f"{path / 'results.json'} is of a version without predictions for single images; probe the run again",
    )
    assert results.predictions is not None
    wanted = {}
    for dataset in results.datasets:
        last = last_checkpoint(results.rows_of(dataset))
        if dataset.preset == preset and last is not None:
            wanted[FeaturesKey(dataset.key, dataset.question, last.features, 1)] = dataset.key
    if not wanted:
        presets = list(dict.fromkeys(row.preset for row in results.rows if row.kind == "checkpoint"))
        hint = f"name --preset={presets[0]}, or " if presets else ""
        raise UserError(
            f"preset={preset}: checkpoints of {path} were probed by {', '.join(presets) or 'no preset'}; {hint}run "
            f"sternum probe with --presets=[{preset}]"
        )
    found = read_predictions(path, results.predictions, set(wanted))
    for key in wanted:
        require(key in found, f"{path} has no predictions of {key.features} on {key.task.dataset}; probe the run again")
    return TestedRun(path, {task: _images(key.features, found[key]) for key, task in wanted.items()}, results)


def _images(features: str, item: ImagePredictions) -> TestedImages:
    patients = np.unique(item.groups, return_inverse=True)[1]
    return TestedImages(features, list(item.keys), item.folds, patients, item.labels, item.scores)


def _read_export(path: Path) -> TestedImages:
    """Read a table with the columns key or path, patient, label and score, and perhaps fold.

    Raises:
        UserError: if a column is missing, or a cell is not what its column needs.
    """
    rows = list(read_table(path, ["patient", "label", "score"], ["key", "path", _FOLD]))
    require(bool(rows), f"{path} has no rows; each row is one image with key or path, patient, label and score")
    names = [name for name in ("key", "path") if any(cells[name] for _, cells in rows)]
    require(bool(names), f"{path} has neither a column key nor a column path; add one that names each image")
    name = names[0]
    for where, cells in rows:
        for column in (name, "patient"):
            require(bool(cells[column]), f"{path}: {where} has no {column}; every image needs one")
    keys = [cells[name] for _, cells in rows]
    folds = [_fold(where, cells[_FOLD], path) for where, cells in rows]
    seen: dict[tuple[str, int], str] = {}
    for (where, _), image in zip(rows, zip(keys, folds, strict=True), strict=True):
        if image in seen:
            raise UserError(f"{path}: {where} names {image[0]} again, after {seen[image]}; keep one row for each image")
        seen[image] = where
    return TestedImages(
        features="",
        keys=keys,
        folds=np.array(folds),
        patients=np.unique([cells["patient"] for _, cells in rows], return_inverse=True)[1],
        labels=np.array([_label(where, cells["label"], path) for where, cells in rows]),
        scores=np.array([_score(where, cells["score"], path) for where, cells in rows]),
        has_paths=name == "path",
    )


def _fold(where: str, text: str, path: Path) -> int:
    if not text:
        return 1
    require(text.isdecimal() and int(text) >= 1, f"{path}: {where} has fold={text}; number the test parts from 1")
    return int(text)


def _label(where: str, text: str, path: Path) -> int:
    require(
        text in ("0", "1"),
        f"{path}: {where} has {f'label={text}' if text else 'no label'}; write 1 for positive, 0 for negative",
    )
    return int(text)


def _score(where: str, text: str, path: Path) -> float:
    try:
        score = float(text)
    except ValueError:
        score = float("nan")
    require(
        bool(np.isfinite(score)),
        f"{path}: {where} has {f'score={text}' if text else 'no score'}; write a finite number, higher where positive",
    )
    return score
