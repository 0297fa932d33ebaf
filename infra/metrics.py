"""A run's numbers, written twice: `metrics.jsonl` for programs, TensorBoard events for people."""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from torch.utils.tensorboard import SummaryWriter

from infra.files import disk_errors, write_atomic


class MetricsWriter:
    """Append scalars to `folder/metrics.jsonl` and to TensorBoard events under `folder/events`.

    A resumed run says how many steps its checkpoint has done: lines and events of later steps, which the interrupted
    run wrote before it ended, are dropped, so that every step stands there once.
    """

    def __init__(self, folder: Path, steps_done: int = 0) -> None:
        self.path = folder / "metrics.jsonl"
        kept = [line for line in read_metrics(folder) if line["step"] <= steps_done]
        write_atomic(self.path, "".join(json.dumps(line) + "\n" for line in kept))
        with disk_errors(self.path):
            self._file = self.path.open("a", buffering=1)
            self.events = SummaryWriter(folder / "events", purge_step=steps_done + 1)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Record `values` (name -> number, names with units such as `speed/images_per_s`) at a step."""
        with disk_errors(self.path):
            self._file.write(json.dumps({"step": step, "time_s": round(time.time(), 3), **values}) + "\n")
        for name, value in values.items():
            self.events.add_scalar(name, value, step)

    def __enter__(self) -> "MetricsWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        self.events.close()


def read_metrics(folder: Path) -> list[dict[str, float]]:
    """Return the lines of `folder/metrics.jsonl`, oldest first; a last line cut off by a crash is left out."""
    path = folder / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    values = []
    for number, line in enumerate(lines):
        try:
            values.append(json.loads(line))
        except json.JSONDecodeError:
            if number != len(lines) - 1:
                raise
    return values
