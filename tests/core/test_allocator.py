"""Freed memory stays with the process: after some tensors of a size, the next touches no new pages."""

import os
import subprocess
import sys

import pytest

SCRIPT = """
import resource, torch
from gambeson.core.allocator import keep_memory
kept = keep_memory() if {keep} else None
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(25_000_000)  # 100 MB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
first = faults()
last = [faults() for _ in range(30)][-3:]
print(kept, first, max(last))
"""


def run(keep: bool, **environment: str) -> tuple[str, int, int]:
    own = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")}
    words = [sys.executable, "-c", SCRIPT.format(keep=keep)]
    found = subprocess.run(words, env={**own, **environment}, capture_output=True, text=True, check=True, timeout=120)
    kept, first, last = found.stdout.split()
    return kept, int(first), int(last)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator")
def test_the_kernel_is_asked_once() -> None:
    _, first, last = run(keep=False)
    if last < 0.5 * first:
        pytest.skip("this C library keeps memory by itself, or pages are huge")
    kept, first, last = run(keep=True)
    assert kept == "True"
    assert last < 0.05 * first


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator")
def test_the_environment_has_the_last_word() -> None:
    assert run(keep=True, MALLOC_MMAP_THRESHOLD_="131072")[0] == "False"
