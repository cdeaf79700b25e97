import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from gambeson.engine.interruption import Interrupted, signals

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@pytest.fixture
def obeyed() -> Iterator[list[int]]:
    """The signals that reach the handlers which were there before."""
    seen: list[int] = []
    old = [(s, signal.signal(s, lambda signum, frame: seen.append(signum))) for s in SIGNALS]
    yield seen
    for s, handler in old:
        signal.signal(s, handler)


@pytest.fixture
def foreground() -> Iterator[None]:
    """Python's own handler of SIGINT, which a shell's background job does not begin with."""
    old = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, old)


def send(signum: int) -> None:
    os.kill(os.getpid(), signum)


def handlers() -> list[Any]:
    return [signal.getsignal(s) for s in SIGNALS]


@pytest.mark.parametrize("signum", SIGNALS)
def test_a_signal_is_collected_and_not_obeyed(signum: int, obeyed: list[int]) -> None:
    with signals() as caught:
        assert caught == []
        send(signum)
        assert caught == [signum]
    assert obeyed == []


def test_both_signals_are_collected_in_their_order(obeyed: list[int]) -> None:
    with signals() as caught:
        send(signal.SIGTERM)
        send(signal.SIGINT)
    assert caught == [signal.SIGTERM, signal.SIGINT]
    assert obeyed == []


@pytest.mark.parametrize("signum", SIGNALS)
def test_a_second_signal_is_obeyed(signum: int, obeyed: list[int]) -> None:
    with signals() as caught:
        send(signum)
        send(signum)
        send(signum)
    assert caught == [signum]
    assert obeyed == [signum, signum]


@pytest.mark.usefixtures("foreground")
def test_a_second_ctrl_c_interrupts() -> None:
    def twice() -> None:
        with signals():
            send(signal.SIGINT)
            send(signal.SIGINT)

    before = handlers()
    with pytest.raises(KeyboardInterrupt):
        twice()
    assert handlers() == before


@pytest.mark.parametrize("signum", SIGNALS)
def test_a_second_signal_ends_the_process(signum: int) -> None:
    """In a process of its own, with the handlers that Python begins with."""
    code = f"""
import os, signal
from gambeson.engine.interruption import signals
signal.signal(signal.SIGINT, signal.default_int_handler)
with signals() as caught:
    os.kill(os.getpid(), {int(signum)})
    print("first", caught, flush=True)
    os.kill(os.getpid(), {int(signum)})
    print("second", flush=True)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == f"first [{int(signum)}]\n"
    assert done.returncode == -signum


@pytest.mark.parametrize("sent", [[], [signal.SIGINT], [signal.SIGTERM, signal.SIGTERM]], ids=str)
def test_the_handlers_come_back(sent: list[int], obeyed: list[int]) -> None:
    before = handlers()
    with signals():
        assert all(a is not b for a, b in zip(handlers(), before, strict=True))
        for signum in sent:
            send(signum)
    assert handlers() == before


def test_the_handlers_come_back_after_an_error(obeyed: list[int]) -> None:
    before = handlers()
    with pytest.raises(ZeroDivisionError), signals():
        raise ZeroDivisionError
    assert handlers() == before
    send(signal.SIGTERM)
    assert obeyed == [signal.SIGTERM]


def in_a_thread(work: Callable[[], Any]) -> Any:
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(work()))
    thread.start()
    thread.join()
    return found[0]


def test_other_threads_leave_the_signals_alone(obeyed: list[int]) -> None:
    before = handlers()

    def work() -> Any:
        with signals() as caught:
            return list(caught), handlers()

    assert in_a_thread(work) == ([], before)
    assert handlers() == before


def test_what_was_interrupted_says_by_what_and_where() -> None:
    stopped = Interrupted(signal.SIGTERM, 7)
    assert str(stopped) == "stopped by SIGTERM after step 7"
    assert (stopped.signum, stopped.step) == (signal.SIGTERM, 7)
    assert Interrupted(2, 0).args == ("stopped by SIGINT after step 0",)
