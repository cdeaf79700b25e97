"""Where every job of a sweep stands: what its run directory holds, whether that is its own, and what is missing."""

from __future__ import annotations

import inspect
import json
import os
import shlex
from pathlib import Path
from typing import Any

from gambeson.app import build, tuning
from gambeson.app.compare import current_evaluations, is_own
from gambeson.app.states import unfinished
from gambeson.app.sweep_plan import Job, Plan
from gambeson.core.errors import CheckpointError, DataError, RunError
from gambeson.core.tables import differences
from gambeson.data.catalog import require_there
from gambeson.engine.run import Run, read_json
from gambeson.methods import METHODS, method


def environment(plan: Plan) -> dict[str, str]:
    """The environment of the commands."""
    return {**os.environ, "OMP_NUM_THREADS": str(plan.threads)}


def next_command(job: Job, plan: Plan) -> list[str] | None:
    """The words after `gambeson` of what a job needs next; None where nothing is missing."""
    if not job.path.exists():
        return list(job.command)
    if evaluation(job, plan) is None:
        return ["resume", str(job.path)]
    if plan.ood is not None and out_of_distribution(job, plan) is None:
        return _corruptions(job, plan)
    return None


def commands(job: Job, plan: Plan) -> list[list[str]]:
    """Everything that is still to be run of a job, in order."""
    first = next_command(job, plan)
    if first is None:
        return []
    later = plan.ood is not None and first[0] != "corruptions" and out_of_distribution(job, plan) is None
    return [first, *([_corruptions(job, plan)] if later else [])]


def evaluation(job: Job, plan: Plan) -> tuple[str, dict[str, Any]] | None:
    """The evaluation of a job's last weights that has all attacks, by name: of the most images, and then the newest."""
    if not job.path.exists():
        return None
    run = Run.open(job.path)
    limit = run.call.get("test_size")
    found: tuple[str, dict[str, Any]] | None = None
    for name, record in current_evaluations(run).items():
        whole = record["checkpoint"] == "final" and all(attack in record["accuracy"] for attack in plan.attacks)
        fits = whole and is_own(run, record) and (limit is None or record["n"] <= limit)
        if fits and (found is None or record["n"] >= found[1]["n"]):
            found = name, record
    return found


def out_of_distribution(job: Job, plan: Plan) -> dict[str, Any] | None:
    """The record of a job's accuracy under corruptions."""
    file = job.path / "diagnosis" / str(plan.ood_record)
    return read_json(file) if plan.ood is not None and file.is_file() else None


def is_done(job: Job, plan: Plan) -> bool:
    """Whether every column of the table was measured."""
    return job.path.exists() and next_command(job, plan) is None


def state(job: Job, plan: Plan) -> str:
    """Where a job stands, in words: `done`, `not begun`, `step 231 of 440`, or what is measured next."""
    if not job.path.exists():
        return "not begun"
    try:
        if is_done(job, plan):
            return "done"
        found = unfinished(Run.open(job.path))
    except (RunError, CheckpointError):
        return "damaged"
    if found is None:
        return "trained, not evaluated" if evaluation(job, plan) is None else "corruptions to be measured"
    if found["stage"] != "training":
        return str(found["stage"])
    if found["step"] is None:
        return "no step is saved"
    return f"step {found['step']:,}" + ("" if found["steps"] is None else f" of {found['steps']:,}")


def require_own(plan: Plan) -> None:
    """Refuse run directories that are there and of other commands than the plan's.

    Raises:
        RunError: One is; the settings that differ are named.
    """
    for job in plan.jobs:
        if not job.path.exists():
            continue
        run = build.open_run(job.path)
        different = _differences(run, job)
        if different:
            raise RunError(
                f"{job.path} is not the run of {job.name}: {'; '.join(different)}",
                hint="give the row those settings, move the directory away, or name another folder with --root",
            )


def require_data_there(plan: Plan) -> None:
    """Refuse data that are not there and that a run which is not done would read.

    Raises:
        DataError: Some are not; the row is named.
    """
    data: dict[Path, dict[str, Any]] = {}
    for job in plan.jobs:  # what others start from comes before them
        data[job.path] = job.record["data"] if job.record is not None else data[job.base or job.path]
        if is_done(job, plan):
            continue
        try:
            require_there(data[job.path]["name"], data[job.path]["dir"])
        except DataError as error:
            raise DataError(f"row {job.label!r}: {error.message}", hint=error.hint) from None


def last_line(log: Path) -> str:
    """The line of a log that says why its last command failed: an error of gambeson, or else the last one."""
    try:
        lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    except OSError:
        return ""
    begun = max((number for number, line in enumerate(lines) if line.startswith("$ gambeson")), default=-1)
    lines = lines[begun + 1 :]
    said = [line for line in lines if line.startswith("gambeson: ") and not line.startswith("gambeson: note: ")]
    return (said or lines or [""])[-1].removeprefix("gambeson: ")


def _corruptions(job: Job, plan: Plan) -> list[str]:
    return ["corruptions", str(job.path), "--checkpoint", "final", *shlex.split(str(plan.ood))]


def _differences(run: Run, job: Job) -> list[str]:
    """What the record of a run says that the job does not, a sentence each."""
    if job.base is None:
        if "finetune" in run.call:
            return [f"it is a fine-tuning of {run.call['finetune']['base']['run']}"]
        return differences(_training(run.call), _training(job.record or {}))
    if "finetune" not in run.call:
        return ["it is a training, not a fine-tuning"]
    how, _, *rest = job.command[1:]
    asked = tuning.understand(how, [str(job.base), *rest])
    if not job.base.exists():
        there = Path(run.call["finetune"]["base"]["run"])
        return [] if there == job.base.resolve() else [f"it started from {there}"]
    base = build.open_run(job.base)
    if not base.checkpoint("final").is_file():  # what it started from is being made anew
        return []
    wanted = tuning.call_of(how, base, asked.options, asked.settings, "")
    return differences(*(json.loads(json.dumps(tuning.comparable(call))) for call in (run.call, wanted)))


def _training(call: dict[str, Any]) -> dict[str, Any]:
    """What two trainings must agree in to be the same one; arguments that an older record lacks had their defaults."""
    kept = {
        key: call.get(key) for key in ("method", "data", "model", "ema", "settings", "attack", "test_size", "threads")
    }
    kept = json.loads(json.dumps(kept))
    for key in ("dir", "verify", "stream", "workers", "measured_on", "files", "sizes"):  # known from the data only
        kept["data"].pop(key, None)
    if kept["method"]["name"] in METHODS:
        parameters = inspect.signature(method(kept["method"]["name"])[1]).parameters
        usual = {name: parameter.default for name, parameter in parameters.items()}
        kept["method"]["args"] = json.loads(json.dumps({**usual, **kept["method"]["args"]}))
    if kept["data"]["name"].partition(":")[0] in ("folder", "npz") and kept["method"]["args"]["eps"] is None:
        kept["method"]["args"].pop("eps")
    return kept
