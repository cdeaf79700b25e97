"""Several processes for one command, as `torchrun` starts them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager


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
