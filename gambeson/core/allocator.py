"""Memory that a process has freed, kept for its next tensors."""

from __future__ import annotations

import ctypes
import os
import sys

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h
KEPT = 2**30
"""Bytes: smaller blocks come from memory that stays with the process."""


def keep_memory() -> bool:
    """Let glibc keep freed memory instead of giving large blocks back to the kernel.

    By default every tensor above a threshold (at most 32 MB) is mapped anew, and the kernel clears its pages at their
    first use: on a CPU a fifth of the time of a training step. Results do not change; the process's memory stays at its
    peak. Where the environment sets `MALLOC_MMAP_THRESHOLD_` or `MALLOC_TRIM_THRESHOLD_`, that holds.

    Returns:
        Whether glibc is there and has agreed.
    """
    if not sys.platform.startswith("linux") or any(
        f"MALLOC_{name}_THRESHOLD_" in os.environ for name in ("MMAP", "TRIM")
    ):
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):  # another C library
        return False
    return bool(mallopt(M_MMAP_THRESHOLD, KEPT)) and bool(mallopt(M_TRIM_THRESHOLD, 2**31 - 1))
