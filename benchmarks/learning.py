"""What a recipe is worth: Sternum's options and its peers on the same real radiographs, judged by one plain probe.

prepare   packs the two sets and writes the arrays that the peers and the probe read
train     trains a recipe with a seed
score     judges it inside Cell's development part and on ChestX-ray14, and writes its files
queue     trains and scores RECIPE:SEED, or RECIPE:SEED@EPOCHS, one after another; a stop loses only the present one
table     writes the table of everything that was tried
final     opens Cell's test part, once, for the named runs

learning_recipes.py lists the recipes. Those of lightly need it (pip install lightly). learning_speed measures speed.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import StandardScaler

from benchmarks.learning_features import Weights, features_of, load_weights, raw_pixels, untrained_weights
from benchmarks.learning_ground import SIDE_PX, Films, open_films, prepare, shard_folders
from benchmarks.learning_probe import (
    Task,
    cell_tasks,
    chestxray14_task,
    fit_and_decide,
    levels,
    nearest_neighbors,
    score_task,
)
from benchmarks.learning_recipes import NAMES
from benchmarks.learning_results import Probing, run_path, write_run, write_tasks
from benchmarks.learning_table import write_table
from benchmarks.learning_training import Training, epochs_in, read_trained, train, weights_path
from infra.arrays import Float32, UInt8
from infra.errors import require
from infra.log import say
from launch.cli import run_command
from sharding.reading.shard_set import ShardSet

FINAL: Final = "final"  # folder of the results on Cell's test part


def score(ground: Path, results: Path, probing: Probing) -> None:
    """Judge a training by every task, and write its files.

    Args:
        ground: folder that `prepare` made
        results: folder of all runs
        probing: what was trained, and the size of the probe's images

    Raises:
        UserError: if it was not trained
    """
    trained = read_trained(ground, probing.training)
    parts = tasks_of(ground)
    write_tasks(results, [task for tasks in parts.values() for task in tasks])
    scores, judged = dict[str, UInt8](), dict[str, Any]()
    for part, tasks in parts.items():
        features = _features(ground, probing, open_films(ground, part))
        for task in tasks:
            scores[task.name], judged[task.name] = score_task(task, features)
    write_run(results, probing, trained, scores, judged)


def tasks_of(ground: Path) -> dict[str, list[Task]]:
    """Return the tasks of each part of the ground; none looks at Cell's test part."""
    return {
        "cell": cell_tasks(open_films(ground, "cell")),
        "chestxray14": [chestxray14_task(open_films(ground, "chestxray14"))],
    }


def _features(ground: Path, probing: Probing, films: Films) -> Float32:
    if probing.training.recipe == "raw_pixels":
        return raw_pixels(films.pixels)
    return features_of(_weights(ground, probing.training), films.pixels, probing.probe_px)


def _weights(ground: Path, training: Training) -> Weights:
    if training.is_trained:
        return load_weights(weights_path(ground, training))
    shards = ShardSet([str(folder) for folder in shard_folders(ground, SIDE_PX)])
    return untrained_weights(training.seed, shards.pixel_mean, shards.pixel_std)


def run_queue(ground: Path, results: Path, probings: Sequence[Probing], threads: int) -> None:
    """Train and score what has no JSON yet; weights that are there already are only scored."""
    for probing in probings:
        if not run_path(results, probing).exists():
            say(probing.name)
            if probing.training.is_trained and not weights_path(ground, probing.training).exists():
                train(ground, probing.training, threads)
            score(ground, results, probing)
            say(f"{probing.name} is finished: {run_path(results, probing)}")


def judge_finally(ground: Path, results: Path, probings: Sequence[Probing]) -> None:
    """Fit to Cell's development part and test on its test part; `results/final` holds the files, as for other tasks.

    Args:
        ground: folder that `prepare` made
        results: folder of all runs
        probings: what to judge, on images of which size

    Raises:
        UserError: if the test part was opened before
    """
    folder = results / FINAL
    require(not folder.exists(), f"{folder} exists: Cell's test part was opened before, and a second look would choose")
    films, test = open_films(ground, "cell"), open_films(ground, "cell-test")
    count = len(test.classes)
    task = Task("cell test", np.arange(count), test.classes, test.patients, np.zeros((1, count), np.int64))
    judged = list[tuple[UInt8, float, float]]()
    for probing in probings:
        features = _features(ground, probing, films)
        scaler = StandardScaler().fit(features)
        fitted, tested = scaler.transform(features), scaler.transform(_features(ground, probing, test))
        c, decisions = fit_and_decide(fitted, films.classes, films.patients, tested)
        neighbors = levels(nearest_neighbors(fitted, films.classes, tested))
        judged.append((levels(decisions)[None], c, float(roc_auc_score(test.classes, neighbors))))
        say(f"{probing.name} is judged")
    write_tasks(folder, [task])
    for probing, (scores, c, knn_auc) in zip(probings, judged, strict=True):
        facts = {"cs": [c], "knn_auc": knn_auc}
        write_run(folder, probing, read_trained(ground, probing.training), {task.name: scores}, {task.name: facts})


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command, and return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    ground = argparse.ArgumentParser(add_help=False)
    ground.add_argument("--ground", type=Path, required=True, help="folder for images and weights, outside the project")
    results = argparse.ArgumentParser(add_help=False)
    results.add_argument("--results", type=Path, default=Path("docs/results/learning"), help="folder of all runs")
    length = argparse.ArgumentParser(add_help=False)
    length.add_argument("--size_px", type=int, default=64, help="width and height of a view")
    length.add_argument("--epochs", type=int, default=10, help="passes over all images")
    length.add_argument("--minutes", type=float, help="as many epochs as fit by the rate of a short trial")
    length.add_argument("--threads", type=int, default=2, help="of the training process")
    probe = argparse.ArgumentParser(add_help=False)
    probe.add_argument(
        "--probe_px",
        type=int,
        action="append",
        help="width and height of the probe's images; may be given several times; by default those of a view",
    )
    baseline = argparse.ArgumentParser(add_help=False)
    baseline.add_argument(
        "--baseline",
        required=True,
        action="append",
        help="training that the others are compared with, such as former-64px-10epochs; may be given several times",
    )

    packing = commands.add_parser("prepare", parents=[ground], help="pack the sets and write the arrays")
    packing.add_argument("--cell", type=Path, required=True, help="the dataset of Kermany et al. 2018 as published")
    packing.add_argument("--chestxray14", type=Path, required=True, help="ChestX-ray14 as published, or a part of it")
    for name, text in (("train", "train a recipe"), ("score", "judge a trained recipe")):
        one = commands.add_parser(name, parents=[ground, length, *([results, probe] * (name == "score"))], help=text)
        one.add_argument("recipe", choices=NAMES)
        one.add_argument("--seed", type=int, default=0)
    for name, text in (("queue", "train and score what is missing"), ("final", "open Cell's test part")):
        parents = [ground, length, results, probe, *([baseline] * (name == "final"))]
        several = commands.add_parser(name, parents=parents, help=text)
        several.add_argument("runs", nargs="+", help="RECIPE:SEED or RECIPE:SEED@EPOCHS, such as former:0@19")
    commands.add_parser("table", parents=[results, baseline], help="write the table")
    _run(parser.parse_args(arguments))
    return 0


def _run(options: argparse.Namespace) -> None:
    command = options.command
    if command == "prepare":
        prepare(options.ground, options.cell, options.chestxray14)
    elif command == "table":
        print(write_table(options.results, options.baseline))
    else:
        named = options.runs if "runs" in options else [f"{options.recipe}:{options.seed}"]
        trainings = [_training(text, options) for text in named]
        if command == "train":
            train(options.ground, trainings[0], options.threads)
            return
        sizes_px = options.probe_px or [options.size_px]
        probings = [Probing(training, probe_px) for training in trainings for probe_px in sizes_px]
        if command == "score":
            for probing in probings:
                score(options.ground, options.results, probing)
        elif command == "queue":
            run_queue(options.ground, options.results, probings, options.threads)
        else:
            names = {training.without_seed for training in trainings}
            unknown = sorted({*options.baseline} - names)
            require(not unknown, f"baseline={', '.join(unknown)} must be one of {', '.join(sorted(names))}")
            judge_finally(options.ground, options.results, probings)
            print(write_table(options.results / FINAL, options.baseline))


def _training(text: str, options: argparse.Namespace) -> Training:
    named, at, epochs = text.partition("@")
    recipe, _, seed = named.partition(":")
    require(
        seed.isdecimal() and epochs.isdecimal() == bool(at),
        f"{text} must be RECIPE:SEED or RECIPE:SEED@EPOCHS, such as former:0 or former:0@19",
    )
    training = Training(recipe, int(seed), options.size_px, int(epochs) if at else options.epochs)
    if options.minutes is None or at or not training.is_trained:
        return training
    return replace(training, epochs=epochs_in(options.ground, training, options.minutes, options.threads))


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:]))
