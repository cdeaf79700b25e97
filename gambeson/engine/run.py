"""A run: a directory with the call that made it, its metrics, checkpoints and evaluations."""

from __future__ import annotations

import json
import os
import platform
import re
import shlex
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from gambeson.core.errors import RunError

FORMAT = 1
"""Version of the layout of `run.json`."""


class Run:
    """A run directory.

    ```
    run.json                     the call: method and its arguments, data, model, settings, versions
    metrics.jsonl                one JSON object per line, appended
    checkpoints/                 last, best (by validation accuracy), final, snapshot-STEP (where --snapshots asks for
                                 some), healthy-STEP (for rollback)
    evaluations/NAME.json, .npz  accuracies, and the outcome of every example
    ```

    Args:
        path: The directory.
        call: The content of `run.json`.
    """

    def __init__(self, path: Path, call: dict[str, Any]) -> None:
        self.path, self.call = path, call

    @classmethod
    def create(cls, path: Path, call: dict[str, Any]) -> Run:
        """Make the directory and write the call.

        Raises:
            RunError: It exists already, or cannot be written. Nothing that exists is touched.
        """
        cls.require_new(path)
        try:
            path.mkdir(parents=True)
            (path / "checkpoints").mkdir()
            (path / "evaluations").mkdir()
            record = {"format": FORMAT, **call, "versions": versions(), "created": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
            write_json(path / "run.json", record)
        except OSError as error:
            raise RunError(
                f"cannot write the run directory {path}: {error.strerror}", hint="choose another with --run"
            ) from None
        return cls(path, record)

    @staticmethod
    def free_path(root: Path, stem: str) -> Path:
        """The first of `root/stem-1`, `root/stem-2` and so on that does not exist."""
        number = 1
        while (root / f"{stem}-{number}").exists():
            number += 1
        return root / f"{stem}-{number}"

    @staticmethod
    def require_new(path: Path, *, hint: str | None = None) -> None:
        """Refuse a directory that exists; the `hint` is about resuming it, unless there is another.

        Raises:
            RunError: It exists.
        """
        if path.exists():
            raise RunError(
                f"{path} exists already; nothing was overwritten",
                hint=hint
                or f"go on with `gambeson resume {shlex.quote(str(path))}`, or choose another directory with --run",
            )

    @classmethod
    def open(cls, path: Path) -> Run:
        """Open an existing run.

        Raises:
            RunError: No run there, or one that this version cannot read.
        """
        file = path / "run.json"
        if not file.is_file():
            raise RunError(f"{path} is not a run directory (no run.json)", hint="`gambeson runs list` shows the runs")
        try:
            call = json.loads(file.read_text())
        except (OSError, ValueError) as error:
            raise RunError(f"{file} cannot be read: {error}") from None
        if not isinstance(call, dict) or call.get("format") != FORMAT:
            raise RunError(f"{file} has another format than {FORMAT}, which this version reads")
        return cls(path, call)

    @property
    def metrics(self) -> Path:
        """The metrics file."""
        return self.path / "metrics.jsonl"

    def checkpoint(self, name: str) -> Path:
        """The file of the checkpoint called `last`, `best`, `final`, `snapshot-STEP` or `healthy-STEP`."""
        return self.path / "checkpoints" / f"{name}.safetensors"

    def snapshots(self) -> dict[str, int]:
        """The names of the snapshots that are there, with their steps, in the order of these."""
        names = [file.stem for file in (self.path / "checkpoints").glob("snapshot-*.safetensors")]
        steps = [int(name[9:]) for name in names if re.fullmatch("snapshot-(0|[1-9][0-9]*)", name)]
        return {f"snapshot-{step}": step for step in sorted(steps)}

    def log(self, row: dict[str, Any]) -> None:
        """Append one line to the metrics."""
        with open(self.metrics, "a") as file:
            file.write(json.dumps(row) + "\n")

    def rows(self) -> list[dict[str, Any]]:
        """All whole lines of the metrics; a last line that was cut off is left out.

        Raises:
            RunError: A line is not a row of metrics.
        """
        if not self.metrics.is_file():
            return []
        rows = []
        try:
            lines = self.metrics.read_text().splitlines()
        except ValueError as error:
            raise RunError(f"{self.metrics} is damaged: {error}") from None
        for line in lines:
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                break
            if not isinstance(row, dict) or "step" not in row:
                raise RunError(f"{self.metrics} is damaged: a line is {line[:40]!r}")
            rows.append(row)
        return rows

    def require_metrics(self) -> None:
        """Look at both ends of the metrics only, so that lists of thousands of runs are fast.

        Raises:
            RunError: They are not rows of metrics; what lies between them may still be damaged, see `rows`.
        """
        if not self.metrics.is_file():
            return
        with open(self.metrics, "rb") as file:
            first = file.readline()
            size = file.seek(0, os.SEEK_END)
            file.seek(max(len(first), size - 8192))
            tail = file.read().splitlines(keepends=True)
        ends = [line for line in (first, *tail[-1:]) if line.endswith(b"\n")]  # one that was cut off is left out
        for line in ends:
            if not (line.startswith(b"{") and b'"step"' in line):
                raise RunError(f"{self.metrics} is damaged: a line is {line[:40]!r}")

    def trim(self, step: int) -> None:
        """Drop the metrics after `step`: a resumed run writes them again."""
        kept = [row for row in self.rows() if row["step"] <= step]
        partial = self.metrics.with_name(".metrics.partial")
        partial.write_text("".join(json.dumps(row) + "\n" for row in kept))
        os.replace(partial, self.metrics)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the run for writing; the lock falls with the process, even with one that is killed.

        Raises:
            RunError: Another process trains it.
        """
        with open(self.path / ".lock", "w") as file:
            if os.name == "posix":
                import fcntl  # not on Windows

                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    raise RunError(f"{self.path} is being trained by another process") from None
            yield

    @property
    def held(self) -> bool:
        """Whether a live process holds the run for writing; on Windows, where nothing is locked, never.

        Nothing is written, and the other process is not disturbed.
        """
        lock = self.path / ".lock"
        if os.name != "posix" or not lock.is_file():
            return False
        import fcntl  # not on Windows

        with open(lock) as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
        return False

    def evaluations(self) -> dict[str, dict[str, Any]]:
        """The evaluations by name, oldest first.

        Raises:
            RunError: One cannot be read.
        """
        found = {}
        for file in sorted((self.path / "evaluations").glob("*.json"), key=lambda file: file.stat().st_mtime):
            try:
                found[file.stem] = json.loads(file.read_text())
            except (OSError, ValueError) as error:
                raise RunError(f"{file} cannot be read: {error}", hint="delete it and evaluate again") from None
        return found

    def outcomes(self, name: str) -> dict[str, np.ndarray[Any, Any]]:
        """The arrays of an evaluation: `y`, and per attack whether each example was classified correctly.

        Raises:
            RunError: Missing or damaged. Pickled objects are not read.
        """
        file = self.path / "evaluations" / f"{name}.npz"
        try:
            with np.load(file, allow_pickle=False) as arrays:
                return dict(arrays)
        except (OSError, ValueError, zipfile.BadZipFile) as error:
            reason = str(error).splitlines()[0]
            raise RunError(f"{file} cannot be read: {reason}", hint="delete it and evaluate again") from None


def versions() -> dict[str, str]:
    """Versions and hardware that the result depends on."""
    import torch  # not at the top: lists of runs need no torch

    found = {
        "gambeson": version("gambeson"),
        "torch": version("torch"),
        "numpy": version("numpy"),
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "processor": processor(),
    }
    return {**found, "gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else found


def processor() -> str:
    """The processor's name as Linux gives it, else as Python does."""
    try:
        rows = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        rows = []
    names = [row.partition(":")[2].strip() for row in rows if row.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def read_json(path: Path) -> Any:
    """What a JSON file holds.

    Raises:
        RunError: It cannot be read.
    """
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise RunError(f"{path} cannot be read: {error}") from None


def write_json(path: Path, content: Any) -> None:
    """Write JSON so that `path` is old or new and whole at every moment."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(content, indent=2) + "\n")
    os.replace(partial, path)
