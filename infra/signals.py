"""Signals that ask a process to stop: noted when they come, obeyed where the work can be left and taken up again."""

import signal
from types import FrameType, TracebackType
from typing import Any, Final

STOP_SIGNALS: Final = (signal.SIGTERM, signal.SIGUSR1)  # what SLURM, Kubernetes and torchrun send before they kill


class StopRequest:
    """While this context is entered, a stop signal does not end the process: `name` says which one came, or None.

    Handlers belong to the main thread; entering it in another one raises ValueError.
    """

    def __init__(self) -> None:
        self.name: str | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "StopRequest":
        self._before = {number: signal.signal(number, self._note) for number in STOP_SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.name = signal.Signals(number).name
