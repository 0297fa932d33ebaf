"""The search for C by Ray Tune, on this machine or on a cluster; each fit of evaluation/fitting/search.py is a trial.

A trial holds out one fold of one problem and fits the whole grid of C, because Tune spends 10 to 20 ms on each trial,
which is more than one fit of a small problem takes.
"""

import fnmatch
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

from evaluation.fitting.search import FittedProbe, FoldFit, SearchProblem, fitted_probe, fold_fits
from infra.arrays import Float32
from infra.errors import RunFailed, UserError
from infra.log import say
from infra.object_store import ObjectStore, require_store_url
from infra.urls import require_no_credentials, scheme_of

# Ray reads these when it is first imported: no usage statistics, no tables of Tune, no log files for each trial.
_QUIET: Final = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
}
# For a Ray on this machine: listen on the loopback address only (the setting does so on Linux too, despite its name);
# run trials at the priority of this process, because any other process starves them at Ray's default, the lowest; start
# no processes for plain tasks, because Tune has none.
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
    """Solve every problem; each fit is a Ray Tune trial on one core.

    Needs a `ray_session`. The results equal those of `search_serially` to the last bit. The search is saved in a folder
    until it succeeds. If it is interrupted, the same call resumes it. Nodes of a cluster need no access to the folder.
    A failed trial is repeated twice.

    Args:
        features: the feature matrices, by the names that the problems use
        problems: the problems, by name
        storage: parent of that folder: a local path, or a URL of an object store
        name: name of the folder; must identify everything that the search depends on

    Returns:
        The fitted probe of each problem.

    Raises:
        RunFailed: if a trial fails three times, after all others have ended
        UserError: if `storage` is a URL that cannot be opened or holds credentials
        KeyboardInterrupt: if Tune was interrupted
    """
    if isinstance(storage, str) and scheme_of(storage) is not None:
        require_store_url(storage)
        folder = f"{storage.rstrip('/')}/{name}"
    else:
        folder = str(Path(storage).absolute() / name)
    folds = fold_fits(problems)
    outcomes = _outcomes(features, problems, folds, folder)
    fitted = {}
    for last, (problem_name, problem) in enumerate(problems.items(), len(folds)):
        validations = {fit.fold: outcomes[number] for number, fit in enumerate(folds) if fit.problem == problem_name}
        fitted[problem_name] = fitted_probe(
            problem, [validations[fold] for fold in range(problem.folds)], outcomes[last]
        )
    _open(folder).remove()
    return fitted


def _outcomes(
    features: Mapping[str, Float32], problems: Mapping[str, SearchProblem], folds: Sequence[FoldFit], folder: str
) -> dict[int, Any]:
    """Return the outcome of every trial by its number: first the folds, then the final fits."""
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
    names = [str(fit) for fit in folds] + [f"{name}, all folds" for name in problems]
    if failed:
        first = min(failed)
        raise RunFailed(f"{len(failed)} of {len(names)} fits failed; the first is {names[first]}: {failed[first]}")
    if len(done) < len(names):
        # The search was interrupted while Tune wrote its files, so they disagree.
        assert restored, "Tune ends a new search with an outcome or an error of every trial"
        say(f"warning: the search in {folder} has lost trials; starting it again")
        _open(folder).remove()
        return _outcomes(features, problems, folds, folder)
    return done


def _tuner(
    features: Mapping[str, Float32], problems: Mapping[str, SearchProblem], folds: Sequence[FoldFit], folder: str
) -> tuple[Any, bool]:
    """Return a search, and whether it resumes an interrupted one in the folder."""
    import ray  # noqa: PLC0415 (Ray reads its environment on import: see ray_session)
    from ray import tune  # noqa: PLC0415

    from evaluation.fitting.ray_trials import FitTrainable, TrialOrder, TrialProgress, TrialSearcher  # noqa: PLC0415

    # Each matrix is sent once, to Ray's shared memory; a node fetches those that its trials need.
    shared = {matrix: ray.put(values) for matrix, values in features.items()}
    trainable = tune.with_resources(
        tune.with_parameters(FitTrainable, shared=shared, problems=dict(problems)), {"cpu": 1}
    )
    if _is_resumable(folder):
        return tune.Tuner.restore(folder, trainable, resume_errored=True), True
    _open(folder).remove()
    total = len(folds) + len(problems)
    parent, name = folder.rsplit("/", 1)
    tuner = tune.Tuner(
        trainable,
        tune_config=tune.TuneConfig(
            search_alg=TrialSearcher(TrialOrder(problems, folds)),
            num_samples=total,
            reuse_actors=True,  # otherwise each trial starts a process: 30 times slower
            trial_dirname_creator=lambda trial: str(trial.config["number"]),
        ),
        run_config=tune.RunConfig(
            name=name,
            storage_path=parent,
            verbose=0,
            callbacks=[TrialProgress(total)],
            failure_config=tune.FailureConfig(max_failures=_RETRIES),
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),  # a trial ends or is repeated
        ),
    )
    return tuner, False


def _open(folder: str) -> ObjectStore:
    """Open the folder of a search."""
    return ObjectStore(folder if scheme_of(folder) is not None else Path(folder).as_uri())


def _is_resumable(folder: str) -> bool:
    """Return whether the folder holds an interrupted search; a damaged one gets a warning and does not count."""
    store = _open(folder)
    files = store.sizes()
    states = fnmatch.filter(files, "experiment_state-*.json")
    if not states:
        return False
    try:  # Tune silently ignores a damaged state
        json.loads(_content(store, max(states)))
        for file in ["tuner.pkl", *fnmatch.filter(files, "search*")]:
            pickle.loads(_content(store, file))
    except Exception as error:  # unpickling a damaged file may raise anything
        say(f"warning: the search in {folder} cannot be resumed ({_reason(error)}); starting it again")
        return False
    return True


def _content(store: ObjectStore, name: str) -> bytes:
    """Return the content of a file; raise FileNotFoundError if there is none."""
    content = store.read(name)
    if content is None:
        raise FileNotFoundError(f"{name} is missing")
    return content


def _reason(error: BaseException) -> str:
    """Return the first line of an error, without the traceback of the worker that raised it."""
    cause = getattr(error, "cause", None) or error
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    return lines[0] if lines else type(cause).__name__


@contextmanager
def ray_session(cores: int | None = None, address: str | None = None, features_bytes: int = 0) -> Iterator[None]:
    """Start Ray on this machine, or join a cluster, until the block ends.

    A local Ray listens on the loopback address only and has no dashboard. If this process has already started Ray, that
    one is used and left running.

    Args:
        cores: cores of this machine to use, all by default
        address: a cluster to join: `auto` for the one that this machine belongs to, HOST:PORT of its head, or
            ray://HOST:PORT from outside
        features_bytes: total size of the matrices that the trials share

    Raises:
        UserError: if the cluster cannot be joined
        RunFailed: if Ray does not start on this machine
    """
    cores = cores or len(os.sched_getaffinity(0))
    # How many trials wait for a core. Tune's default, 1, leaves cores idle. Its default for a plain grid search, 200,
    # sets up all 200 before the first core starts.
    waiting = {"TUNE_MAX_PENDING_TRIALS_PG": "200" if address else str(2 * cores)}
    for name, value in (_QUIET | waiting | ({} if address else _LOCAL)).items():
        os.environ.setdefault(name, value)
    import ray  # noqa: PLC0415 (after its environment is set; its import takes a second)

    if ray.is_initialized():
        yield
        return
    if address:
        _join(address)
    else:
        _start(cores, features_bytes)
    import evaluation.fitting.ray_trials  # noqa: F401, PLC0415 (its import takes a second; pay it here)

    try:
        yield
    finally:
        ray.shutdown()


def _start(cores: int, features_bytes: int) -> None:
    import ray  # noqa: PLC0415

    try:
        ray.init(
            address="local",  # ignores RAY_ADDRESS and a Ray that another user started
            num_cpus=cores,
            include_dashboard=False,
            _node_ip_address="127.0.0.1",
            object_store_memory=_STORE_BYTES + 2 * features_bytes,
            log_to_driver=False,
            configure_logging=True,
            logging_level=logging.CRITICAL,  # _outcomes reports failed trials, in one line
        )
    except Exception as error:
        raise RunFailed(f"Ray did not start on this machine: {error}; --search=serial needs no Ray") from error


def _join(address: str) -> None:
    import ray  # noqa: PLC0415
    from ray._private.services import get_ray_address_from_environment  # noqa: PLC0415 (resolves `auto`)

    require_no_credentials(address, "address")
    try:
        head = get_ray_address_from_environment("auto", None) if address == "auto" else address
        _require_reachable(head)
        ray.init(address=head, log_to_driver=False, configure_logging=True, logging_level=logging.CRITICAL)
    except Exception as error:
        raise UserError(
            f"address={address}: cannot join this Ray cluster: {_reason(error)}; check the address, that the cluster "
            "runs, and RAY_AUTH_MODE=token if it requires a token; or leave address out to search on this machine"
        ) from error


def _require_reachable(address: str) -> None:
    """Open and close a connection first, because Ray itself retries for minutes and then ends the process."""
    parts = urlsplit(address if "://" in address else f"//{address}")
    if parts.hostname is None or parts.port is None:
        raise ValueError("it must be auto, HOST:PORT or ray://HOST:PORT")
    with socket.create_connection((parts.hostname, parts.port), timeout=_REACH_S):
        pass
