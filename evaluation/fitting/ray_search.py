"""The search for C by Ray Tune: the tasks of evaluation/fitting/search.py as trials, on this machine or on a cluster.

A trial holds out one fold of one problem and fits the whole grid of C there: a trial costs Tune 10 to 20 ms, and a fit
of a small problem less.
"""

import json
import logging
import os
import pickle
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import fsspec

from evaluation.fitting.search import FittedProbe, FoldFit, SearchProblem, fitted_probe, fold_fits
from infra.arrays import Float32
from infra.errors import RunFailed, UserError
from infra.log import say

# Read by Ray when it is first imported: no usage statistics, none of Tune's tables and per-trial log files.
_QUIET: Final = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
}
# Of a Ray of this machine: listen on the loopback address only (the name speaks of other systems, the effect is the
# same); give trials the priority of this process, not the least of all, at which anything else starves them; start no
# processes for plain tasks, which Tune has none of.
_LOCAL: Final = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_worker_niceness": "0",
    "RAY_prestart_worker_first_driver": "0",
}
_STORE_BYTES: Final = 128 * 2**20
_REACH_S: Final = 10.0
_RETRIES: Final = 2


def search_with_ray(
    features: Mapping[str, Float32], problems: Mapping[str, SearchProblem], *, storage: Path | str, name: str
) -> dict[str, FittedProbe]:
    """Solve every problem, each task a Ray Tune trial on one core; to the last bit what `search_serially` finds.

    Needs a `ray_session`. The search lives in the folder `name` of `storage`, a folder of this machine or a URL,
    until it has succeeded. When it was broken off, the same call goes on with it, so `name` has to stand for everything
    that the search depends on. Nodes of a cluster need no access to `storage`. A trial that fails is run again twice.
    Raises RunFailed when one fails for good, after all others have ended, and KeyboardInterrupt when Tune was told to
    stop.
    """
    folder = f"{storage if isinstance(storage, str) else storage.absolute()}/{name}"
    folds = fold_fits(problems)
    outcomes = _outcomes(features, problems, folds, folder)
    found = {}
    for last, (what, problem) in enumerate(problems.items(), len(folds)):
        validations = {task.fold: outcomes[number] for number, task in enumerate(folds) if task.problem == what}
        found[what] = fitted_probe(problem, [validations[fold] for fold in range(problem.folds)], outcomes[last])
    _remove(folder)
    return found


def _outcomes(
    features: Mapping[str, Float32], problems: Mapping[str, SearchProblem], folds: Sequence[FoldFit], folder: str
) -> dict[int, Any]:
    """Return the outcome of every trial: of the folds, then of the last fits, by their numbers."""
    from evaluation.fitting.ray_trials import from_text  # noqa: PLC0415

    tuner, restored = _tuner(features, problems, folds, folder)
    done: dict[int, Any] = {}
    failed: dict[int, str] = {}
    for result in tuner.fit():
        number = int(Path(result.path).name)
        if result.error:
            failed[number] = _reason(result.error)
        elif "outcome" in result.metrics:
            done[number] = from_text(result.metrics["outcome"])
        else:
            raise KeyboardInterrupt
    names = [str(task) for task in folds] + [f"{name}, all folds" for name in problems]
    if failed:
        first = min(failed)
        raise RunFailed(f"{len(failed)} of {len(names)} fits failed, the first being {names[first]}: {failed[first]}")
    if len(done) < len(names):
        # It was broken off while Tune wrote its files, which then do not agree.
        assert restored, "Tune ends a new search with an outcome or an error of every trial"
        say(f"warning: the search in {folder} has lost trials; starting it anew")
        _remove(folder)
        return _outcomes(features, problems, folds, folder)
    return done


def _tuner(
    features: Mapping[str, Float32], problems: Mapping[str, SearchProblem], folds: Sequence[FoldFit], folder: str
) -> tuple[Any, bool]:
    """Return a search, and whether it is one that was broken off in the folder."""
    import ray  # noqa: PLC0415 (Ray reads its environment on import: see ray_session)
    from ray import tune  # noqa: PLC0415

    from evaluation.fitting.ray_trials import FitTrainable, TrialOrder, TrialProgress, TrialSearcher  # noqa: PLC0415

    # Each matrix travels once, into the object store; a node fetches those that its trials need.
    shared = {what: ray.put(values) for what, values in features.items()}
    trainable = tune.with_resources(
        tune.with_parameters(FitTrainable, shared=shared, problems=dict(problems)), {"cpu": 1}
    )
    if _can_be_taken_up(folder):
        return tune.Tuner.restore(folder, trainable, resume_errored=True), True
    _remove(folder)
    total = len(folds) + len(problems)
    where, name = folder.rsplit("/", 1)
    tuner = tune.Tuner(
        trainable,
        tune_config=tune.TuneConfig(
            search_alg=TrialSearcher(TrialOrder(problems, folds)),
            num_samples=total,
            reuse_actors=True,  # else each trial starts a process: 30 times slower
            trial_dirname_creator=lambda trial: str(trial.config["number"]),
        ),
        run_config=tune.RunConfig(
            name=name,
            storage_path=where,
            verbose=0,
            callbacks=[TrialProgress(total)],
            failure_config=tune.FailureConfig(max_failures=_RETRIES),
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),  # a trial is done or is run again
        ),
    )
    return tuner, False


def _can_be_taken_up(folder: str) -> bool:
    """Whether a search was broken off in the folder; a damaged one is named and does not count."""
    system, path = fsspec.core.url_to_fs(folder)
    states = system.glob(f"{path}/experiment_state-*.json")
    if not states:
        return False
    try:  # Tune takes a damaged state for none, in silence
        json.loads(system.cat_file(max(states)))
        for file in [f"{path}/tuner.pkl", *system.glob(f"{path}/search*")]:
            pickle.loads(system.cat_file(file))
    except Exception as error:  # whatever unpickling a damaged file may raise
        say(f"warning: the search in {folder} cannot be taken up ({_reason(error)}); starting it anew")
        return False
    return True


def _remove(folder: str) -> None:
    system, path = fsspec.core.url_to_fs(folder)
    if system.exists(path):
        system.rm(path, recursive=True)


def _reason(error: BaseException) -> str:
    """Return the first line of what went wrong, without the trace of the worker in which it did."""
    cause = getattr(error, "cause", None) or error
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    return lines[0] if lines else type(cause).__name__


@contextmanager
def ray_session(cores: int | None = None, address: str | None = None, features_bytes: int = 0) -> Iterator[None]:
    """Have a Ray for the time of the block: this machine's `cores` (all by default), or the cluster at `address`.

    The local one listens on the loopback address only and has no dashboard; `features_bytes` is what its trials share.
    `address` is `auto` for the cluster that this machine is a node of, HOST:PORT of its head, or ray://HOST:PORT from
    outside. A Ray that this process has started already is used and left running. Raises UserError for a cluster that
    cannot be joined, RunFailed when Ray does not start here.
    """
    cores = cores or len(os.sched_getaffinity(0))
    # Trials that wait for a core. By default Tune lets one wait, and cores with it, but in a plain grid search 200, and
    # then no core begins before all of these are set up.
    waiting = {"TUNE_MAX_PENDING_TRIALS_PG": "200" if address else str(2 * cores)}
    for name, value in (_QUIET | waiting | ({} if address else _LOCAL)).items():
        os.environ.setdefault(name, value)
    import ray  # noqa: PLC0415 (after its environment is set; it takes a second, which only probing should pay)

    if ray.is_initialized():
        yield
        return
    if address:
        _join(address)
    else:
        _start(cores, features_bytes)
    import evaluation.fitting.ray_trials  # noqa: F401, PLC0415 (a second that belongs to the start)

    try:
        yield
    finally:
        ray.shutdown()


def _start(cores: int, features_bytes: int) -> None:
    import ray  # noqa: PLC0415

    try:
        ray.init(
            address="local",  # never one that RAY_ADDRESS or another user's `ray start` points to
            num_cpus=cores,
            include_dashboard=False,
            _node_ip_address="127.0.0.1",
            object_store_memory=_STORE_BYTES + 2 * features_bytes,
            log_to_driver=False,
            configure_logging=True,
            logging_level=logging.CRITICAL,  # a failed trial is reported by us, in one line
        )
    except Exception as error:
        raise RunFailed(f"Ray did not start on this machine: {error}; --search=serial does without it") from error


def _join(address: str) -> None:
    import ray  # noqa: PLC0415
    from ray._private.services import get_ray_address_from_environment  # noqa: PLC0415 (what `auto` stands for)

    try:
        where = get_ray_address_from_environment("auto", None) if address == "auto" else address
        _reach(where)
        ray.init(address=where, log_to_driver=False, configure_logging=True, logging_level=logging.CRITICAL)
    except Exception as error:
        raise UserError(
            f"address={address}: no Ray cluster can be joined there: {_reason(error)}; check the address, that the "
            "cluster runs, and RAY_AUTH_MODE=token where it asks for one, or leave it out to search on this machine"
        ) from error


def _reach(address: str) -> None:
    """Open a connection and close it, since Ray itself tries for minutes and then ends the process."""
    parts = urlsplit(address if "://" in address else f"//{address}")
    if parts.hostname is None or parts.port is None:
        raise ValueError("it is neither auto, nor HOST:PORT, nor ray://HOST:PORT")
    with socket.create_connection((parts.hostname, parts.port), timeout=_REACH_S):
        pass
