"""A sweep on SLURM: parameters, dependencies, what is submitted once only; submitit's stand-ins for a cluster."""

from __future__ import annotations

import builtins
import json
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

from app.helpers import make_run, write_sweep
from gambeson.app import sweep_jobs, sweep_slurm
from gambeson.app.sweep_plan import Plan, plan_of
from gambeson.app.sweep_slurm import Task, parameters_of, queue, submit, submitted
from gambeson.core.errors import GambesonError, InputError, RunError

TEXT = "seeds: [0, 1]\nattack: clean\nrows:\n  a: fgsm\n  b: {base: a, finetune: bn}\n"


@pytest.fixture(autouse=True)
def inside(here: Path) -> None:
    """Every file of these tests lies in a folder of their own."""


def planned(text: str = TEXT) -> Plan:
    plan = plan_of(write_sweep(text))
    plan.root.mkdir(parents=True, exist_ok=True)
    return plan


class Executor:
    """Remembers what a cluster would be told."""

    told: ClassVar[list[dict[str, Any]]] = []
    wrong: ClassVar[Exception | None] = None

    def __init__(self, folder: Path, cluster: str) -> None:
        self.parameters: dict[str, Any] = {"folder": str(folder), "cluster": cluster}

    def update_parameters(self, **parameters: Any) -> None:
        if self.wrong is not None:
            raise self.wrong
        self.parameters |= parameters

    def submit(self, task: Task) -> Any:
        self.told.append({**self.parameters, "job": task.job.name})
        return SimpleNamespace(job_id=str(100 + len(self.told)))


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """A cluster that remembers; the states by number of job."""
    states: dict[str, str] = {}
    job = lambda folder, number: SimpleNamespace(state=states.get(number, "UNKNOWN"))  # noqa: E731
    monkeypatch.setattr(Executor, "told", [])
    monkeypatch.setattr(Executor, "wrong", None)
    monkeypatch.setattr(sweep_slurm, "_submitit", lambda: SimpleNamespace(AutoExecutor=Executor, SlurmJob=job))
    return states


def test_parameters_get_slurms_prefix_and_the_command_line_wins() -> None:
    own = {"partition": "cpu", "timeout-min": 60, "slurm_qos": "low"}

    assert parameters_of("partition=gpu,constraint=a,b,gpus_per_node=1", own) == {
        "slurm_partition": "gpu",
        "timeout_min": 60,
        "slurm_qos": "low",
        "slurm_constraint": "a,b",
        "gpus_per_node": 1,
    }
    assert parameters_of("timeout_min=5,exclusive=true", {})["slurm_exclusive"] is True
    with pytest.raises(InputError, match="needs a limit of time"):
        parameters_of("partition=gpu", {})
    with pytest.raises(InputError, match="needs key=value, got 'gpu'"):
        parameters_of("gpu", own)


def test_every_row_and_seed_is_a_job_after_the_one_that_it_starts_from(cluster: dict[str, str]) -> None:
    plan = planned()

    submit(plan, {"timeout_min": 9, "slurm_additional_parameters": {"reservation": "r"}})

    told = Executor.told
    assert [one["job"] for one in told] == ["a seed 0", "a seed 1", "b seed 0", "b seed 1"]
    assert [one.get("slurm_dependency") for one in told] == [None, None, "afterok:101", "afterok:102"]
    assert told[2]["slurm_additional_parameters"] == {"reservation": "r", "kill_on_invalid_dep": "yes"}
    assert told[0]["slurm_additional_parameters"] == {"reservation": "r"}
    assert {(one["cluster"], one["folder"], one["timeout_min"]) for one in told} == {("slurm", "runs/s/slurm", 9)}
    assert submitted(plan) == {"a seed 0": "101", "a seed 1": "102", "b seed 0": "103", "b seed 1": "104"}


def test_what_is_done_or_in_the_queue_is_not_submitted_again(cluster: dict[str, str]) -> None:
    plan = planned()
    make_run(plan.jobs[0], {"clean": 0.9})
    (plan.root / "slurm.json").write_text(json.dumps({"a seed 1": "7", "b seed 0": "8"}))
    cluster |= {"7": "RUNNING", "8": "FAILED"}

    submit(plan, {"timeout_min": 9})

    assert [one["job"] for one in Executor.told] == ["b seed 0", "b seed 1"]
    assert [one.get("slurm_dependency") for one in Executor.told] == [None, "afterok:7"]
    assert queue(plan)["a seed 1"] == "RUNNING"


def test_what_may_be_in_the_queue_is_not_submitted_again(cluster: dict[str, str]) -> None:
    plan = planned()
    (plan.root / "slurm.json").write_text(json.dumps({"a seed 1": "7"}))

    with pytest.raises(RunError, match="says nothing of job 7, submitted for a seed 1"):
        submit(plan, {"timeout_min": 9})
    assert Executor.told == []


def test_a_refusal_of_the_cluster_is_an_error_of_ours(cluster: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Executor, "wrong", NameError("Unknown argument\n'partitoin'"))

    with pytest.raises(InputError, match="submitit: Unknown argument 'partitoin'"):
        submit(planned(), {"slurm_partitoin": "gpu"})


def test_without_submitit_the_command_to_install_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name == "submitit":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(GambesonError, match=r"submitit is not installed\nhint: pip install 'gambeson\[slurm\]'"):
        submit(planned(), {"timeout_min": 9})


def test_a_task_whose_base_is_not_complete_fails() -> None:
    plan = planned()

    with pytest.raises(RunError, match="b seed 0 starts from runs/s/a-seed0, which is not complete"):
        Task(plan, plan.of("b")[0])()


def test_a_task_whose_command_fails_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = planned()
    plan.jobs[0].log.write_text("$ gambeson train\ngambeson: no luck\n")
    handle = SimpleNamespace(poll=lambda: 3, returncode=3)
    monkeypatch.setattr(
        sweep_slurm, "start", lambda job, plan, words: SimpleNamespace(job=job, words=words, handle=handle)
    )

    with pytest.raises(RunError, match="a seed 0: exit code 3: no luck"):
        Task(plan, plan.jobs[0])()


def test_at_the_end_of_the_time_the_command_saves_and_the_task_is_queued_again() -> None:
    submitit = pytest.importorskip("submitit")
    plan = planned()
    sent: list[int] = []
    handle = SimpleNamespace(poll=lambda: 143 if sent else None)
    task = Task(plan, plan.jobs[0], SimpleNamespace(send=sent.append, handle=handle))  # type: ignore[arg-type]

    again = task.checkpoint()

    assert sent == [signal.SIGTERM]
    assert isinstance(again, submitit.helpers.DelayedSubmission)
    assert again.function == Task(plan, plan.jobs[0])


def test_the_stand_in_in_this_process_runs_every_job(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("submitit")
    plan = planned("seeds: [0, 1]\nattack: clean\nrows:\n  a: fgsm\n")
    begun: list[str] = []

    def start(job: Any, plan: Plan, words: list[str]) -> Any:
        begun.append(words[0])
        make_run(job, {"clean": 0.9})
        return SimpleNamespace(job=job, words=words, handle=SimpleNamespace(poll=lambda: 0, returncode=0))

    monkeypatch.setattr(sweep_slurm, "start", start)
    jobs, own = submit(plan, {"timeout_min": 9, "slurm_partition": "gpu"}, cluster="debug")

    assert [job.result() for job in jobs] == [str(job.path) for job in own]
    assert begun == ["train", "train"]
    assert all(sweep_jobs.is_done(job, plan) for job in plan.jobs)
    assert submit(plan, {"timeout_min": 9}, cluster="debug") == ([], [])


def test_the_stand_in_with_processes_trains() -> None:
    pytest.importorskip("submitit")
    plan = planned(
        "seeds: [0]\nattack: clean\nrows:\n"
        "  a: fgsm --epochs 1 --train-size 200 --test-size 50 --val-fraction 0 --device cpu --no-report\n"
    )

    jobs, _ = submit(plan, {"timeout_min": 9}, cluster="local")

    assert jobs[0].result() == "runs/s/a-seed0"
    assert sweep_jobs.is_done(plan.jobs[0], plan)
    assert "trained in" in plan.jobs[0].log.read_text()
