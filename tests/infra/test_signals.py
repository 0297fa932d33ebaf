import os
import signal

import pytest

from infra.signals import STOP_SIGNALS, StopRequest, handle_signals


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_stop_signal_is_noted_and_the_process_lives_on(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with StopRequest() as stop:
        names = [stop.name]
        os.kill(os.getpid(), number)
        names.append(stop.name)
    assert names == [None, number.name]
    assert signal.getsignal(number) is before


def test_handlers_are_replaced_within_the_block_only() -> None:
    received: list[signal.Signals] = []
    before = signal.getsignal(signal.SIGUSR1)
    with handle_signals([signal.SIGUSR1], received.append):
        os.kill(os.getpid(), signal.SIGUSR1)
    assert received == [signal.SIGUSR1]
    assert signal.getsignal(signal.SIGUSR1) is before
