import os
import signal
import subprocess
import sys
from typing import Any

import pytest

from infra.signals import STOP_SIGNALS, StopRequest, Terminated, handle_signals, sigterm_interrupts


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_stop_signal_is_noted_and_the_process_lives_on(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with StopRequest() as stop:
        names = [stop.name]
        os.kill(os.getpid(), number)
        names.append(stop.name)
    assert names == [None, number.name]
    assert signal.getsignal(number) is before


CTRL_C = """
import os, signal, sys, time
from infra.signals import StopRequest
with StopRequest() as stop:
    os.kill(os.getpid(), signal.SIGINT)
    print(stop.name, flush=True)
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(60)
"""


def test_a_second_ctrl_c_ends_the_process_at_once() -> None:
    done = subprocess.run([sys.executable, "-c", CTRL_C], capture_output=True, text=True, check=False, timeout=30)
    assert done.returncode == -signal.SIGINT
    assert done.stdout == "SIGINT\n"
    assert (
        done.stderr.strip() == "sternum: saving a checkpoint after this step, then stopping; Ctrl-C again ends at once"
    )


def test_handlers_are_replaced_within_the_block_only() -> None:
    received: list[signal.Signals] = []
    before = signal.getsignal(signal.SIGUSR1)
    with handle_signals([signal.SIGUSR1], received.append):
        os.kill(os.getpid(), signal.SIGUSR1)
    assert received == [signal.SIGUSR1]
    assert signal.getsignal(signal.SIGUSR1) is before


@pytest.mark.parametrize("on_interrupt", [signal.default_int_handler, signal.SIG_IGN], ids=["", "Ctrl-C is ignored"])
def test_sigterm_interrupts_and_is_told_apart_from_ctrl_c(on_interrupt: Any) -> None:
    before = signal.getsignal(signal.SIGTERM), signal.signal(signal.SIGINT, on_interrupt)
    try:
        with pytest.raises(Terminated), sigterm_interrupts():
            os.kill(os.getpid(), signal.SIGTERM)
        assert signal.getsignal(signal.SIGTERM) is before[0]
        signal.signal(signal.SIGINT, signal.default_int_handler)
        with pytest.raises(KeyboardInterrupt) as caught, sigterm_interrupts():
            os.kill(os.getpid(), signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before[1])
    assert caught.type is KeyboardInterrupt


def test_sigterm_takes_the_way_that_a_library_gave_to_ctrl_c() -> None:
    received = []
    before = signal.signal(signal.SIGINT, lambda number, frame: received.append(number))
    try:
        with sigterm_interrupts():
            os.kill(os.getpid(), signal.SIGTERM)
    finally:
        signal.signal(signal.SIGINT, before)
    assert received == [signal.SIGINT]
