"""The search for C compared with scikit-learn's: checkpoints of a run on two datasets, with synthetic features.

Each search follows the paper's protocol. For each feature set it fits 5 folds x 6 values of C, fits the best C to the
whole development part, and predicts a test part a quarter as large, by scikit-learn's logistic regression (at most 100
iterations, unscaled). The searches take turns; figures are median wall times. All must choose the same C and AUC.

sternum, Ray Tune   `search_with_ray`: one trial per fold and a last fit, one core each. Ray starts before every search
                    and gets 5 s to load what trials need; the time of its start is given separately
sternum, serial     `search_serially`: one process, one core
GridSearchCV        scikit-learn's, one feature set at a time: folds and grid in one process per core with one thread
                    each, started and warmed up before; the last fit in the main process, on all cores
"""

import argparse
import json
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from importlib import import_module
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from joblib import parallel_config
from scipy.special import ndtri
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, PredefinedSplit, StratifiedGroupKFold

from benchmarks.common import machine, table
from evaluation.fitting.fit_log import FitLog
from evaluation.fitting.ray_search import search_with_ray
from evaluation.fitting.search import SearchProblem, search_serially
from evaluation.results.presets import PRESETS
from infra.arrays import Float32, Float64
from infra.parallel.ray_session import ray_session
from infra.rng import uniform
from infra.storage.files import write_atomic

CHECKPOINTS: Final = 4
FOLDS: Final = 5
PAPER: Final = PRESETS["gazda2021"]
RAY: Final = "sternum, Ray Tune"
PEER: Final = "GridSearchCV"
_LATENTS: Final = 64
_LOAD_S: Final = 5.0
_SAME_AUC: Final = 1e-6  # after 100 iterations without convergence, on cores that may sum in another order


class Choice(NamedTuple):
    """The result on which all searches must agree."""

    c: float
    auc: float


Case = tuple[dict[str, Float32], dict[str, SearchProblem]]


def make_case(images: list[int], size: int) -> Case:
    """Return a feature matrix (N, size) for each dataset and checkpoint, and its search problem."""
    features, problems = {}, {}
    for dataset, development in enumerate(images):
        count = development + development // 4
        classes = (normal("class", dataset, count, 1)[:, 0] > 0).astype(np.int64)
        fold = np.full(count, -1)
        splits = StratifiedGroupKFold(FOLDS).split(classes[:development], classes[:development], patients(development))
        for number, (_, inside) in enumerate(splits):
            fold[inside] = number
        for checkpoint in range(CHECKPOINTS):
            name = f"dataset {dataset}, checkpoint {checkpoint}"
            features[name] = make_features(classes, size, dataset * CHECKPOINTS + checkpoint, 0.2 + 0.1 * checkpoint)
            problems[name] = SearchProblem(
                name, np.arange(count), classes, fold, False, PAPER.c_grid, PAPER.max_iterations
            )
    return features, problems


def patients(count: int) -> Any:
    """Return the patient (count,) of each image; each has two images."""
    return np.arange(count) // 2


def normal(stream: str, epoch: int, count: int, width: int) -> Float64:
    """Draw standard normal numbers (count, width)."""
    values: Float64 = ndtri(uniform(0, f"benchmark-{stream}", np.arange(count, dtype=np.uint64), epoch, width))
    return values


def make_features(classes: Any, size: int, number: int, distance: float) -> Float32:
    """Return features like a pooled ReLU layer's: nonnegative, correlated, with the class in a few directions."""
    latents = normal("latents", number, len(classes), _LATENTS)
    latents[:, :8] += distance * classes[:, None]
    mixed = latents @ normal("mixing", number, _LATENTS, size) / np.sqrt(_LATENTS)
    noise = 0.5 * normal("noise", number, len(classes), size)
    return np.maximum(mixed + noise, 0).astype(np.float32)


def by_ray(case: Case) -> dict[str, Choice]:
    """Search with Ray Tune; Ray must be running."""
    with tempfile.TemporaryDirectory(prefix="sternum-probe-") as storage:
        return choices(search_with_ray(*case, FitLog(Path(storage), {name: name for name in case[1]})))


def serially(case: Case) -> dict[str, Choice]:
    """Search in this process."""
    return choices(search_serially(*case))


def choices(search: Mapping[str, Any]) -> dict[str, Choice]:
    """Return the values to compare of our searches."""
    return {name: Choice(chosen.c, chosen.validation_auc) for name, chosen in search.items()}


def by_grid_search(case: Case, cores: int) -> dict[str, Choice]:
    """Search with scikit-learn, in processes that the next call uses again."""
    features, problems = case
    result = {}
    with parallel_config("loky", inner_max_num_threads=1), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        for name, problem in problems.items():
            values, inside = features[problem.features].astype(np.float64), problem.fold >= 0
            search = GridSearchCV(
                LogisticRegression(class_weight="balanced", max_iter=problem.max_iterations),
                {"C": list(problem.c_grid)},
                scoring="roc_auc",
                n_jobs=cores,
                cv=PredefinedSplit(problem.fold[inside]),
            ).fit(values[inside], problem.classes[inside])
            search.predict_proba(values[~inside])
            result[name] = Choice(search.best_params_["C"], search.best_score_)
    return result


def measure(case: Case, cores: int, repeats: int) -> tuple[dict[str, list[float]], list[float], dict[str, Choice]]:
    """Return the seconds of every search and repeat, those of Ray's starts, and the common result."""
    ways: dict[str, Callable[[], dict[str, Choice]]] = {
        RAY: lambda: by_ray(case),
        "sternum, serial": lambda: serially(case),
        PEER: lambda: by_grid_search(case, cores),
    }
    by_grid_search(make_case([60], 8), cores)  # starts its processes
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    starts_s, results = [], {}
    for repeat in range(repeats):
        for name in list(ways)[:: -1 if repeat % 2 else 1]:  # alternate the order, so that a drift affects all alike
            began_s = time.perf_counter()
            with ray_session(cores) if name == RAY else nullcontext():
                if name == RAY:
                    import_module("evaluation.fitting.ray_trials")  # Ray reads its environment when it is imported
                    starts_s.append(time.perf_counter() - began_s)
                    time.sleep(_LOAD_S)
                began_s = time.perf_counter()
                results[name] = ways[name]()
                seconds[name].append(time.perf_counter() - began_s)
    for name, result in results.items():
        require_same(name, result, results[PEER])
    return seconds, starts_s, results[PEER]


def require_same(name: str, result: Mapping[str, Choice], peer: Mapping[str, Choice]) -> None:
    """Fail if two searches did not do the same work."""
    for probe, (c, auc) in peer.items():
        assert result[probe].c == c, f"{name}: {probe} chose C={result[probe].c}, {PEER} {c}"
        assert abs(result[probe].auc - auc) < _SAME_AUC, f"{name}: {probe} has AUC {result[probe].auc}, {PEER} {auc}"


def text(seconds: Mapping[str, list[float]], start_s: float, probes: int) -> str:
    """Return the table."""
    peer_s = statistics.median(seconds[PEER])
    fits = probes * (FOLDS * len(PAPER.c_grid) + 1)
    rows = []
    for name, taken_s in seconds.items():
        median_s = statistics.median(taken_s)
        span = f"{min(taken_s):.1f} to {max(taken_s):.1f}"
        rows.append([name, f"{median_s:.1f}", span, f"{median_s / peer_s:.2f}", f"{fits / median_s:.1f}"])
    header = ["", "s", "range", f"of {PEER}", "fits/s"]
    return f"{probes} probes, {fits} fits; Ray starts in {start_s:.1f} s\n{table(header, rows)}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and print and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="JSON file for the figures")
    parser.add_argument("--images", type=int, nargs="+", default=[4000, 900], help="development images of each dataset")
    parser.add_argument("--size", type=int, default=512, help="features per image")
    parser.add_argument("--cores", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args(arguments)
    os.environ["PYTHONWARNINGS"] = "ignore"  # of fits without convergence in other processes
    case = make_case(options.images, options.size)
    seconds, starts_s, chosen = measure(case, options.cores, options.repeats)
    print(text(seconds, statistics.median(starts_s), len(chosen)), flush=True)
    result = {
        "seconds": seconds,
        "ray_start_seconds": starts_s,
        "chosen": {name: choice._asdict() for name, choice in chosen.items()},
        "units": {"seconds": "s", "ray_start_seconds": "s", "c": "1", "auc": "1"},
        "options": {name: value for name, value in vars(options).items() if name != "out"},
        "machine": machine("ray", "scikit-learn", "numpy", "scipy", "joblib"),
    }
    write_atomic(options.out, json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
