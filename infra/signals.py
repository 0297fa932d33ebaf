"""Handlers for signals that ask a process to stop."""

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType, TracebackType
from typing import Any, Final

# SLURM, Kubernetes and torchrun send the first two before they kill; Ctrl-C sends SIGINT.
STOP_SIGNALS: Final = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)

_CTRL_C: Final = "\nsternum: saving a checkpoint after this step, then stopping; Ctrl-C again ends at once\n"


@contextmanager
def handle_signals(numbers: Sequence[signal.Signals], handle: Callable[[signal.Signals], object]) -> Iterator[None]:
    """Call `handle` for each of these signals within the block, in place of the current handlers.

    Args:
        numbers: the signals
        handle: called in the main thread with the received signal

    Raises:
        ValueError: outside the main thread, the only one that can set handlers
    """

    def on_signal(number: int, frame: FrameType | None) -> None:
        handle(signal.Signals(number))

    before: dict[signal.Signals, Any] = {number: signal.signal(number, on_signal) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Terminated(KeyboardInterrupt):
    """SIGTERM, where it has the effect of Ctrl-C."""


@contextmanager
def sigterm_interrupts() -> Iterator[None]:
    """Let SIGTERM do within the block what Ctrl-C does, so that everything is cleaned up.

    Raises:
        Terminated: instead of the KeyboardInterrupt that follows
    """
    received: list[signal.Signals] = []

    def interrupt(number: signal.Signals) -> None:
        received.append(number)
        on_interrupt = signal.getsignal(signal.SIGINT)
        if not callable(on_interrupt):  # Ctrl-C is ignored, as in the background job of a script
            raise KeyboardInterrupt
        on_interrupt(signal.SIGINT, None)

    with handle_signals([signal.SIGTERM], interrupt):
        try:
            yield
        except KeyboardInterrupt as error:
            if received:
                raise Terminated from error
            raise


class StopRequest:
    """A context in which a stop signal is recorded instead of ending the process.

    Pretraining reads it after each step: all ranks save a checkpoint and stop at the same step. A second SIGINT ends
    the process at once, like SIGKILL: whoever presses Ctrl-C again does not want to wait for a step or a slow disk.

    Attributes:
        name: the last stop signal received, such as "SIGTERM"; None if there was none
    """

    def __init__(self, *, speak: bool = True) -> None:
        """Prepare the handlers.

        Args:
            speak: whether this process tells a person who presses Ctrl-C what happens now
        """
        self.name: str | None = None
        self._speak = speak
        self._handlers = handle_signals(STOP_SIGNALS, self._note)

    def __enter__(self) -> "StopRequest":
        self._handlers.__enter__()
        return self

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._handlers.__exit__(error_type, error, trace)

    def _note(self, number: signal.Signals) -> None:
        self.name = number.name
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            if self._speak:
                with suppress(OSError):  # straight to the descriptor, because this may have interrupted a print
                    os.write(2, _CTRL_C.encode())
