"""Several processes for one command, as `torchrun` starts them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def together(device: str) -> Iterator[tuple[int, str]]:
    """Join the process group that `torchrun` has prepared; without it, work alone.

    Args:
        device: `auto`, or a device; `auto` and `cuda` become the process's own GPU.

    Yields:
        The rank and the device.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        yield 0, device
        return
    import torch

    if device in ("auto", "cuda") and torch.cuda.is_available():
        device = f"cuda:{int(os.environ.get('LOCAL_RANK', '0')) % torch.cuda.device_count()}"
    torch.distributed.init_process_group("gloo")  # what is exchanged lies on the CPU
    try:
        yield torch.distributed.get_rank(), device
    finally:
        torch.distributed.destroy_process_group()
