"""The search for C: one logistic regression a (feature set, C, fold), by Ray Tune or one after the other."""

import logging
import os
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from infra.errors import RunFailed
from infra.log import progress

# Read by Ray when it is first imported: no usage statistics; listen on the loopback address only (the name speaks of
# other systems, the effect is the same here); none of Tune's tables and per-trial log files.
_QUIET_AND_LOCAL: Final = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
}
_STORE_BYTES: Final = 128 * 2**20


@dataclass(frozen=True)
class Problem:
    """The development part of one feature set: values (n, D) float32, classes (n,) 0/1, fold (n,) from 0."""

    values: npt.NDArray[np.float32]
    classes: npt.NDArray[np.int64]
    fold: npt.NDArray[np.int64]


@dataclass(frozen=True)
class Trial:
    """The AUC on one fold of a probe fitted on the others; `seconds` is what the fit took."""

    problem: str
    c: float
    fold: int
    auc: float
    converged: bool
    seconds: float


def fit(
    values: npt.NDArray[np.float32], classes: npt.NDArray[np.int64], c: float, max_iterations: int
) -> tuple[LogisticRegression, bool]:
    """Fit the paper's probe and say whether it converged.

    scikit-learn's LogisticRegression (lbfgs, L2) on unscaled features with balanced class weights (Gazda et al. 2021,
    section V B). On one thread, so that sums are taken in the same order whatever the number of cores.
    """
    model = LogisticRegression(C=c, class_weight="balanced", max_iter=max_iterations)
    with threadpool_limits(1), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        model.fit(values.astype(np.float64), classes)
    converged = True
    for warning in caught:
        if issubclass(warning.category, ConvergenceWarning):
            converged = False
        else:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
    return model, converged


def probabilities(model: LogisticRegression, values: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Return the probability (n,) of the positive class."""
    with threadpool_limits(1):
        result: npt.NDArray[np.float64] = model.predict_proba(values.astype(np.float64))[:, 1]
    return result


def run_trial(problem: Problem, name: str, c: float, fold: int, max_iterations: int) -> Trial:
    """Fit on all folds but one and score that one."""
    started = time.perf_counter()
    held_out = problem.fold == fold
    model, converged = fit(problem.values[~held_out], problem.classes[~held_out], c, max_iterations)
    auc = roc_auc_score(problem.classes[held_out], probabilities(model, problem.values[held_out]))
    return Trial(name, c, fold, float(auc), converged, time.perf_counter() - started)


Search = Callable[[Mapping[str, Problem], Sequence[float], int], list[Trial]]


def search_serially(problems: Mapping[str, Problem], c_grid: Sequence[float], max_iterations: int) -> list[Trial]:
    """Run every (feature set, C, fold) in this process, in order."""
    points = list(_points(problems, c_grid))
    return [
        run_trial(problems[name], name, c, fold, max_iterations)
        for name, c, fold in progress(points, "fitting probes", unit="fit")
    ]


def search_with_ray(problems: Mapping[str, Problem], c_grid: Sequence[float], max_iterations: int) -> list[Trial]:
    """Run every (feature set, C, fold) as a Ray Tune trial on one core; the same result as `search_serially`.

    Needs a Ray that `local_ray` has started. Raises RunFailed with the reason of the first trial that failed.
    """
    from ray import tune  # noqa: PLC0415 (Ray reads its environment on import: see local_ray)

    points = list(_points(problems, c_grid))

    class Progress(tune.Callback):  # type: ignore[misc]
        def setup(self, **_: Any) -> None:  # not in __init__: Tune pickles its callbacks before it calls this
            self.fitted = progress(range(len(points)), "fitting probes", unit="fit")
            next(self.fitted)

        def on_trial_complete(self, **_: Any) -> None:
            next(self.fitted, None)

    def trainable(config: dict[str, Any], problems: Mapping[str, Problem]) -> None:
        name, c, fold = config["point"]
        tune.report(asdict(run_trial(problems[name], name, c, fold, max_iterations)))

    with tempfile.TemporaryDirectory(prefix="sternum-tune-") as folder:
        results = tune.Tuner(
            # The features travel once, into the object store, where every trial maps them.
            tune.with_resources(tune.with_parameters(trainable, problems=dict(problems)), {"cpu": 1}),
            param_space={"point": tune.grid_search(points)},
            tune_config=tune.TuneConfig(reuse_actors=True),  # else each trial starts a process: 30 times slower
            run_config=tune.RunConfig(
                name="probe",
                storage_path=folder,
                verbose=0,
                callbacks=[Progress()],
                failure_config=tune.FailureConfig(fail_fast=True),
            ),
        ).fit()
    if results.errors:
        raise RunFailed(f"a probe could not be fitted: {_reason(results.errors[0])}")
    trials = {_point_key(result.metrics): result.metrics for result in results if result.metrics}
    missing = [point for point in points if point not in trials]
    if missing:
        raise RunFailed(f"{len(missing)} of {len(points)} probes were not fitted, the first being {missing[0]}")
    names = Trial.__dataclass_fields__
    return [Trial(**{name: trials[point][name] for name in names}) for point in points]


@contextmanager
def local_ray(cores: int | None = None, features_bytes: int = 0) -> Iterator[None]:
    """Run a Ray of this machine for the time of the block: loopback only, no dashboard, no usage statistics.

    A Ray that this process has started already is used and left running. `features_bytes` is what the trials share.
    Raises RunFailed when Ray does not start.
    """
    for name, value in _QUIET_AND_LOCAL.items():
        os.environ.setdefault(name, value)
    import ray  # noqa: PLC0415 (after its environment is set; it takes a second, which only probing should pay)

    if ray.is_initialized():
        yield
        return
    try:
        ray.init(
            address="local",  # never one that RAY_ADDRESS or another user's `ray start` points to
            num_cpus=cores or len(os.sched_getaffinity(0)),
            include_dashboard=False,
            _node_ip_address="127.0.0.1",
            object_store_memory=_STORE_BYTES + 2 * features_bytes,
            log_to_driver=False,
            configure_logging=True,
            logging_level=logging.CRITICAL,  # a failed trial is reported by us, in one line
        )
    except Exception as error:
        raise RunFailed(f"Ray did not start on this machine: {error}; --search=serial does without it") from error
    try:
        yield
    finally:
        ray.shutdown()


def _points(problems: Mapping[str, Problem], c_grid: Sequence[float]) -> Iterator[tuple[str, float, int]]:
    for name, problem in problems.items():
        for c in c_grid:
            for fold in range(int(problem.fold.max()) + 1):
                yield name, c, fold


def _point_key(metrics: Mapping[str, Any]) -> tuple[str, float, int]:
    return metrics["problem"], metrics["c"], metrics["fold"]


def _reason(error: BaseException) -> str:
    """The last line of a worker's traceback: what went wrong, without where."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
