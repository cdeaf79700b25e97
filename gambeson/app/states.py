"""How far a run has come, and what is said beside the numbers of one that has not finished."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gambeson.core.errors import CheckpointError, RunError
from gambeson.engine.checkpoint import read_header
from gambeson.engine.run import Run


def state(run: Run) -> str:
    """A run's state in a word or two: `done`, `imported`, `step 231`, `not begun`, or where a fine-tuning is.

    Raises:
        RunError: Its metrics are damaged.
        CheckpointError: Its last checkpoint is.
    """
    run.require_metrics()
    if "imported" in run.call:
        return "imported"
    if "finetune" in run.call:
        return _tuning_state(run)
    if run.checkpoint("final").is_file():
        return "done"
    last = run.checkpoint("last")
    return f"step {read_header(last)['step']}" if last.is_file() else "not begun"


def unfinished(run: Run) -> dict[str, Any] | None:
    """How far the training of a run is, for the record of a measurement; None where it has come to its end.

    Returns:
        `stage` (`training`, or where a fine-tuning is), `step` and `steps` (of the training; None where nothing says
        it), and `running`: whether a live process trains the run.
    """
    if "finetune" in run.call:
        stage = _tuning_state(run)
        held = run.held or Run(run.path / "finetune", {}).held
        return None if stage == "done" else {"stage": stage, "step": None, "steps": None, "running": held}
    if "imported" in run.call or run.checkpoint("final").is_file():
        return None
    return {"stage": "training", "step": _step(run), "steps": _steps(run), "running": run.held}


def sentence(found: Mapping[str, Any], steps: Mapping[str, int]) -> str:
    """What is said beside the numbers of a run that has not finished.

    Args:
        found: From `unfinished`.
        steps: Step by checkpoint, of those that were measured.

    Examples:
        >>> sentence({"stage": "training", "step": 231, "steps": 440, "running": False}, {"best": 220})
        'training has not finished: step 231 of 440, stopped; the checkpoint best is of step 220'
    """
    if found["stage"] == "training":
        where = "no step is saved" if found["step"] is None else f"step {found['step']:,}"
        where += "" if found["step"] is None or found["steps"] is None else f" of {found['steps']:,}"
        said = f"training has not finished: {where}"
    else:
        said = f"fine-tuning has not finished: {found['stage'].removeprefix('fine-tuning, ')}"
    said += ", going on in another process" if found["running"] else ", stopped"
    of = " and ".join(f"the checkpoint {name} is of step {step:,}" for name, step in steps.items())
    return f"{said}; {of}" if of else said


def _tuning_state(run: Run) -> str:
    """How far a fine-tuning has come: criticality, training in a run of its own, interpolation."""
    if run.checkpoint("final").is_file() and (run.path / "line.json").is_file():
        return "done"
    part = Run(run.path / "finetune", {})
    if part.checkpoint("final").is_file():
        return "fine-tuned, not interpolated"
    last = part.checkpoint("last")
    if last.is_file():
        return f"fine-tuning, step {read_header(last)['step']}"
    if (run.path / "layers.json").is_file():
        return "fine-tuning, step 0"
    return "measuring criticality" if (run.path / "criticality.partial.json").is_file() else "not begun"


def _step(run: Run) -> int | None:
    """The step of the last checkpoint; None without a whole one, beside which others can still be measured."""
    try:
        return int(read_header(run.checkpoint("last"))["step"])
    except CheckpointError:
        return None


def _steps(run: Run) -> int | None:
    """Steps of the whole training, from what the metrics say of steps and epochs; None where they say nothing yet."""
    try:
        row = next((row for row in reversed(run.rows()) if row.get("epoch")), None)
    except RunError:
        return None
    return None if row is None else round(row["step"] / row["epoch"] * run.call["settings"]["epochs"])
