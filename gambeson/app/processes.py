"""Several processes for one command, as `torchrun` starts them."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

PATIENCE = 10.0
"""Seconds in which a process waits for the first one to say the same error."""
SAID = "gambeson/said"
"""Key of torchrun's store: what the first process has said."""


def several() -> int:
    """How many processes `torchrun` has started for this command; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def require_one(what: str) -> None:
    """Refuse several processes, which would do the same work side by side.

    Raises:
        UsageError: `torchrun` has started several.
    """
    if several() > 1:
        from gambeson.app.parsing import UsageError

        raise UsageError(
            f"{what} works in one process, and torchrun has started {several()}",
            hint="start it without torchrun; train, resume and evaluate share their work",
        )


@contextmanager
def together(device: str) -> Iterator[tuple[int, str]]:
    """Join the process group that `torchrun` has prepared; without it, work alone.

    Args:
        device: `auto`, or a device; `auto` and `cuda` become the process's own GPU.

    Yields:
        The rank and the device.
    """
    if several() < 2:
        yield 0, device
        return
    import torch

    if device in ("auto", "cuda") and torch.cuda.is_available():
        device = f"cuda:{int(os.environ.get('LOCAL_RANK', '0')) % torch.cuda.device_count()}"
    cuda = device.startswith("cuda")
    if cuda:
        torch.cuda.set_device(device)
    torch.distributed.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo")
    try:
        yield torch.distributed.get_rank(), device
    finally:
        torch.distributed.destroy_process_group()


def say_once(words: str, say: Callable[[str], None]) -> None:
    """Say an error that all processes may have met: the first says it, and another only where the first said no such.

    They meet at the store of `torchrun`, not in a collective, which the others might never reach. A process that hears
    nothing of the first for `PATIENCE` seconds, or finds no store, says its error with its number: none is lost.

    Args:
        words: The error.
        say: Prints it.
    """
    rank, world = int(os.environ.get("RANK", "0")), several()
    if rank == 0 or world < 2:
        say(words)
        if world > 1:
            with suppress(RuntimeError):
                _store().set(SAID, words)
    elif _heard() != words:
        say(f"process {rank} of {world}: {words}")


def _heard() -> str | None:
    """What the first process has said; None where it says nothing in time, or there is no store.

    When a process ends, `torchrun` sends SIGTERM to the others: here it has to wait, since something is to be said.
    """
    until = time.monotonic() + PATIENCE
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        store = _store()
        while not store.check([SAID]):
            if time.monotonic() > until:
                return None
            time.sleep(0.05)
        return str(store.get(SAID).decode())
    except (RuntimeError, KeyboardInterrupt):
        return None
    finally:
        signal.signal(signal.SIGTERM, before)


def _store() -> Any:
    """The store that `torchrun` keeps while its processes run.

    Raises:
        RuntimeError: There is none, as where something else has started the processes, or it cannot be reached.
    """
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        raise RuntimeError("no store outlives the processes")
    from torch.distributed import TCPStore

    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    return TCPStore(host, port, is_master=False, timeout=timedelta(seconds=PATIENCE), wait_for_workers=False)
