"""How much memory there is, and whether decoded images would take too much of it."""

from __future__ import annotations

import os
from pathlib import Path

import torch

SHARE = 0.25
"""Share of the memory that decoded images may take: splitting them makes a second copy for a while, and a model, its
attacks and everything else need room too."""
CGROUP_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
"""Where Linux says how much a container may take: version 2, version 1."""


def memory() -> int | None:
    """Bytes of the memory that images would lie in: the machine's, a container's, or a CUDA device's if that is less.

    Images in memory are moved to the device as a whole. None where the system says nothing of its memory.
    """
    found = []
    if "sysconf_names" in dir(os):  # not on Windows
        found.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    for file in CGROUP_LIMITS:
        text = file.read_text().strip() if file.is_file() else ""
        found += [int(text)] if text.isdigit() else []  # "max": no limit
    if torch.cuda.is_available():
        found += [torch.cuda.get_device_properties(i).total_memory for i in range(torch.cuda.device_count())]
    return min(found, default=None)


def default_workers() -> int:
    """Processes that decode where nobody says how many: the cores of this process but for one, from 1 to 8."""
    cores = len(os.sched_getaffinity(0)) if "sched_getaffinity" in dir(os) else os.cpu_count() or 1
    return min(8, max(1, cores - 1))
