"""Experiment trackers: the real packages without a network, and what happens when one fails."""

import json
import struct
import sys
import time
from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from infra.errors import UserError
from infra.monitoring.trackers import LogConfig, Trackers

SETTINGS: Mapping[str, Any] = {"seed": 0, "train.epochs": 2, "model.init": None}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"wandb": "https://user:secret@server/x"}, "wandb must be PROJECT or ENTITY/PROJECT.*try wandb=chest"),
        ({"mlflow": "mlruns"}, "mlflow=mlruns must be the URL of a server or sqlite:///FILE; try"),
        ({"mlflow": "https://user:secret@server"}, "mlflow=https://server must not contain a user"),
    ],
)
def test_what_is_no_tracker_is_refused_without_its_secrets(config: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message) as refusal:
        LogConfig(**config)
    assert "secret" not in str(refusal.value)


@pytest.mark.parametrize(("name", "product"), [("wandb", "Weights & Biases"), ("mlflow", "MLflow")])
def test_a_missing_package_is_one_line(name: str, product: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("infra.extras.find_spec", lambda module: None)
    config = LogConfig(**{name: "sqlite:///x" if name == "mlflow" else "chest"})
    with pytest.raises(UserError, match=rf'{name}=.* needs {product}.* pip install "sternum\[{name}\]", or leave it'):
        config.require_installed()
    LogConfig().require_installed()


def test_a_tracker_that_fails_costs_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The package is there, but its server is not: here an import that raises what a client would."""
    broken = ModuleType("wandb")
    monkeypatch.setitem(sys.modules, "wandb", broken)
    with Trackers(tmp_path, LogConfig(wandb="chest"), SETTINGS) as trackers:
        for step in range(1, 4):
            trackers.write(step, {"loss": 1.0})
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("warning: wandb gets no more metrics from this start: ")


def test_a_tracker_that_hangs_does_not_delay_the_steps_or_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hanging = ModuleType("wandb")
    hanging.init = lambda **_: time.sleep(30)  # type: ignore[attr-defined]
    hanging.Settings = lambda **_: None  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", hanging)
    trackers = Trackers(tmp_path, LogConfig(wandb="chest"), SETTINGS)
    began_s = time.monotonic()
    trackers.write(1, {"loss": 1.0})
    trackers.close(wait_s=0.2)
    assert time.monotonic() - began_s < 10
    assert "trackers did not answer for 0.2 s" in capsys.readouterr().err


def starts_of_a_run(run: Path, config: LogConfig) -> None:
    """Two starts: the first makes steps 1 to 4, the second resumes after step 2 and goes to 6."""
    run.mkdir()
    for steps in (range(1, 5), range(3, 7)):
        trackers = Trackers(run, config, SETTINGS)
        for step in steps:
            trackers.write(step, {"loss": 1 / step, "loss/chance": 3.0})
        trackers.close(wait_s=240)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_mlflow_has_each_step_of_a_resumed_run_once(tmp_path: Path) -> None:
    mlflow = pytest.importorskip("mlflow")
    store = f"sqlite:///{tmp_path}/mlflow.db"
    starts_of_a_run(tmp_path / "run", LogConfig(mlflow=store))
    client = mlflow.MlflowClient(tracking_uri=store)
    [run] = client.search_runs([client.get_experiment_by_name("sternum").experiment_id])
    history = client.get_metric_history(run.info.run_id, "loss")
    assert [(point.step, point.value) for point in history] == [(step, 1 / step) for step in range(1, 7)]
    assert run.data.params["train.epochs"] == "2"
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "run"


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_wandb_has_each_step_of_a_resumed_run_once_without_a_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb")
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))  # no login
    starts_of_a_run(tmp_path / "run", LogConfig(wandb="chest"))
    folders = sorted((tmp_path / "run" / "wandb").glob("offline-run-*"))
    [name] = {folder.name.rpartition("-")[2] for folder in folders}
    assert json.loads((tmp_path / "run" / "trackers.json").read_text()) == {"wandb": {"run_id": name, "step": 6}}
    steps = [step for folder in folders for step in history(next(folder.glob("*.wandb")))]
    assert steps == [(step, 1 / step) for step in range(1, 7)]


def history(file: Path) -> list[tuple[int, float]]:
    """Return step and loss of each record of an offline run."""
    records = import_module("wandb.proto.wandb_internal_pb2")
    found = []
    for content in records_of(file.read_bytes()):
        record = records.Record.FromString(content)
        if record.HasField("history"):
            items = {item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
            found.append((record.history.step.num, items["loss"]))
    return found


def records_of(log: bytes) -> Iterator[bytes]:
    """Yield the records of a log in LevelDB's format, whose blocks of 32 KiB cut long records into fragments."""
    position, record = 7, b""  # after the header of the file
    while position + 7 < len(log):
        left = 32768 - position % 32768
        if left < 7:  # the rest of a block that holds no header
            position += left
            continue
        size, kind = struct.unpack("<HB", log[position + 4 : position + 7])
        record += log[position + 7 : position + 7 + size]
        position += 7 + size
        if kind in (1, 4):  # a whole record, or its last fragment
            yield record
            record = b""
