"""What a run's folder holds, read so that one damaged file does not hide the others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from gambeson.app.build import is_bare, selected_on
from gambeson.app.compare import main_checkpoint, method_name
from gambeson.app.states import state
from gambeson.core.errors import GambesonError, RunError
from gambeson.engine.checkpoint import read_header
from gambeson.engine.run import Run, read_json

Value = TypeVar("Value")
Record = dict[str, Any]

TOPICS = (
    "cam",
    "corruptions",
    "criticality",
    "eps",
    "landscape",
    "line",
    "masking",
    "response",
    "shortcuts",
    "spectra",
)
"""Beginnings of the names of files in `diagnosis/`."""


@dataclass(eq=False)
class Records:
    """All that is known of a run without its data.

    Attributes:
        run: The run.
        name: Its folder's name.
        rows: Its metrics; of a fine-tuning those of the training inside it.
        evaluations: Evaluations on the test set that speak of the weights it has now, by name, oldest first.
        state: `done`, or how far it has come.
        best: What the best checkpoint was selected by, and where.
        steps: The step of every checkpoint, by name.
        found: Results of diagnoses by topic, newest first, each with the file's name.
        problems: What could not be read, and why.
    """

    run: Run
    name: str
    rows: list[Record] = field(default_factory=list)
    evaluations: dict[str, Record] = field(default_factory=dict)
    state: str = ""
    best: Record | None = None
    steps: dict[str, int | None] = field(default_factory=dict)
    found: dict[str, list[tuple[str, Record]]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    @property
    def call(self) -> Record:
        """The run's record of what was asked for."""
        return self.run.call

    @property
    def method(self) -> str:
        """What the weights were trained with, and then fine-tuned."""
        return method_name(self.call)

    @property
    def selection(self) -> str | None:
        """The split that the run was selected on."""
        return selected_on(self.call)

    @property
    def eps(self) -> float | None:
        """The run's own budget, where one was given."""
        found: float | None = self.call["method"].get("args", {}).get("eps")
        return found

    @property
    def checkpoint(self) -> str:
        """The checkpoint that the page speaks of first."""
        return main_checkpoint(self.run)


def read(run: Run) -> Records:
    """Everything in a run's folder.

    Raises:
        RunError: The run was not made by a command, so that nothing says what it is.
    """
    if is_bare(run):
        raise RunError(f"{run.path} was made in Python: its record does not say what it trained")
    records = Records(run, run.path.resolve().name)
    inner = Run(run.path / "finetune", {}) if "finetune" in run.call else run
    records.rows = _try(records, inner.rows, [])
    records.state = _try(records, lambda: state(run), "damaged")
    best = inner.checkpoint("best")
    if best.is_file():
        records.best = _try(records, lambda: read_header(best)["best"], None)
    records.evaluations = _evaluations(records)
    files = sorted((run.path / "diagnosis").glob("*.json"), key=lambda file: file.stat().st_mtime, reverse=True)
    extra = [run.path / "line.json", run.path / "criticality.json"]
    for file in [*[file for file in extra if file.is_file()], *files]:
        topic = file.stem.split("-")[0]
        record = _try(records, partial(read_json, file), None) if topic in TOPICS else None
        if isinstance(record, dict):
            records.found.setdefault(topic, []).append((file.name, record))
    return records


def _evaluations(records: Records) -> dict[str, Record]:
    """The evaluations on test sets of the weights that the run has now: one of older weights is left out."""
    found = {}
    for file in sorted((records.run.path / "checkpoints").glob("*.safetensors")):
        records.steps[file.stem] = _try(records, partial(_step, file), None)
    for file in sorted((records.run.path / "evaluations").glob("*.json"), key=lambda file: file.stat().st_mtime):
        record = _try(records, partial(_evaluation, file), None)
        if record and record["split"] == "test" and record["step"] == records.steps.get(record["checkpoint"]):
            found[file.stem] = record
    return found


def _step(file: Path) -> int:
    step: int = read_header(file)["step"]
    return step


def _evaluation(file: Path) -> Record:
    record: Record = read_json(file)
    missing = [key for key in ("split", "step", "checkpoint", "accuracy", "norm", "eps", "n") if key not in record]
    if missing:
        raise RunError(f"{file} is no evaluation: it lacks {', '.join(missing)}")
    return record


def _try(records: Records, read: Callable[[], Value], otherwise: Value) -> Value:
    """What `read` gives; else the reason joins the problems."""
    try:
        return read()
    except (GambesonError, OSError, KeyError, TypeError, ValueError) as error:
        text = error.message if isinstance(error, GambesonError) else f"{type(error).__name__}: {error}"
        if text not in records.problems:
            records.problems.append(text)
        return otherwise
