from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from gambeson.data import room


@pytest.fixture
def limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file in which a container's limit stands, on a machine of 4,000 bytes without CUDA."""
    monkeypatch.setattr(room, "CGROUP_LIMITS", (tmp_path / "none", tmp_path / "limit"))
    monkeypatch.setattr(room.os, "sysconf", {"SC_PHYS_PAGES": 4, "SC_PAGE_SIZE": 1000}.__getitem__)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    return tmp_path / "limit"


@pytest.mark.parametrize(("text", "bytes_"), [(None, 4000), ("max\n", 4000), ("3000\n", 3000), ("9000", 4000)])
def test_the_memory_is_the_machines_or_the_containers(text: str | None, bytes_: int, limits: Path) -> None:
    if text is not None:
        limits.write_text(text)
    assert room.memory() == bytes_


def test_a_smaller_device_counts(limits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda i: SimpleNamespace(total_memory=[5000, 2000][i]))
    assert room.memory() == 2000


@pytest.mark.parametrize(("cores", "workers"), [(1, 1), (2, 1), (4, 3), (9, 8), (64, 8)])
def test_a_core_is_left_to_the_training(cores: int, workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room.os, "sched_getaffinity", lambda pid: set(range(cores)), raising=False)
    assert room.default_workers() == workers
