"""Off a terminal: a plain line now and then that says how far a long command is, where a bar cannot be drawn."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from gambeson.evaluation import Pace

SECONDS = 30.0
"""Between two lines."""


@contextmanager
def heartbeat(say: Callable[[str], None], describe: Callable[[], str | None]) -> Iterator[None]:
    """Inside the block, say every `SECONDS` what `describe` returns and for how long it has been going on.

    A thread says it, since there is work that reports nothing for minutes. What ends sooner says nothing.

    Args:
        say: Prints a line.
        describe: How far the work is; None where there is nothing to say.
    """
    over = threading.Event()
    began = time.monotonic()

    def beat() -> None:
        while not over.wait(SECONDS):
            words = describe()
            if words is None:
                continue
            try:
                say(f"{words}; {duration(time.monotonic() - began)} in all")
            except OSError:  # nobody reads any more; whoever prints the result will find out
                return

    thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def reached(bar: Progress) -> str | None:
    """How far the task of a progress bar is, in words; None before there is one."""
    task = next((task for task in bar.tasks if not task.finished), None)
    if task is None:
        return None
    counted = "" if task.total is None else f"{task.completed:,.0f} of {task.total:,.0f}"
    note = task.fields.get("note") or counted
    return f"{task.description}: {note}" if note else task.description


def attack_pace(bar: Progress, task: TaskID, pace: Pace) -> None:
    """Name the running attack of an ensemble beside the bar, and off a terminal how far it is too."""
    of = f" of at most {pace.most:,}" if 0 < pace.steps <= pace.most else ""  # falls that are taken back may add a few
    note = f"step {pace.steps:,}{of}, through with {pace.through:,} of {pace.standing:,} images, {pace.fell:,} fell"
    name = pace.ensemble if pace.ensemble == pace.attack else f"{pace.ensemble} {pace.attack}"
    bar.update(task, description=name, note=note)


def duration(seconds: float) -> str:
    """A time in words, to the second below an hour.

    Examples:
        >>> duration(42.4), duration(150), duration(3600 * 2 + 61)
        ('42 s', '2 min 30 s', '2 h 1 min')
    """
    minutes, left = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {left} s" if minutes else f"{left} s"
