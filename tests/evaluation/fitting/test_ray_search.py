"""Tests of the search for C by Ray Tune."""

import hashlib
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import psutil
import pytest

from evaluation.fitting.fit_log import FitLog, to_text
from evaluation.fitting.ray_search import search_with_ray
from evaluation.fitting.search import FinalFit, FittedProbe, FoldFit, SearchProblem, search_serially
from infra.arrays import Float32
from infra.errors import RunFailed

FOLDS = 3
Case = tuple[dict[str, Float32], dict[str, SearchProblem]]


def case(problems: int = 2, count: int = 120, size: int = 24) -> Case:
    """Return feature matrices of different sizes, and two problems on each, one of them standardized."""
    random = np.random.default_rng(0)
    classes = np.arange(count) % 2
    fold = np.where(np.arange(count) < 0.8 * count, np.arange(count) // 2 % FOLDS, -1)
    problem = SearchProblem("x0", np.arange(count), classes, fold, False, (0.01, 0.1, 1.0), 100)
    features, searches = {}, {}
    for number in range(problems):
        values = random.normal(size=(count, size + number // 2))
        features[f"x{number // 2}"] = (values + 0.4 * classes[:, None]).astype(np.float32)
        searches[f"probe {number}"] = replace(problem, features=f"x{number // 2}", standardize=bool(number % 2))
    return features, searches


def require_same(fitted: dict[str, FittedProbe], expected: dict[str, FittedProbe]) -> None:
    """Check that the fitted probes are equal to the last bit."""
    assert list(fitted) == list(expected)
    for name, probe in fitted.items():
        values, others = asdict(probe), asdict(expected[name])
        assert [np.asarray(value).tobytes() for value in values.values() if not isinstance(value, dict)] == [
            np.asarray(value).tobytes() for value in others.values() if not isinstance(value, dict)
        ]
        assert probe.aucs == expected[name].aucs


def log_of(folder: Path, problems: Mapping[str, SearchProblem]) -> FitLog:
    return FitLog(folder, {name: hashlib.sha256(name.encode()).hexdigest() for name in problems})


def search(features: dict[str, Float32], problems: dict[str, SearchProblem], folder: Path) -> dict[str, FittedProbe]:
    """Search with Ray, and remove the log as the cache of probes does."""
    log = log_of(folder, problems)
    fitted = search_with_ray(features, problems, log)
    for name in fitted:
        log.remove(name)
    return fitted


def finished(folder: Path) -> int:
    """Return the number of logged fits."""
    return sum(len(path.read_text().splitlines()) for path in folder.glob("*.jsonl"))


def test_ray_and_the_serial_search_agree_to_the_last_bit_and_ray_leaves_no_folder_and_is_quiet(
    ray: None, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    features, problems = case(4)
    capfd.readouterr()
    found = search(features, problems, tmp_path)
    output = capfd.readouterr()
    assert (output.out, output.err) == ("", "")
    require_same(found, search_serially(features, problems))
    assert not list(tmp_path.iterdir())


def test_ray_listens_on_the_loopback_address_only(ray: None) -> None:
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"
    children = {process.pid: process.name() for process in psutil.Process().children(recursive=True)}
    listening = {
        (children[connection.pid], next(iter(connection.laddr)))
        for connection in psutil.net_connections("tcp")
        if connection.pid in children and connection.status == psutil.CONN_LISTEN
    }
    assert listening
    loopback = {"127.0.0.1", "::1", "::ffff:127.0.0.1"}
    assert not {(name, address) for name, address in listening if address not in loopback}


@pytest.mark.slow
def test_failure_names_problem_fold_and_reason_after_all_others_have_ended(ray: None, tmp_path: Path) -> None:
    features, problems = case()
    one_class = problems["probe 1"].fold == 1
    bad = replace(problems["probe 1"], classes=np.where(one_class, 1, problems["probe 1"].classes))
    with pytest.raises(RunFailed, match=r"^1 of 8 fits failed; the first is probe 1, fold 1: .*one class only"):
        search(features, problems | {"probe 1": bad}, tmp_path)
    assert finished(tmp_path) == 6  # the final fit of the bad one never started


@pytest.mark.slow
def test_only_the_fits_that_are_not_logged_run(ray: None, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    features, problems = case(3)
    log, expected = log_of(tmp_path, problems), search_serially(features, problems)
    for name, problem in problems.items():
        fits: list[FoldFit | FinalFit] = [FoldFit(name, fold) for fold in range(FOLDS)]
        for fit in (*fits, FinalFit(name, expected[name].c)):
            log.add(name, to_text(fit, fit(features[problem.features], problem)))
    lines = {path: path.read_text().splitlines() for path in tmp_path.iterdir()}
    one, other, whole = lines
    one.write_text(f"{lines[one][0]}\n{lines[one][1][:-5]}")  # a fold and a half; the killed search knew no best C
    other.write_text("\n".join(lines[other][1:]) + "\n")  # the best C is known, but not the scores of a fold
    times = whole.stat().st_mtime_ns
    require_same(search_with_ray(features, problems, log), expected)
    assert sorted(one.read_text().splitlines()) == sorted(lines[one])
    assert other.read_text().splitlines() == [*lines[other][1:], lines[other][0]]
    assert whole.stat().st_mtime_ns == times
    assert "1 of 2 lines" in capfd.readouterr().err


# Each session prints the trials that it starts and ends, by a callback that Tune reads from its environment.
SEARCH = """
from pathlib import Path
from tests.evaluation.fitting.test_ray_search import case, search, summed
from infra.parallel.ray_session import ray_session
if __name__ == "__main__":
    with ray_session(cores=2):
        import ray
        from ray import tune
        class Note(tune.Callback):
            def on_trial_start(self, **_):
                print("began", flush=True)
            def on_trial_complete(self, **_):
                print("ended", flush=True)
        class Kill(Note):
            def on_trial_start(self, trial, **_):
                if trial.config["fit"] == dict(problem="probe 3", fold=1):
                    ray.kill(trial.temporary_state.ray_actor)
        fitted = search(*case(12, 200, 64), Path({storage!r}))
    print(summed(fitted))
"""


def summed(fitted: dict[str, FittedProbe]) -> float:
    return float(sum(probe.validation.sum() + probe.probabilities.sum() for probe in fitted.values()))


def start(
    script: str, storage: Path, environment: dict[str, str], stderr: int | None = None
) -> "subprocess.Popen[str]":
    """Start a script with more environment variables."""
    code = script.format(storage=str(storage))
    return subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=stderr, text=True, env=os.environ | environment
    )


def output(process: "subprocess.Popen[str]") -> list[str]:
    text, _ = process.communicate(timeout=250)
    assert process.returncode == 0
    return text.splitlines()


@pytest.mark.slow
def test_killed_search_resumes_with_its_unfinished_trials(tmp_path: Path) -> None:
    noting = {"RAY_TUNE_CALLBACKS": "__main__.Note"}
    ended = 0
    with start(SEARCH, tmp_path, noting) as killed:
        assert killed.stdout is not None
        while ended < 12:
            ended += killed.stdout.readline() == "ended\n"
        killed.kill()
    saved = finished(tmp_path)
    assert saved >= ended
    *lines, total = output(start(SEARCH, tmp_path, noting))
    assert lines.count("began") == 12 * (FOLDS + 1) - saved
    assert float(total) == summed(search_serially(*case(12, 200, 64)))
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_next_search_repeats_only_the_trial_whose_process_kept_dying(tmp_path: Path) -> None:
    with start(SEARCH, tmp_path, {"RAY_TUNE_CALLBACKS": "__main__.Kill"}, stderr=subprocess.PIPE) as failing:
        printed, trace = failing.communicate(timeout=250)
    assert printed.splitlines() == ["ended"] * (12 * (FOLDS + 1) - 2)
    assert "RunFailed: 1 of 48 fits failed; the first is probe 3, fold 1: The actor died" in trace
    *lines, total = output(start(SEARCH, tmp_path, {"RAY_TUNE_CALLBACKS": "__main__.Note"}))
    assert lines == ["began", "ended"] * 2
    assert float(total) == summed(search_serially(*case(12, 200, 64)))


# A head without cores, so that all trials run on three nodes of one core each; one of these dies, with all its
# processes, after a quarter of the trials.
CLUSTER = """
from pathlib import Path
import psutil
from tests.evaluation.fitting.test_ray_search import case, require_same, search
from evaluation.fitting.search import search_serially
from infra.parallel.ray_session import ray_session
if __name__ == "__main__":
    from ray.cluster_utils import Cluster
    node = dict(num_cpus=1, object_store_memory=100 * 2**20, include_dashboard=False)
    cluster = Cluster(initialize_head=True, head_node_args=node | {{"num_cpus": 0}})
    nodes = [cluster.add_node(**node) for _ in range(3)]
    with ray_session(address=cluster.address):
        import ray
        from ray import tune
        class Kill(tune.Callback):
            ended = 0
            def on_trial_result(self, result, **_):
                self.ended += 1
                here = psutil.Process(result["pid"]).ppid()
                at = [node for node in nodes if node.all_processes["raylet"][0].process.pid == here]
                if self.ended >= 12 and at and len(nodes) == 3:
                    print("killing", flush=True)
                    nodes.remove(at[0])
                    cluster.remove_node(at[0], allow_graceful=False)
            def on_trial_recover(self, **_):
                print("recovered", flush=True)
        print(sum(node["Alive"] for node in ray.nodes()), "nodes")
        fitted = search(*case(12, 400, 200), Path({storage!r}))
    cluster.shutdown()
    require_same(fitted, search_serially(*case(12, 400, 200)))
"""


@pytest.mark.slow
def test_trials_of_a_dead_node_run_on_another(tmp_path: Path) -> None:
    lines = output(start(CLUSTER, tmp_path, {"RAY_TUNE_CALLBACKS": "__main__.Kill"}))
    # Ray prints messages about dead nodes too.
    assert [line for line in lines if line in ("4 nodes", "killing", "recovered")] == [
        "4 nodes",
        "killing",
        "recovered",
    ]


ADDRESSES = """
from infra.parallel.ray_session import ray_session
from infra.errors import UserError
for address in ("127.0.0.1:1", "ray://127.0.0.1:1", "nonsense", "auto", "ray://anna:secret@127.0.0.1:1"):
    try:
        with ray_session(address=address):
            print("joined")
    except UserError as error:
        print(error)
"""


def test_unreachable_cluster_is_one_line_at_once(tmp_path: Path) -> None:
    began_s = time.monotonic()
    lines = output(start(ADDRESSES, tmp_path, {"RAY_ADDRESS": "127.0.0.1:1"}))
    assert "secret" not in "".join(lines)
    assert time.monotonic() - began_s < 60  # Ray itself takes over three minutes
    assert [line.partition(": ")[0] for line in lines] == [
        "address=127.0.0.1:1",
        "address=ray://127.0.0.1:1",
        "address=nonsense",
        "address=auto",
        "address=ray://127.0.0.1:1 must not contain a user, a password, a query or a fragment; remove them",
    ]


# The session that a stranger on the same machine attacks: it prints its address, and ends with its standard input.
SESSION = """
import sys
import tempfile
from infra.parallel.ray_session import ray_session
with ray_session(cores=1):
    import ray
    print(ray.get_runtime_context().gcs_address, flush=True)
    sys.stdin.read()
"""
STRANGER = """
import os, sys
os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
import ray
ray.init(address=sys.argv[1], _node_ip_address="127.0.0.1", log_to_driver=False, logging_level=50)
print(ray.get(ray.remote(num_cpus=0)(os.getpid).remote(), timeout=60))
"""


@pytest.mark.parametrize("stranger", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_local_ray_is_closed_to_others_and_leaves_no_file(stranger: bool) -> None:
    with tempfile.TemporaryDirectory(prefix="s") as folder:  # pytest's own path is too long for Ray's sockets
        home = Path(folder) / "home"
        home.mkdir()
        mine = os.environ | {"HOME": str(home), "TMPDIR": folder, "RAY_AUTH_MODE": "disabled"}
        command = [sys.executable, "-c", SESSION]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=mine) as session:
            assert session.stdout is not None
            address = session.stdout.readline().strip()
            [opened] = [path for path in Path(folder).iterdir() if path != home]
            assert opened.stat().st_mode & 0o777 == 0o700
            for mode in ("disabled", "token") if stranger else ():
                theirs = os.environ | {"HOME": str(home), "RAY_AUTH_MODE": mode, "RAY_AUTH_TOKEN": "guess"}
                attack = [sys.executable, "-c", STRANGER, address]
                failed = subprocess.run(attack, env=theirs, capture_output=True, text=True, check=False)
                assert failed.returncode != 0
                assert failed.stdout == ""
            session.communicate(timeout=60)
        assert session.returncode == 0
        assert [path.name for path in Path(folder).iterdir()] == ["home"]
        assert not list(home.iterdir())  # Ray's own token would be here, readable by all


def test_too_long_temporary_folder_is_named_in_one_line(tmp_path: Path) -> None:
    folder = tmp_path / ("a" * 60)
    folder.mkdir()
    ended = subprocess.run(
        [sys.executable, "-c", SESSION],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"TMPDIR": folder},
    )
    assert re.search(
        rf"UserError: TMPDIR={folder} is \d+ characters too long for the sockets of Ray; set TMPDIR=/tmp, or",
        ended.stderr,
    )
    assert not list(folder.iterdir())
