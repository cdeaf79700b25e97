"""Where the jobs of a sweep stand, and whether a run directory is the job's own."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from app.helpers import Cli, make_run, write_sweep
from gambeson.app.sweep_jobs import (
    commands,
    environment,
    evaluation,
    is_done,
    last_line,
    next_command,
    require_own,
    state,
)
from gambeson.app.sweep_plan import Plan, plan_of
from gambeson.core.errors import RunError

TEXT = "seeds: [1]\nattack: clean,pgd-10\nrows:\n  a: fgsm --eps 0.2\n"
BOTH = {"clean": 0.9, "pgd-10": 0.4}


@pytest.fixture(autouse=True)
def inside(here: Path) -> None:
    """Every file of these tests lies in a folder of their own."""


def planned(text: str = TEXT) -> Plan:
    return plan_of(write_sweep(text))


def edit(path: Path, **changes: Any) -> None:
    file = path / "run.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def test_what_is_missing_is_run_and_what_was_interrupted_is_resumed() -> None:
    plan = planned()
    job = plan.jobs[0]

    assert next_command(job, plan) == list(job.command)
    assert state(job, plan) == "not begun"
    path = make_run(job, {"clean": 0.9})
    (path / "checkpoints/final.safetensors").rename(path / "checkpoints/last.safetensors")
    assert next_command(job, plan) == ["resume", str(path)]
    assert state(job, plan) == "step 2"
    shutil.rmtree(path)
    make_run(job, BOTH)
    assert next_command(job, plan) is None
    assert (is_done(job, plan), state(job, plan)) == (True, "done")


def test_a_run_without_one_of_the_attacks_is_trained_but_not_measured() -> None:
    plan = planned()
    make_run(plan.jobs[0], {"clean": 0.9})

    assert next_command(plan.jobs[0], plan) == ["resume", str(plan.jobs[0].path)]
    assert state(plan.jobs[0], plan) == "trained, not evaluated"


def test_corruptions_follow() -> None:
    plan = planned(f"{TEXT}ood: --set rift18\n")
    job = plan.jobs[0]
    following = ["corruptions", str(job.path), "--checkpoint", "final", "--set", "rift18"]

    assert commands(job, plan) == [list(job.command), following]
    path = make_run(job, BOTH)
    assert (commands(job, plan), state(job, plan)) == ([following], "corruptions to be measured")
    (path / "diagnosis").mkdir()
    (path / "diagnosis/corruptions-final-standard15.json").write_text(json.dumps({"ood": {"value": 0.5}}))
    assert not is_done(job, plan)  # another set's
    (path / "diagnosis/corruptions-final-rift18.json").write_text(json.dumps({"ood": {"value": 0.5}}))
    assert commands(job, plan) == []


def test_the_evaluation_is_the_one_of_the_last_weights_the_runs_budget_and_the_most_images() -> None:
    plan = planned()
    path = make_run(plan.jobs[0], BOTH)
    file = path / "evaluations/final-test-1.json"
    record = json.loads(file.read_text())
    wrong: list[dict[str, Any]] = [
        {"checkpoint": "best"},
        {"eps": 0.1},
        {"split": "val"},
        {"data": "mnist"},
        {"n": 10},
        {"step": 1},
    ]
    for number, change in enumerate(wrong, start=2):
        file.with_name(f"final-test-{number}.json").write_text(json.dumps({**record, **change}))

    found = evaluation(plan.jobs[0], plan)
    assert found is not None
    assert found[0] == "final-test-1"


def test_a_folder_of_another_training_is_refused_and_the_setting_named() -> None:
    plan = planned()
    make_run(plan.jobs[0], BOTH)
    require_own(plan)

    for text, said in (
        (TEXT.replace("0.2", "0.3"), r"method.args.eps is 0.2 there, 0.3 here"),
        (TEXT.replace("fgsm", "n-fgsm"), "method.name is 'fgsm' there, 'n-fgsm' here"),
        (TEXT.replace("fgsm", "fgsm --epochs 2"), "settings.epochs is 40 there, 2 here"),
        (TEXT.replace(",pgd-10", ""), "attack is 'clean,pgd-10' there, 'clean' here"),
        (TEXT.replace("fgsm", "fgsm --test-size 9"), "test_size is None there, 9 here"),
        (TEXT.replace("a: fgsm --eps 0.2", "a: {base: b, finetune: bn}\n  b: fgsm"), "it is a training, not a fine-"),
    ):
        with pytest.raises(RunError, match=f"runs/s/a-seed1 is not the run of a seed 1: .*{said}"):
            require_own(planned(text))


def test_moved_files_and_a_missing_younger_argument_are_no_difference() -> None:
    plan = planned()
    path = make_run(plan.jobs[0], BOTH)
    call = json.loads((path / "run.json").read_text())
    call["method"]["args"].pop("norm", None)
    edit(path, method=call["method"], data={**call["data"], "dir": "/elsewhere"})

    require_own(plan)


def test_how_a_folder_was_read_is_no_difference(photos: Path) -> None:
    plan = planned(TEXT.replace("fgsm", f"fgsm --data folder:{photos} --size 8"))
    path = make_run(plan.jobs[0], BOTH)
    call = json.loads((path / "run.json").read_text())
    assert call["data"]["stream"] == "auto"  # which a training resolves by the memory it finds
    edit(path, data={**call["data"], "stream": "on", "measured_on": 2048, "sizes": {"train": 20, "val": 5, "test": 5}})

    require_own(plan)


def test_a_fine_tuning_of_another_run_is_refused() -> None:
    plan = planned("seeds: [1]\nattack: clean\nrows: {a: fgsm, b: {base: a, finetune: bn}}\n")
    job = plan.of("b")[0]
    path = make_run(job, {"clean": 1.0}, eps=0.2)
    edit(path, finetune={"base": {"run": "/other/run"}})
    with pytest.raises(RunError, match="b seed 1: it started from /other/run"):
        require_own(plan)
    edit(path, finetune={"base": {"run": str(plan.of("a")[0].path.resolve())}})
    require_own(plan)  # the base is still to be trained again
    shutil.copytree(path, plan.of("a")[0].path)
    with pytest.raises(RunError, match="a seed 1: it is a fine-tuning of"):
        require_own(plan)


def test_a_fine_tuning_with_other_options_is_refused(trained: Path, cli: Cli) -> None:
    text = (
        "seeds: [0]\nattack: clean,fgsm\ncommon: {epochs: 1, train_size: 200, test_size: 50, device: cpu}\nrows:\n"
        "  a: n-lap\n  b: {base: a, finetune: bn, epochs: 1, alphas: '0,1', test_size: 50, tolerance: 1}\n"
    )
    plan = planned(text)
    base, job = plan.jobs
    shutil.copytree(trained, base.path)
    assert cli(*job.command, "--device", "cpu", "--no-report").code == 0

    require_own(plan)
    assert is_done(job, plan)
    for old, new, said in (
        ("tolerance: 1", "tolerance: 2", "finetune.tolerance is 1.0 there, 2.0 here"),
        ("'0,1'", "'0,0.5,1'", "finetune.alphas is '0,1' there, '0,0.5,1' here"),
        ("test_size: 50, tol", "test_size: 40, tol", "test_size is 50 there, 40 here"),
    ):
        with pytest.raises(RunError, match=f"b-seed0 is not the run of b seed 0: {said}"):
            require_own(planned(text.replace(old, new)))


def test_a_folder_that_is_no_run_is_refused() -> None:
    Path("runs/s/a-seed1").mkdir(parents=True)

    with pytest.raises(RunError, match="is not a run directory"):
        require_own(planned())


def test_commands_have_the_threads_of_the_sweep() -> None:
    assert environment(planned(f"{TEXT}threads: 3\n"))["OMP_NUM_THREADS"] == "3"


@pytest.mark.parametrize(
    ("log", "said"),
    [
        ("$ gambeson train\ngambeson: there is no data set\nhint: known: digits\n", "there is no data set"),
        ("$ gambeson train\ngambeson: note: late\nTraceback\nKeyError: 'x'\n\n", "KeyError: 'x'"),
        ("$ gambeson train\ngambeson: old\n$ gambeson resume r\n", ""),
    ],
)
def test_the_line_of_a_log_that_says_why(log: str, said: str) -> None:
    Path("l").write_text(log)

    assert last_line(Path("l")) == said
    assert last_line(Path("missing")) == ""
