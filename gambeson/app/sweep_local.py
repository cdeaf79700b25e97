"""A sweep on this machine: so many commands at a time, each a process group of its own with a log."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from gambeson.app.sweep_board import Board
from gambeson.app.sweep_jobs import environment, is_done, last_line, next_command
from gambeson.app.sweep_plan import Job, Plan
from gambeson.core.errors import GambesonError

COMMAND = (sys.executable, "-m", "gambeson")
"""How the commands are called."""
POLL = 0.1
"""Seconds between looks at the processes."""


@dataclass
class Process:
    """A command of a job that is running."""

    job: Job
    device: str | None
    words: list[str]
    began: float
    handle: subprocess.Popen[bytes]

    def send(self, signum: int) -> None:
        """Send a signal to the command and what it started."""
        if self.handle.poll() is not None:
            return
        if os.name == "posix":
            os.killpg(self.handle.pid, signum)
        else:
            self.handle.terminate()


@dataclass
class Outcome:
    """What has become of the jobs.

    Attributes:
        done: Complete.
        failed: Why, by job.
        stopped: Running when the sweep was told to stop.
        signum: The signal that told it.
    """

    done: list[Job] = field(default_factory=list)
    failed: dict[Job, str] = field(default_factory=dict)
    stopped: list[Job] = field(default_factory=list)
    signum: int | None = None


def start(job: Job, plan: Plan, words: Sequence[str], device: str | None = None) -> Process:
    """Start a command of a job, its output appended to the job's log."""
    words = [*words, *(["--device", device] if device else [])]
    with open(job.log, "a") as log:
        print("$ gambeson", shlex.join(words), file=log, flush=True)
        handle = subprocess.Popen(
            [*COMMAND, *words],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment(plan),
            start_new_session=True,  # a Ctrl-C in the terminal reaches the sweep alone, which passes it on once
        )
    return Process(job, device, list(words), time.monotonic(), handle)


def ended(process: Process, plan: Plan) -> str | None:
    """Why a command that has ended is a failure, in words; None where it is none."""
    code = process.handle.returncode
    if code == 0:
        following = next_command(process.job, plan)
        if following is not None and following[0] == ("resume" if process.words[0] in FIRST else process.words[0]):
            missing = "corruptions" if following[0] == "corruptions" else f"accuracy under {plan.attack}"
            return f"{process.words[0]} ended without error, and left no {missing}; see {process.job.log}"
        return None
    how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    said = last_line(process.job.log)
    return f"{how}: {said}" if said else how


FIRST = ("train", "finetune", "resume")


def carry_out(plan: Plan, slots: int, devices: Sequence[str], board: Board) -> Outcome:
    """Run what is missing of a plan.

    A job whose base has failed fails too; the others go on. On SIGINT, SIGTERM or SIGHUP the commands are asked to
    save and stop; on a second signal they are killed.

    Args:
        plan: The plan.
        slots: Commands at a time.
        devices: Devices that are handed out, the one that is used least first; nothing leaves it to the rows.
        board: Shows where everything is.
    """
    outcome = Outcome(done=[job for job in plan.jobs if is_done(job, plan)])
    waiting = [job for job in plan.jobs if job not in outcome.done]
    running: list[Process] = []
    with _collected() as caught:
        try:
            board.begin(outcome, waiting, running)
            while waiting or running:
                if caught and outcome.signum is None:
                    outcome.signum = caught[0]
                    outcome.stopped = [process.job for process in running]
                    waiting.clear()
                    board.stopping(caught[0], len(running))
                    for process in running:
                        process.send(signal.SIGINT if caught[0] == signal.SIGINT else signal.SIGTERM)
                if len(caught) > 1:
                    break
                for process in [one for one in running if one.handle.poll() is not None]:
                    running.remove(process)
                    _after(process, plan, outcome, running, board)
                _fail_followers(plan, waiting, outcome, board)
                ready = [job for job in waiting if _is_ready(job, plan, outcome)]
                for job in ready[: max(0, slots - len(running))]:
                    waiting.remove(job)
                    _begin(job, plan, outcome, running, devices, board)
                board.look()
                time.sleep(POLL)
        finally:
            for process in running:  # a second signal, or a fault of the sweep: nothing is left behind
                process.send(signal.SIGKILL if len(caught) > 1 else signal.SIGTERM)
            for process in running:
                process.handle.wait()
    return outcome


def _is_ready(job: Job, plan: Plan, outcome: Outcome) -> bool:
    return job.base is None or any(other.path == job.base for other in outcome.done)


def _fail_followers(plan: Plan, waiting: list[Job], outcome: Outcome, board: Board) -> None:
    """Give up what starts from a run that has failed."""
    broken = {job.path for job in outcome.failed}
    for job in [job for job in waiting if job.base in broken]:
        waiting.remove(job)
        outcome.failed[job] = f"it starts from {job.base}, which failed"
        board.failed(job, outcome.failed[job])


def _begin(
    job: Job, plan: Plan, outcome: Outcome, running: list[Process], devices: Sequence[str], board: Board
) -> None:
    """Start what a job needs next, on the device that is used least."""
    words = next_command(job, plan)
    if words is None:
        outcome.done.append(job)
        return
    used = [process.device for process in running]
    device = min(devices, key=used.count) if devices else None
    try:
        running.append(start(job, plan, words, device))
    except OSError as error:
        outcome.failed[job] = f"cannot be started: {error}"
        board.failed(job, outcome.failed[job])
        return
    board.started(running[-1])


def _after(process: Process, plan: Plan, outcome: Outcome, running: list[Process], board: Board) -> None:
    """What follows the end of a command: the job's next one, its end, or its failure."""
    job = process.job
    try:
        wrong = ended(process, plan)
        following = None if wrong else next_command(job, plan)
    except GambesonError as error:  # the run directory cannot be read
        wrong, following = error.message, None
    if outcome.signum is not None:
        if not wrong and following is None:
            outcome.stopped.remove(job)
            outcome.done.append(job)
        return
    if wrong:
        outcome.failed[job] = wrong
        board.failed(job, wrong)
    elif following is None:
        outcome.done.append(job)
        board.done(process)
    else:
        running.append(start(job, plan, following, process.device))


@contextmanager
def _collected() -> Iterator[list[int]]:
    """Collect the signals that ask for an end, every one of them; in another thread than the main one, none."""
    caught: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield caught
        return

    def remember(signum: int, frame: Any) -> None:
        caught.append(signum)

    wanted = [signal.SIGINT, signal.SIGTERM, *filter(None, [getattr(signal, "SIGHUP", None)])]
    kept = [signum for signum in wanted if signal.getsignal(signum) != signal.SIG_IGN]  # `nohup` stays so
    old = {signum: signal.signal(signum, remember) for signum in kept}
    try:
        yield caught
    finally:
        for signum, handler in old.items():
            if handler is not None:  # set outside Python: cannot be put back from here
                signal.signal(signum, handler)
