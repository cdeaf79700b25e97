"""The command in a fresh folder, a finished run to look at, and the call that a training would make."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from app.helpers import FAST, Cli, Result
from gambeson.app import build, training, tuning
from gambeson.app.cli import main
from gambeson.core.errors import GambesonError


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory; data sets are not to be found or downloaded by accident."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.delenv("GAMBESON_DATA", raising=False)
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # the discard port: refused at once
    return folder


@pytest.fixture
def cli(here: Path, capsys: pytest.CaptureFixture[str]) -> Cli:
    """Call the command in `here`; paths in its output are relative and fit the table's 80 columns."""

    def call(*args: str) -> Result:
        capsys.readouterr()
        try:
            code: int | str | None = main(args)
        except SystemExit as stop:
            code = stop.code
        return Result(code, *capsys.readouterr())

    return call


@pytest.fixture(autouse=True)
def pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """No pages at the ends of trainings in this process: they take longer than these trainings."""
    for module in (training, tuning):
        monkeypatch.setattr(module, "at_the_end", lambda *args: None)


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run; look, do not touch."""
    path = tmp_path_factory.mktemp("trained") / "run"
    assert main(["train", "n-lap", *FAST, "--run", str(path)]) == 0
    return path


@pytest.fixture
def finished(here: Path, trained: Path) -> Callable[[str], Path]:
    """Makes a copy of the finished run in `here`, to be damaged."""

    def copy(name: str) -> Path:
        shutil.copytree(trained, here / name)
        return Path(name)

    return copy


class _ReachedError(GambesonError):
    pass


@pytest.fixture
def planned(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """The call that `gambeson train` would carry out, stopped where it would read the data."""
    calls: list[dict[str, Any]] = []

    def stop(call: dict[str, Any], root: str | None = None) -> None:
        calls.append(call)
        raise _ReachedError("stopped by the test")

    monkeypatch.setattr(build, "splits", stop)

    def plan(*args: str) -> dict[str, Any]:
        calls.clear()
        result = cli("train", *args)
        assert calls, result.err
        return calls[0]

    return plan
