"""Signals during training: collected, so that the state can be saved before the process ends."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Interrupted(Exception):  # noqa: N818 (not an error: the run was asked to stop, and did)
    """Training stopped on a signal, after saving.

    Attributes:
        signum: The signal.
        step: Steps done and saved.
    """

    def __init__(self, signum: int, step: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name} after step {step}")
        self.signum, self.step = signum, step


@contextmanager
def signals() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM instead of dying of them; a second of a kind is obeyed at once. Main thread only."""
    caught: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield caught
        return
    old = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}

    def remember(signum: int, frame: Any) -> None:
        caught.append(signum)
        signal.signal(signum, old[signal.Signals(signum)] or signal.SIG_DFL)

    for s in old:
        signal.signal(s, remember)
    try:
        yield caught
    finally:
        for s, handler in old.items():
            if handler is not None:  # set outside Python: cannot be put back from here
                signal.signal(s, handler)
