"""The facts about runs as Prometheus reads them; a scrape reads the files of the runs anew."""

from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Final

from infra.errors import UserError
from infra.extras import require_extra
from infra.log import say
from infra.signals import sigterm_interrupts
from ssl_core.pretraining.run_facts import RunFacts, facts_of, find_runs

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

# Name of a gauge: its help, and what it shows of a run.
_GAUGES: Final[dict[str, tuple[str, Callable[[RunFacts], float | None]]]] = {
    "sternum_checkpoint_step": ("step of the last finished checkpoint", lambda run: run.checkpoint),
    "sternum_restarts": ("starts after the first", lambda run: run.restarts),
    "sternum_last_sign_seconds": ("time of the last sign of life, since 1970", lambda run: run.seen_s),
    "sternum_damaged_files": ("notes about damaged files and errors", lambda run: len(run.notes)),
}


def serve(folder: Path, port: int, host: str) -> int:
    """Answer scrapes until Ctrl-C or SIGTERM.

    Raises:
        UserError: if the port cannot be opened
    """
    require_extra("prometheus", "sternum runs --port")
    from prometheus_client import CollectorRegistry, start_http_server  # noqa: PLC0415

    registry = CollectorRegistry()
    registry.register(RunCollector(folder))
    try:
        start_http_server(port, host, registry)
    except OSError as error:
        raise UserError(f"host={host}, port={port}: {error.strerror}; choose a free port of this machine") from error
    say(f"serving the runs below {folder} at http://{host}:{port}/metrics")
    with sigterm_interrupts():
        Event().wait()
    return 0


class RunCollector:
    """Reads the runs below a folder at each scrape."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def collect(self) -> "Iterator[Metric]":
        """Yield the gauges of all runs; `run` is the path below the folder."""
        from prometheus_client.core import GaugeMetricFamily  # noqa: PLC0415

        runs = {self._name(path): facts_of(path) for path in find_runs(self._folder)}
        state = GaugeMetricFamily("sternum_run_state", "1 for the state of the run", labels=["run", "state"])
        metric = GaugeMetricFamily("sternum_metric", "the last line of metrics.jsonl", labels=["run", "name"])
        for name, run in runs.items():
            state.add_metric([name, run.state], 1)
            for key, value in run.metrics.items():
                metric.add_metric([name, key], float("nan") if value is None else value)
        yield from (state, metric)
        for gauge, (text, value_of) in _GAUGES.items():
            family = GaugeMetricFamily(gauge, text, labels=["run"])
            for name, run in runs.items():
                if (shown := value_of(run)) is not None:
                    family.add_metric([name], shown)
            yield family

    def _name(self, path: Path) -> str:
        return path.name if path == self._folder else str(path.relative_to(self._folder))
