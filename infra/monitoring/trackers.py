"""Experiment trackers that receive a run's metrics besides its folder: Weights & Biases and MLflow.

A tracker is a convenience, so nothing about it may delay or end a run: its calls are made in a background thread, and
its first error ends it with one warning. It gets each step once, also if a resumed run makes the step again, because
`trackers.json` in the run folder names the tracker's run and the last step that it has.
"""

import os
import re
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, wait
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from pathlib import Path
from secrets import token_hex
from types import TracebackType
from typing import Any, Final, Protocol

from requests.utils import get_netrc_auth

from infra.configuration.options import key, setting
from infra.errors import require
from infra.extras import Extra, require_extra
from infra.log import say
from infra.parallel.background import Background
from infra.storage.files import write_atomic
from infra.storage.json_files import BadJson, encode_json, read_json
from infra.urls import require_no_credentials, scheme_of, scrub

_STATE: Final = "trackers.json"
_PROJECT: Final = re.compile(r"[\w.-]+(/[\w.-]+)?")
_STORES: Final = ("http", "https", "sqlite")  # MLflow has given up its store in a folder
_EXPERIMENT: Final = "sternum"
_LAST_WORDS_S: Final = 20.0  # for what is still to be sent when the run ends; a stop signal leaves little time
_AFTER_AN_ERROR_S: Final = 3.0  # other ranks wait for the end of this one
_MOST_PARAMETERS: Final = 100  # in one call of MLflow


@dataclass(frozen=True)
class LogConfig:
    """Experiment trackers that receive the metrics too.

    Args:
        wandb: project of Weights & Biases, as PROJECT or ENTITY/PROJECT; without a login or with WANDB_MODE=offline the
            metrics wait in RUN/wandb for `wandb sync`
        mlflow: tracking store of MLflow: the URL of a server, or sqlite:///FILE
    """

    wandb: str | None = None
    mlflow: str | None = None

    def __post_init__(self) -> None:
        if self.wandb is not None:
            require(
                _PROJECT.fullmatch(self.wandb) is not None,
                f"{key(self, 'wandb')} must be PROJECT or ENTITY/PROJECT, of letters, digits, dots, hyphens and "
                f"underscores; try {key(self, 'wandb')}=chest",
            )
        if self.mlflow is not None:
            require_no_credentials(self.mlflow, key(self, "mlflow"))
            require(
                scheme_of(self.mlflow) in _STORES,
                f"{setting(self, 'mlflow')} must be the URL of a server or sqlite:///FILE; try "
                f"{key(self, 'mlflow')}=sqlite:///mlflow.db",
            )

    def require_installed(self) -> None:
        """Raise UserError if the package of a chosen tracker is missing."""
        chosen: dict[Extra, str | None] = {"wandb": self.wandb, "mlflow": self.mlflow}
        for extra, value in chosen.items():
            if value is not None:
                require_extra(extra, setting(self, extra), instead="leave it out")


class Tracker(Protocol):
    """A run in an experiment tracker.

    Attributes:
        run_id: the tracker's name of the run
    """

    run_id: str

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Record numbers by tag at a step."""

    def close(self) -> None:
        """Send what is left."""


@dataclass(frozen=True)
class _Sent:
    """What a tracker has of a run: its own name of the run, empty for a new one, and the last step."""

    run_id: str = ""
    step: int = 0


class Trackers:
    """The trackers of a run, all fed by one background thread."""

    def __init__(self, run: Path, config: LogConfig, settings: Mapping[str, Any]) -> None:
        """Begin to open the trackers.

        Args:
            run: the run folder
            config: which trackers
            settings: the configuration of the run by flat key, to show beside its metrics
        """
        self._path = run / _STATE
        try:
            self._sent = read_json(self._path, dict[str, _Sent])
        except (FileNotFoundError, BadJson):
            self._sent = {}
        self._trackers: dict[str, Tracker] = {}
        self._thread = Background(1, "trackers")
        self._calls: list[Future[None]] = []
        self._names: list[str] = []
        kinds: list[tuple[str, str | None, Callable[..., Tracker]]] = [
            ("wandb", config.wandb, _Wandb),
            ("mlflow", config.mlflow, _Mlflow),
        ]
        for name, where, kind in kinds:
            if where is not None:
                self._names.append(name)
                self._call(name, partial(self._open, kind, where, run, settings))

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Send numbers by tag at a step."""
        for name in list(self._names):
            self._call(name, partial(self._log, step, values))

    def close(self, wait_s: float = _LAST_WORDS_S) -> None:
        """Wait until everything is sent, but not longer than `wait_s` seconds."""
        for name in list(self._names):
            self._call(name, lambda name: self._trackers.pop(name).close())
        _, late = wait(self._calls, wait_s)
        self._thread.close()
        if late:
            say(f"warning: trackers did not answer for {wait_s:g} s, so they lack the last metrics")

    def __enter__(self) -> "Trackers":
        return self

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(_LAST_WORDS_S if error is None else _AFTER_AN_ERROR_S)

    def _call(self, name: str, action: Callable[[str], None]) -> None:
        def carefully() -> None:
            if name not in self._names:  # it has failed
                return
            try:
                action(name)
            except Exception as error:  # whatever it is, the run goes on
                self._names.remove(name)
                reason = scrub(" ".join(str(error).split()))[:200] or type(error).__name__
                say(f"warning: {name} gets no more metrics from this start: {reason}; metrics.jsonl has them")

        self._calls = [call for call in self._calls if not call.done()]
        self._calls.append(self._thread.submit(carefully))

    def _open(
        self, kind: Callable[..., Tracker], where: str, run: Path, settings: Mapping[str, Any], name: str
    ) -> None:
        sent = self._sent.get(name, _Sent())
        tracker = self._trackers[name] = kind(run, where, settings, sent.run_id)
        self._note(name, replace(sent, run_id=tracker.run_id))

    def _log(self, step: int, values: Mapping[str, float], name: str) -> None:
        if step > self._sent[name].step:
            self._trackers[name].log(step, values)
            self._note(name, replace(self._sent[name], step=step))

    def _note(self, name: str, sent: _Sent) -> None:
        self._sent[name] = sent
        write_atomic(self._path, encode_json(self._sent))


class _Wandb:
    """A run of Weights & Biases."""

    def __init__(self, run: Path, project: str, settings: Mapping[str, Any], run_id: str) -> None:
        wandb = import_module("wandb")
        entity, _, name = project.rpartition("/")
        mode = os.environ.get("WANDB_MODE", "online" if _has_wandb_login() else "offline")
        self.run_id = run_id or token_hex(4)
        self._run = wandb.init(
            project=name,
            entity=entity or None,
            dir=run,
            id=self.run_id,
            name=run.name,
            config={**settings},
            mode=mode,
            resume="allow" if mode == "online" else None,
            settings=wandb.Settings(console="off", silent=True, disable_git=True, disable_code=True),
        )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log({**values}, step=step)

    def close(self) -> None:
        self._run.finish()


def _has_wandb_login() -> bool:
    """Return whether the client will find a login; without one it would ask on the terminal."""
    server = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")
    return bool(os.environ.get("WANDB_API_KEY") or get_netrc_auth(server))


class _Mlflow:
    """A run of MLflow."""

    def __init__(self, run: Path, store: str, settings: Mapping[str, Any], run_id: str) -> None:
        self._entities = import_module("mlflow.entities")
        self._client = import_module("mlflow").MlflowClient(tracking_uri=store)
        if run_id:
            self._client.update_run(run_id, status="RUNNING")
        else:
            known = self._client.get_experiment_by_name(_EXPERIMENT)
            experiment = known.experiment_id if known else self._client.create_experiment(_EXPERIMENT)
            run_id = self._client.create_run(experiment, run_name=run.name).info.run_id
            parameters = [self._entities.Param(name, str(value)) for name, value in settings.items()]
            for start in range(0, len(parameters), _MOST_PARAMETERS):
                self._client.log_batch(run_id, params=parameters[start : start + _MOST_PARAMETERS])
        self.run_id = run_id

    def log(self, step: int, values: Mapping[str, float]) -> None:
        now_ms = int(time.time() * 1000)
        metrics = [self._entities.Metric(name, float(value), now_ms, step) for name, value in values.items()]
        self._client.log_batch(self.run_id, metrics=metrics)

    def close(self) -> None:
        self._client.set_terminated(self.run_id)
