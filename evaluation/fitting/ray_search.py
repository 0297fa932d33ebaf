"""The search for C by Ray Tune, on this machine or on a cluster; each fit of evaluation/fitting/search.py is a trial.

A trial holds out one fold of one problem and fits the whole grid of C, because Tune spends 10 to 20 ms on each trial,
which is more than one fit of a small problem takes.
"""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from evaluation.fitting.fit_log import FitLog, from_text
from evaluation.fitting.search import (
    FinalFit,
    Fit,
    FitResult,
    FittedProbe,
    FoldFit,
    SearchProblem,
    choose_c,
    fitted_probe,
    fold_fits,
)
from infra.arrays import Float32
from infra.errors import RunFailed
from infra.parallel.ray_session import reason_of

_RETRIES: Final = 2


def search_with_ray(
    features: Mapping[str, Float32], problems: Mapping[str, SearchProblem], log: FitLog
) -> dict[str, FittedProbe]:
    """Solve every problem; each fit is a Ray Tune trial on one core.

    Needs a `ray_session`. The results equal those of `search_serially` to the last bit. Every finished fit is logged.
    If the search is interrupted, the same call runs the missing fits only. Nodes of a cluster need no access to the
    log. A failed trial is repeated twice.

    Args:
        features: the feature matrices, by the names that the problems use
        problems: the problems, by name
        log: the finished fits of these problems

    Returns:
        The fitted probe of each problem.

    Raises:
        RunFailed: if a trial fails three times, after all others have ended
        KeyboardInterrupt: if Tune was interrupted
    """
    results = log.read(problems)
    _run_missing(features, problems, log, results)
    try:
        return {name: _fitted_probe(name, problem, results) for name, problem in problems.items()}
    except KeyError as missing:  # without a failure, Tune leaves out a fit only if it was interrupted
        raise KeyboardInterrupt from missing


def _fitted_probe(name: str, problem: SearchProblem, results: Mapping[Fit, Any]) -> FittedProbe:
    folds = [results[FoldFit(name, fold)] for fold in range(problem.folds)]
    final = FinalFit(name, choose_c(problem, [result.aucs for result in folds]))
    return fitted_probe(problem, folds, results[final])


def _run_missing(
    features: Mapping[str, Float32], problems: Mapping[str, SearchProblem], log: FitLog, results: dict[Fit, FitResult]
) -> None:
    """Run the fits that are missing in `results`, log them and add them there.

    This is a new experiment each time. Tune's own files hold pickles, so they go to a private folder and are never read
    again.
    """
    from ray import tune  # noqa: PLC0415 (Ray reads its environment on import: see infra.parallel.ray_session)
    from ray.util.client import ray as client  # noqa: PLC0415

    from evaluation.fitting.ray_trials import TrialOrder, TrialProgress, fit_of  # noqa: PLC0415

    order = TrialOrder(problems, results)
    if not order.most:
        return
    names = [*map(str, fold_fits(problems)), *(f"{name}, all folds" for name in problems)]
    numbers = {name: number for number, name in enumerate(names)}
    is_here = not client.is_connected()  # otherwise the head of the cluster runs the experiment, without the log
    failed: dict[int, str] = {}
    with tempfile.TemporaryDirectory(prefix="sternum-tune-") as storage:
        tuner = tune.Tuner(
            _trainable(features, problems),
            tune_config=tune.TuneConfig(
                search_alg=order,
                num_samples=order.most,
                reuse_actors=True,  # otherwise each trial starts a process: 30 times slower
                trial_dirname_creator=lambda trial: str(numbers[str(fit_of(trial.config))]),
            ),
            run_config=tune.RunConfig(
                name="search",
                storage_path=storage,
                verbose=0,
                callbacks=[TrialProgress(order.most, log if is_here else None)],
                failure_config=tune.FailureConfig(max_failures=_RETRIES),
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),  # a trial ends or is repeated
            ),
        )
        for outcome in tuner.fit():
            if outcome.error:
                failed[int(Path(outcome.path).name)] = reason_of(outcome.error)
            elif "result" in outcome.metrics:
                name, text = fit_of(outcome.config).problem, outcome.metrics["result"]
                fit, result = from_text(text, name, problems[name])
                results[fit] = result
                if not is_here:
                    log.add(name, text)
    if failed:
        first = min(failed)
        raise RunFailed(f"{len(failed)} of {len(names)} fits failed; the first is {names[first]}: {failed[first]}")


def _trainable(features: Mapping[str, Float32], problems: Mapping[str, SearchProblem]) -> Any:
    import ray  # noqa: PLC0415
    from ray import tune  # noqa: PLC0415

    from evaluation.fitting.ray_trials import FitTrainable  # noqa: PLC0415

    # Each matrix is sent once, to Ray's shared memory; a node fetches those that its trials need.
    shared = {matrix: ray.put(values) for matrix, values in features.items()}
    return tune.with_resources(tune.with_parameters(FitTrainable, shared=shared, problems=dict(problems)), {"cpu": 1})
