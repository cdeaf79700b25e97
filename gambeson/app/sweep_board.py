"""What a sweep shows while it runs: live lines on a terminal, a line per event and now and then one elsewhere."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from rich.live import Live
from rich.markup import escape
from rich.text import Text

from gambeson.app import show
from gambeson.app.heartbeat import duration, heartbeat
from gambeson.app.sweep_jobs import state
from gambeson.app.sweep_plan import Job, Plan

if TYPE_CHECKING:
    from gambeson.app.sweep_local import Outcome, Process

LOOK = 1.0
"""Seconds between looks at where the runs are, on a terminal."""


class Board:
    """The state of a sweep in words, on standard error.

    Args:
        plan: The sweep.
        live: The lines that are replaced, on a terminal.
        quiet: Say nothing but failures.
    """

    def __init__(self, plan: Plan, live: Live | None = None, quiet: bool = False) -> None:
        self.plan, self.live, self.quiet = plan, live, quiet
        self.outcome: Outcome | None = None
        self.waiting: list[Job] = []
        self.running: list[Process] = []
        self.looked = 0.0

    def begin(self, outcome: Outcome, waiting: list[Job], running: list[Process]) -> None:
        """Say what is there already; the lists are looked at from now on."""
        self.outcome, self.waiting, self.running = outcome, waiting, running
        if outcome.done and waiting:
            self.say(f"{len(outcome.done)} of {len(self.plan.jobs)} runs are there already")

    def started(self, process: Process) -> None:
        """A command of a job begins."""
        where = f" on {process.device}" if process.device else ""
        how = "going on with" if process.words[0] == "resume" else "started"
        self.say(f"{how} {process.job.name}{where}: {process.job.path}")

    def done(self, process: Process) -> None:
        """A job has everything."""
        self.say(f"done {process.job.name} {self._counted()}")

    def failed(self, job: Job, why: str) -> None:
        """A job has failed."""
        show.err.print(f"[bold red]failed[/bold red] {escape(job.name)}: {escape(why)}", soft_wrap=True)

    def stopping(self, signum: int, count: int) -> None:
        """The commands were asked to stop."""
        runs = "1 run saves and stops" if count == 1 else f"{count} runs save and stop"
        self.say(f"{signal.Signals(signum).name}: {runs}; a second one kills")

    def look(self) -> None:
        """On a terminal, show where everything is, once a second."""
        if self.live is not None and time.monotonic() - self.looked >= LOOK:
            self.looked = time.monotonic()
            self.live.update(Text("\n".join([self._counts(), *self._places()])))

    def describe(self) -> str | None:
        """Where everything is, in a line."""
        return "; ".join([self._counts(), *map(str.strip, self._places())]) if self.running else None

    def say(self, line: str) -> None:
        """Print a line."""
        if not self.quiet:
            show.err.print(escape(line), soft_wrap=True)

    def _counted(self) -> str:
        return f"({len(self.outcome.done) if self.outcome else 0} of {len(self.plan.jobs)})"

    def _counts(self) -> str:
        done, failed = (0, 0) if self.outcome is None else (len(self.outcome.done), len(self.outcome.failed))
        counts = {"done": done, "failed": failed, "running": len(self.running), "waiting": len(self.waiting)}
        said = ", ".join(f"{count} {name}" for name, count in counts.items() if count or name in ("done", "running"))
        return f"{len(self.plan.jobs)} runs: {said}"

    def _places(self) -> list[str]:
        lines = []
        for process in list(self.running):
            passed = duration(time.monotonic() - process.began)
            where = f", {process.device}" if process.device else ""
            what = "corruptions" if process.words[0] == "corruptions" else state(process.job, self.plan)
            what = {"not begun": "starting", "done": "ending"}.get(what, what)
            lines.append(f"  {process.job.name}: {what} ({passed}{where})")
        return lines


@contextmanager
def board(plan: Plan, quiet: bool = False) -> Iterator[Board]:
    """A board for a sweep.

    Args:
        plan: The sweep.
        quiet: Say nothing but failures.
    """
    with ExitStack() as stack:
        live = None
        if show.err.is_terminal and not quiet:
            live = stack.enter_context(Live(console=show.err, transient=True, auto_refresh=True, refresh_per_second=4))
        found = Board(plan, live, quiet)
        if live is None and not quiet:
            stack.enter_context(heartbeat(found.say, found.describe))
        yield found
