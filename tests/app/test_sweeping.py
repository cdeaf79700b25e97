"""`gambeson sweep` as it is typed: what it prints, refuses and leaves behind, and a training that is really stopped."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from app.helpers import COMMAND, ENV, Cli, assert_error, header_of, make_run, write_sweep
from gambeson.app import sweep_local
from gambeson.app.sweep_file import KEYS
from gambeson.app.sweep_plan import Plan, plan_of
from gambeson.app.sweeping import FORM

TEXT = "seeds: [0, 1]\nattack: clean,fgsm\nrows: {a: fgsm, b c: n-fgsm --eps 0.1}\npairs: [[b c, a]]\n"


def filled() -> Plan:
    plan = plan_of(write_sweep(TEXT))
    for number, job in enumerate(plan.jobs):
        make_run(job, {"clean": 0.9 - 0.1 * number, "fgsm": 0.5})
    return plan


def test_a_dry_run_prints_the_commands_and_makes_nothing(cli: Cli) -> None:
    write_sweep(TEXT)

    result = cli("sweep", "s.yaml", "--dry-run", "--root", "r")

    assert result.code == 0
    assert result.out.splitlines()[0] == "gambeson train fgsm --seed 0 --attack clean,fgsm --run r/a-seed0"
    assert len(result.out.splitlines()) == 4
    assert result.err == "4 of 4 runs are to be made in r; nothing was run\n"
    assert not Path("r").exists()


def test_a_dry_run_as_json_has_state_and_commands(cli: Cli) -> None:
    plan = plan_of(write_sweep(TEXT))
    make_run(plan.jobs[0], {"clean": 0.9, "fgsm": 0.5})

    found = json.loads(cli("sweep", "s.yaml", "--dry-run", "--json").out)

    assert [(job["state"], len(job["commands"])) for job in found["jobs"]] == [
        *(("done", 0), ("not begun", 1), ("not begun", 1), ("not begun", 1))
    ]
    assert found["jobs"][1]["commands"][0][:3] == ["gambeson", "train", "n-fgsm"]


def test_a_typo_in_any_row_is_said_before_anything_starts(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep_local, "start", lambda *args: pytest.fail("a command was started"))
    rows = "".join(f"  r{number}: fgsm\n" for number in range(6))
    write_sweep(f"seeds: [0]\nrows:\n{rows}  seven: fgsm --epohcs 3\n")

    assert_error(cli("sweep", "s.yaml"), 2, "row 'seven': unknown option --epohcs", "did you mean --epochs")
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ("npz:none.npz", "there is no file none.npz"),
        ("folder:none", "there is no folder none"),
        ("cifar10 --data-dir s.yaml", "s.yaml is a file"),
    ],
)
def test_data_that_are_not_there_are_said_before_anything_starts(
    data: str, said: str, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep_local, "start", lambda *args: pytest.fail("a command was started"))
    write_sweep(f"seeds: [0]\nrows:\n  a: fgsm\n  b: fgsm --data {data}\n  c: {{base: b, finetune: bn}}\n")

    for words in ([], ["--dry-run"]):
        assert_error(cli("sweep", "s.yaml", *words), 1, "row 'b': ", said)
    assert not Path("runs").exists()


def test_what_is_done_needs_its_data_no_more(cli: Cli) -> None:
    Path("mine.npz").write_text("not read")
    plan = plan_of(write_sweep("seeds: [0]\nattack: clean\nrows: {a: fgsm --data npz:mine.npz --eps 0.1}\n"))
    make_run(plan.jobs[0], {"clean": 0.9})
    Path("mine.npz").unlink()

    for words in (["--dry-run"], ["--table"], []):
        result = cli("sweep", "s.yaml", *words)
        assert result.code == 0, result.err
    Path("runs/s/a-seed0/evaluations/final-test-1.json").unlink()
    assert_error(cli("sweep", "s.yaml", "--dry-run"), 1, "row 'a': there is no file mine.npz")


def test_a_folder_of_another_command_is_refused_before_anything_starts(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep_local, "start", lambda *args: pytest.fail("a command was started"))
    filled()
    write_sweep(TEXT.replace("--eps 0.1", "--eps 0.15"))

    for words in ([], ["--table"], ["--dry-run"]):
        result = cli("sweep", "s.yaml", *words)
        assert_error(
            result, 1, "runs/s/b-c-seed0 is not the run of b c seed 0: method.args.eps is 0.1 there, 0.15 here"
        )


def test_the_table_is_printed_in_every_form_and_written(cli: Cli) -> None:
    filled()

    shown = cli("sweep", "s.yaml", "--table")
    markdown = cli("sweep", "s.yaml", "--table", "--markdown").out
    found = json.loads(cli("sweep", "s.yaml", "--table", "--json", "--interval", "bootstrap").out)
    lines = cli("sweep", "s.yaml", "--table", "--csv").out.splitlines()

    assert shown.code == 0
    assert "4 of 4 runs are done" in shown.out
    assert "80.0 ± 14.1" in shown.out
    assert "b c - a" in shown.out
    assert markdown.splitlines()[2].startswith("| a | 2 | 80.0 ± 14.1 [")
    assert (found["interval"], found["failed"]) == ("bootstrap", [])
    assert len(lines) == 1 + 2 * 2 + 2
    assert Path("runs/s/table.md").read_text() == markdown
    assert json.loads(Path("runs/s/table.json").read_text())["rows"][0]["label"] == "a"
    assert Path("runs/s/table.csv").read_text().splitlines() == lines


def test_a_sweep_that_is_done_runs_nothing_and_prints_the_table(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep_local, "start", lambda *args: pytest.fail("a command was started"))
    filled()

    result = cli("sweep", "s.yaml", "--only", "a")

    assert result.code == 0
    assert "2 of 2 runs are done" in result.out


def test_failures_are_listed_at_the_end_and_the_others_are_measured(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = filled()
    run = plan.of("a")[1].path
    (run / "run.json").rename("kept")
    run.rename("away")
    monkeypatch.setattr(sweep_local, "COMMAND", (sys.executable, "-c", "raise SystemExit('gambeson: no luck')"))

    result = cli("sweep", "s.yaml")
    as_json = cli("sweep", "s.yaml", "--json")

    assert (result.code, as_json.code) == (1, 1)
    assert "3 of 4 runs are done" in result.out
    assert re.search(r"^ a +1 +failed", result.out, re.MULTILINE)
    assert result.err.endswith("1 of 4 runs failed:\n  a seed 1: exit code 1: no luck (runs/s/a-seed1.log)\n")
    assert [(one["label"], one["seed"], one["why"]) for one in json.loads(as_json.out)["failed"]] == [
        ("a", 1, "exit code 1: no luck")
    ]


def test_the_help_shows_a_file_that_is_one(cli: Cli) -> None:
    result = cli("sweep", "--help")

    assert (result.code, result.err) == (0, "")
    assert result.out.startswith("usage: gambeson sweep FILE")
    shown = FORM.partition("\n")[2]
    assert shown in result.out
    plan = plan_of(write_sweep(textwrap.dedent(shown)))
    assert plan.labels[-1] == "RiFT eps=2/10"
    assert set(re.findall(r"^  (\w+):", shown, re.MULTILINE)) == set(KEYS)


WRONG = [
    ((), 2, "sweep needs one file, got 0"),
    (("s.yaml", "t.yaml"), 2, "sweep needs one file, got 2"),
    (("missing.yaml",), 1, "cannot read missing.yaml"),
    (("s.yaml", "--jobs", "0"), 2, "--jobs must be at least 1, got 0"),
    (("s.yaml", "--job", "2"), 2, "did you mean --jobs"),
    (("s.yaml", "--json", "--csv"), 2, "one form at a time, got --json and --csv"),
    (("s.yaml", "--executor", "slrum"), 2, "unknown executor 'slrum'"),
    (("s.yaml", "--slurm", "partition=gpu"), 2, "--executor slurm"),
    (("s.yaml", "--executor", "slurm", "--jobs", "2"), 2, "--jobs is for runs on this machine"),
    (("s.yaml", "--executor", "slurm", "--slurm", "partition=gpu"), 2, "needs a limit of time"),
    (("s.yaml", "--devices", "gpu0"), 2, "unknown device 'gpu0'"),
    (("s.yaml", "--devices", "cuda:99"), 1, "'cuda:99' is not there"),
    (("s.yaml", "--devices", ","), 2, "--devices names no device"),
    (("s.yaml", "--only", "bc"), 2, "did you mean b c?"),
    (("s.yaml", "--root", "s.yaml"), 1, "s.yaml is no folder"),
    (("s.yaml", "--table", "--interval", "wald"), 2, "unknown interval 'wald'"),
]


@pytest.mark.parametrize(("words", "code", "said"), WRONG, ids=[" ".join(words) or "-" for words, _, _ in WRONG])
def test_wrong_usage_is_refused(words: tuple[str, ...], code: int, said: str, cli: Cli) -> None:
    write_sweep(TEXT)
    result = cli("sweep", *words)

    if "--json" in words:
        assert said in json.loads(result.out)["error"]
        assert result.code == code
    else:
        assert_error(result, code, said)


def test_devices_and_a_rows_own_device_contradict_each_other(cli: Cli) -> None:
    write_sweep(f"{TEXT}common: {{device: cpu}}\n")

    assert_error(cli("sweep", "s.yaml", "--devices", "cpu"), 2, "row 'a' says --device, and --devices hands them out")


def test_two_sweeps_do_not_share_a_folder(cli: Cli) -> None:
    plan = plan_of(write_sweep(TEXT))
    plan.root.mkdir(parents=True)
    code = "import sys; from pathlib import Path; from gambeson.engine.run import Run\n"
    code += "with Run(Path('runs/s'), {}).locked(): print('held', flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        result = cli("sweep", "s.yaml")
        other.communicate()

    assert_error(result, 1, "another sweep runs in runs/s")


def test_a_sweep_that_is_stopped_saves_and_the_same_command_goes_on(cli: Cli) -> None:
    """A real training in a real process, stopped in its middle by the Ctrl-C that the sweep gets."""
    write_sweep(
        "seeds: [0]\nattack: clean\nrows:\n"
        "  a: fgsm --epochs 5 --train-size 120 --batch-size 4 --val-fraction 0 --probe-every 0 --log-every 1"
        " --device cpu --no-report --test-size 20\n"
    )
    run = Path("runs/s/a-seed0")
    with subprocess.Popen([*COMMAND, "sweep", "s.yaml"], env=ENV, stderr=subprocess.PIPE, text=True) as sweep:
        until = time.monotonic() + 120
        while not (run / "metrics.jsonl").exists() and time.monotonic() < until:
            time.sleep(0.02)
        sweep.send_signal(signal.SIGINT)
        err = sweep.communicate(timeout=120)[1]

    assert sweep.returncode == 130, err
    assert "0 of 1 runs are done, 1 are not. Go on with: gambeson sweep s.yaml" in err
    step = header_of(run / "checkpoints/last.safetensors")["step"]
    assert 0 < step < 150
    assert f"after step {step}; saved. Go on with: gambeson resume {run}" in Path("runs/s/a-seed0.log").read_text()

    result = cli("sweep", "s.yaml")

    assert result.code == 0, result.err
    assert "1 of 1 runs are done" in result.out
    assert header_of(run / "checkpoints/final.safetensors")["step"] == 150
    log = Path("runs/s/a-seed0.log").read_text()
    assert [line.split()[2] for line in log.splitlines() if line.startswith("$ gambeson")] == ["train", "resume"]
    assert f"going on from step {step} of 150" in log
