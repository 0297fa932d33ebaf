import json
import os
import subprocess
import sys
import time
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import psutil
import pytest

from evaluation.fitting.ray_search import search_with_ray
from evaluation.fitting.search import FittedProbe, SearchProblem, search_serially
from infra.arrays import Float32
from infra.errors import RunFailed

FOLDS = 3
Case = tuple[dict[str, Float32], dict[str, SearchProblem]]


def case(problems: int = 2, count: int = 120, size: int = 24) -> Case:
    """Features of different sizes, two problems on each, one of them standardised."""
    random = np.random.default_rng(0)
    classes = np.arange(count) % 2
    fold = np.where(np.arange(count) < 0.8 * count, np.arange(count) // 2 % FOLDS, -1)
    problem = SearchProblem("x0", np.arange(count), classes, fold, False, (0.01, 0.1, 1.0), 100)
    features, found = {}, {}
    for number in range(problems):
        values = random.normal(size=(count, size + number // 2))
        features[f"x{number // 2}"] = (values + 0.4 * classes[:, None]).astype(np.float32)
        found[f"probe {number}"] = replace(problem, features=f"x{number // 2}", standardize=bool(number % 2))
    return features, found


def require_same(found: dict[str, FittedProbe], expected: dict[str, FittedProbe]) -> None:
    """To the last bit."""
    assert list(found) == list(expected)
    for name, one in found.items():
        values, others = asdict(one), asdict(expected[name])
        assert [np.asarray(value).tobytes() for value in values.values() if not isinstance(value, dict)] == [
            np.asarray(value).tobytes() for value in others.values() if not isinstance(value, dict)
        ]
        assert one.aucs == expected[name].aucs


def statuses(folder: Path) -> dict[str, int]:
    """How many trials a snapshot of Tune counts with each status."""
    state = json.loads(max(folder.glob("experiment_state-*.json")).read_text())
    return Counter(json.loads(trial)["status"] for trial, _ in state["trial_data"])


def test_ray_finds_what_the_serial_search_finds_to_the_last_bit_and_leaves_no_folder(ray: None, tmp_path: Path) -> None:
    features, problems = case(4)
    require_same(search_with_ray(features, problems, storage=tmp_path, name="a"), search_serially(features, problems))
    assert not list(tmp_path.iterdir())


def test_ray_is_quiet_and_listens_on_the_loopback_address_only(
    ray: None, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    search_with_ray(*case(), storage=tmp_path, name="a")
    output = capfd.readouterr()
    assert (output.out, output.err) == ("", "")
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"
    own = {process.pid for process in psutil.Process().children(recursive=True)}
    listening = [c for c in psutil.net_connections("tcp") if c.pid in own and c.status == psutil.CONN_LISTEN]
    assert listening
    assert {connection.laddr.ip for connection in listening} <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}


@pytest.mark.slow
def test_failure_names_problem_fold_and_reason_after_all_others_have_ended(ray: None, tmp_path: Path) -> None:
    features, problems = case()
    one_class = problems["probe 1"].fold == 1
    bad = replace(problems["probe 1"], classes=np.where(one_class, 1, problems["probe 1"].classes))
    with pytest.raises(RunFailed, match=r"^1 of 8 fits failed, the first being probe 1, fold 1: .*one class only"):
        search_with_ray(features, problems | {"probe 1": bad}, storage=tmp_path, name="a")
    assert statuses(tmp_path / "a") == {"TERMINATED": 6, "ERROR": 1}  # the last fit of the bad one was never begun


@pytest.mark.slow
def test_search_that_cannot_be_taken_up_is_named_and_started_anew(
    ray: None, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "tuner.pkl").write_bytes(b"half")
    (tmp_path / "a" / "experiment_state-2026-01-01_00-00-00.json").write_text('{"trial_data": [')
    features, problems = case()
    require_same(search_with_ray(features, problems, storage=tmp_path, name="a"), search_serially(features, problems))
    assert "cannot be taken up" in capfd.readouterr().err


# Each session notes the trials that it starts and ends, by a callback that Tune takes from its environment.
SEARCH = """
from pathlib import Path
from tests.evaluation.fitting.test_ray_search import case, summed
from evaluation.fitting.ray_search import ray_session, search_with_ray
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
                if trial.config["task"] == dict(problem="probe 3", fold=1):
                    ray.kill(trial.temporary_state.ray_actor)
        found = search_with_ray(*case(12, 200, 64), storage=Path({storage!r}), name="a")
    print(summed(found))
"""


def summed(found: dict[str, FittedProbe]) -> float:
    return float(sum(chosen.validation.sum() + chosen.probabilities.sum() for chosen in found.values()))


def start(script: str, storage: Path, stderr: int | None = None, **environment: str) -> "subprocess.Popen[str]":
    text = script.format(storage=str(storage))
    return subprocess.Popen(
        [sys.executable, "-c", text], stdout=subprocess.PIPE, stderr=stderr, text=True, env=os.environ | environment
    )


def output(process: "subprocess.Popen[str]") -> list[str]:
    text, _ = process.communicate(timeout=250)
    assert process.returncode == 0
    return text.splitlines()


@pytest.mark.slow
def test_search_that_was_killed_goes_on_with_the_trials_that_had_not_ended(tmp_path: Path) -> None:
    noting = {"RAY_TUNE_CALLBACKS": "__main__.Note", "TUNE_GLOBAL_CHECKPOINT_S": "0.1"}
    ended = 0
    with start(SEARCH, tmp_path, **noting) as killed:
        assert killed.stdout is not None
        while ended < 12:
            ended += killed.stdout.readline() == "ended\n"
        killed.kill()
    saved = statuses(tmp_path / "a")["TERMINATED"]
    assert 0 < saved <= ended  # what ended since the last snapshot is lost, and how much that is depends on the load
    *lines, total = output(start(SEARCH, tmp_path, **noting))
    assert lines.count("began") == 12 * (FOLDS + 1) - saved
    assert float(total) == summed(search_serially(*case(12, 200, 64)))
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_trial_whose_process_keeps_dying_is_alone_in_being_run_by_the_next_search(tmp_path: Path) -> None:
    with start(SEARCH, tmp_path, RAY_TUNE_CALLBACKS="__main__.Kill", stderr=subprocess.PIPE) as failing:
        said, trace = failing.communicate(timeout=250)
    assert said.splitlines() == ["ended"] * (12 * (FOLDS + 1) - 2)
    assert "RunFailed: 1 of 48 fits failed, the first being probe 3, fold 1: The actor died" in trace
    *lines, total = output(start(SEARCH, tmp_path, RAY_TUNE_CALLBACKS="__main__.Note"))
    assert lines == ["began", "ended"] * 2
    assert float(total) == summed(search_serially(*case(12, 200, 64)))


# Four nodes of one core each; one that runs trials dies, with all its processes, once a quarter of them have ended.
CLUSTER = """
from pathlib import Path
import psutil
from tests.evaluation.fitting.test_ray_search import case, require_same
from evaluation.fitting.search import search_serially
from evaluation.fitting.ray_search import ray_session, search_with_ray
if __name__ == "__main__":
    from ray.cluster_utils import Cluster
    node = dict(num_cpus=1, object_store_memory=100 * 2**20, include_dashboard=False)
    cluster = Cluster(initialize_head=True, head_node_args=node)
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
        found = search_with_ray(*case(12, 400, 200), storage=Path({storage!r}), name="a")
    cluster.shutdown()
    require_same(found, search_serially(*case(12, 400, 200)))
"""


@pytest.mark.slow
def test_trials_of_a_node_that_dies_are_run_elsewhere(tmp_path: Path) -> None:
    lines = output(start(CLUSTER, tmp_path, RAY_TUNE_CALLBACKS="__main__.Kill"))  # and what Ray says of dead nodes
    assert [line for line in lines if line in ("4 nodes", "killing", "recovered")] == [
        "4 nodes",
        "killing",
        "recovered",
    ]


ADDRESSES = """
from evaluation.fitting.ray_search import ray_session
from infra.errors import UserError
for address in ("127.0.0.1:1", "ray://127.0.0.1:1", "nonsense", "auto"):
    try:
        with ray_session(address=address):
            print("joined")
    except UserError as error:
        print(error)
"""


def test_cluster_that_cannot_be_reached_is_one_line_at_once(tmp_path: Path) -> None:
    began_s = time.monotonic()
    lines = output(start(ADDRESSES, tmp_path, RAY_ADDRESS="127.0.0.1:1"))
    assert time.monotonic() - began_s < 60  # Ray itself takes over three minutes
    assert [line.partition(": ")[0] for line in lines] == [
        "address=127.0.0.1:1",
        "address=ray://127.0.0.1:1",
        "address=nonsense",
        "address=auto",
    ]
