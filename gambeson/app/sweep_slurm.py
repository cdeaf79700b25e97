"""A sweep on a SLURM cluster through submitit: a job per row and seed, after the one that it starts from."""

from __future__ import annotations

import json
import re
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gambeson.app.sweep_jobs import is_done, next_command
from gambeson.app.sweep_local import POLL, Process, ended, start
from gambeson.app.sweep_plan import Job, Plan
from gambeson.core.errors import GambesonError, InputError, RunError
from gambeson.engine.run import read_json, write_json

LIMIT = ("timeout_min", "time", "slurm_time")
"""Parameters that say for how many minutes a job may run; submitit's default, five minutes, trains nothing."""


@dataclass
class Task:
    """What a SLURM job does: the commands of one row and seed, one after the other.

    Where SLURM announces the end of the time or takes the node away, the command saves and stops, and the job is put
    into the queue again.
    """

    plan: Plan
    job: Job
    process: Process | None = field(default=None, repr=False)

    def __call__(self) -> str:
        """Run what is missing.

        Raises:
            RunError: A command failed; SLURM then holds back what starts from this run.
        """
        if self.job.base is not None and not self._base_is_done():
            raise RunError(f"{self.job.name} starts from {self.job.base}, which is not complete")
        words = next_command(self.job, self.plan)
        while words is not None:
            self.process = start(self.job, self.plan, words)
            while self.process.handle.poll() is None:
                time.sleep(POLL)
            wrong = ended(self.process, self.plan)
            if wrong:
                raise RunError(f"{self.job.name}: {wrong}")
            words = next_command(self.job, self.plan)
        return str(self.job.path)

    def checkpoint(self) -> Any:
        """Stop the command, which saves, and say what is to be queued: the same again, which resumes."""
        if self.process is not None:
            self.process.send(signal.SIGTERM)
            until = time.monotonic() + 60
            while self.process.handle.poll() is None and time.monotonic() < until:
                time.sleep(POLL)
        return _submitit().helpers.DelayedSubmission(Task(self.plan, self.job))

    def _base_is_done(self) -> bool:
        return any(is_done(job, self.plan) for job in self.plan.jobs if job.path == self.job.base)


def parameters_of(text: str | None, own: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters of the executor: a sweep's own, and those of `--slurm`, which win.

    What submitit does not know by the same name for every cluster gets SLURM's prefix.

    Args:
        text: `key=value`, comma-separated; a comma that no `key=` follows belongs to the value.
        own: The `slurm` of the file.

    Raises:
        InputError: Not of that form, or no limit of time.

    Examples:
        >>> parameters_of("partition=a,b,timeout_min=60", {"gpus_per_node": 1})
        {'gpus_per_node': 1, 'slurm_partition': 'a,b', 'timeout_min': 60}
    """
    given = {str(key).replace("-", "_"): value for key, value in own.items()}
    for word in re.split(r",(?=[\w-]+=)", text) if text else []:
        key, equals, value = word.partition("=")
        if not equals or not key.strip():
            raise InputError(f"--slurm needs key=value, got {word!r}", hint="such as partition=gpu,timeout_min=600")
        given[key.strip().replace("-", "_")] = _value(value.strip())
    if not set(given) & set(LIMIT):
        raise InputError(
            "SLURM needs a limit of time, in minutes", hint="--slurm timeout_min=600, or slurm: in the file"
        )
    return {key if key in SHARED or key.startswith("slurm_") else f"slurm_{key}": value for key, value in given.items()}


SHARED = (
    "timeout_min",
    "mem_gb",
    "nodes",
    "cpus_per_task",
    "gpus_per_node",
    "tasks_per_node",
    "name",
    "stderr_to_stdout",
)
"""Parameters that submitit knows for every kind of cluster."""


def submit(plan: Plan, parameters: Mapping[str, Any], cluster: str = "slurm") -> tuple[list[Any], list[Job]]:
    """Give the jobs that are not done to a cluster.

    Args:
        plan: The sweep.
        parameters: Of the executor, see `parameters_of`.
        cluster: `slurm`; `local` and `debug` are submitit's stand-ins, which know no dependencies: a run that others
            start from is then waited for.

    Returns:
        submitit's jobs and the sweep's, in the same order. What is in the queue already is not submitted again.

    Raises:
        InputError: submitit refuses a parameter.
        GambesonError: It is not installed, or finds no cluster.
        RunError: SLURM says nothing of a job that was submitted before.
    """
    module = _submitit()
    folder = plan.root / "slurm"
    folder.mkdir(parents=True, exist_ok=True)
    ids = submitted(plan)
    states = queue(plan) if ids else {}
    _require_known(plan, ids, states)
    begun: dict[Path, Any] = {}
    found: list[Any] = []
    jobs: list[Job] = []
    for job in plan.jobs:
        if is_done(job, plan) or is_waiting(states.get(job.name, "")):
            continue
        told = dict(parameters)
        before = begun.get(job.base) if job.base else None
        if cluster != "slurm" and before is not None:
            before.wait()
        elif job.base and not _complete(job.base, plan):
            number = before.job_id if before else ids.get(_name_of(job.base, plan), "")
            more = {**told.get("slurm_additional_parameters", {}), "kill_on_invalid_dep": "yes"}
            told |= {"slurm_dependency": f"afterok:{number}", "slurm_additional_parameters": more}
        try:
            executor = module.AutoExecutor(folder, cluster=cluster)
            executor.update_parameters(**told)
            begun[job.path] = executor.submit(Task(plan, job))
        except (NameError, ValueError, AssertionError, RuntimeError) as error:
            kind = GambesonError if isinstance(error, RuntimeError) else InputError  # no cluster; a parameter
            raise kind(f"submitit: {' '.join(str(error).split())}") from None
        found.append(begun[job.path])
        jobs.append(job)
        ids[job.name] = str(found[-1].job_id)
        write_json(plan.root / "slurm.json", ids)
    return found, jobs


def submitted(plan: Plan) -> dict[str, str]:
    """The numbers of the SLURM jobs that were submitted, by row and seed."""
    file = plan.root / "slurm.json"
    return dict(read_json(file)) if file.is_file() else {}


def queue(plan: Plan) -> dict[str, str]:
    """What SLURM says of the jobs that were submitted, such as `PENDING`, by row and seed.

    Raises:
        GambesonError: submitit is not installed.
    """
    module = _submitit()
    return {name: str(module.SlurmJob(plan.root / "slurm", number).state) for name, number in submitted(plan).items()}


def is_waiting(state: str) -> bool:
    """Whether SLURM still has a job before it or in hand."""
    return state in ("PENDING", "RUNNING", "REQUEUED", "REQUEUE_HOLD", "SUSPENDED", "CONFIGURING", "COMPLETING")


def _submitit() -> Any:
    """The package, which is an extra.

    Raises:
        GambesonError: It is not installed.
    """
    try:
        import submitit
    except ImportError:
        raise GambesonError("submitit is not installed", hint="pip install 'gambeson[slurm]'") from None
    return submitit


def _require_known(plan: Plan, ids: Mapping[str, str], states: Mapping[str, str]) -> None:
    """Refuse to submit what may be in the queue."""
    for job in plan.jobs:
        if states.get(job.name) == "UNKNOWN" and not is_done(job, plan):
            raise RunError(
                f"SLURM's accounting says nothing of job {ids[job.name]}, submitted for {job.name}",
                hint=f"where squeue does not show it either, take it out of {plan.root / 'slurm.json'}",
            )


def _name_of(path: Path | None, plan: Plan) -> str:
    return next((job.name for job in plan.jobs if job.path == path), "")


def _complete(path: Path, plan: Plan) -> bool:
    return any(is_done(job, plan) for job in plan.jobs if job.path == path)


def _value(text: str) -> Any:
    """A number or a truth value where it is one."""
    try:
        return json.loads(text)
    except ValueError:
        return text
