import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gambeson.core.errors import RunError
from gambeson.engine.run import Run, read_json, versions, write_json

LOCK = """
import sys
from pathlib import Path
from gambeson.core.errors import RunError
from gambeson.engine.run import Run
try:
    with Run(Path(sys.argv[1]), {}).locked():
        print("locked")
        sys.stdout.flush()
        sys.stdin.readline()
except RunError as error:
    print(error)
"""


def test_a_run_is_a_directory_with_its_call(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "deep" / "run", {"method": "n-lap", "eps": 8 / 255})
    assert sorted(os.listdir(run.path)) == ["checkpoints", "evaluations", "run.json"]
    again = Run.open(run.path)
    assert again.call == run.call
    assert (again.call["method"], again.call["eps"], again.call["format"]) == ("n-lap", 8 / 255, 1)
    assert set(again.call["versions"]) >= {"gambeson", "torch", "numpy", "python"}
    assert again.call["versions"] == versions()
    assert run.checkpoint("best") == run.path / "checkpoints" / "best.safetensors"


def test_nothing_that_exists_is_overwritten(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", {"method": "a"})
    (tmp_path / "file").write_text("mine")
    (tmp_path / "empty").mkdir()
    for name in ("run", "file", "empty"):
        with pytest.raises(RunError, match="exists already; nothing was overwritten") as error:
            Run.create(tmp_path / name, {"method": "b"})
        assert f"gambeson resume {tmp_path / name}" in str(error.value.hint)
    assert Run.open(run.path).call["method"] == "a"
    assert (tmp_path / "file").read_text() == "mine"
    assert os.listdir(tmp_path / "empty") == []


def test_a_place_that_cannot_be_written_is_a_run_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot write the run directory") as error:
        Run.create(tmp_path / "file" / "run", {})
    assert error.value.hint == "choose another with --run"


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_parent_is_a_run_error(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(RunError, match="Permission denied"):
            Run.create(tmp_path / "run", {})
    finally:
        tmp_path.chmod(0o700)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "is not a run directory"),
        ("{", "cannot be read"),
        ("[]", "another format"),
        ('{"format": 99}', "another format than 1"),
    ],
)
def test_what_is_no_run_is_refused(content: str | None, message: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "run.json").write_text(content)
    with pytest.raises(RunError, match=message):
        Run.open(tmp_path)


def test_a_run_file_of_noise_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_bytes(bytes(range(128, 256)))
    with pytest.raises(RunError):
        Run.open(tmp_path)


def test_metrics_are_appended_and_read_back(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", {})
    assert run.rows() == []
    rows = [{"step": 1, "loss": 0.1 + 0.2}, {"step": 2, "event": "naïve"}]
    for row in rows:
        run.log(row)
    assert run.rows() == Run.open(run.path).rows() == rows


@pytest.mark.parametrize("tail", ["{", '{"step": 3, "lo', '{"step": 3, "loss": 1', "\x00\x00"])
def test_a_half_written_last_line_is_left_out(tail: str, tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", {})
    for step in (1, 2):
        run.log({"step": step})
    with open(run.metrics, "a") as file:
        file.write(tail)
    assert [row["step"] for row in run.rows()] == [1, 2]
    run.trim(2)
    run.log({"step": 3})
    assert [row["step"] for row in run.rows()] == [1, 2, 3]


@pytest.mark.parametrize("line", ["3", "[]", "null", '"step"', "{}", '{"epoch": 1}'])
def test_a_line_that_is_no_row_of_metrics_is_named(line: str, tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", {})
    run.log({"step": 1})
    with open(run.metrics, "a") as file:
        file.write(line + "\n")
    before = run.metrics.read_bytes()
    for read in (run.rows, lambda: run.trim(0)):
        with pytest.raises(RunError, match=r"metrics\.jsonl is damaged: a line is"):
            read()
    assert run.metrics.read_bytes() == before


def test_metrics_that_are_no_text_are_named(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", {})
    run.metrics.write_bytes(b"\xff\xfe\n")
    with pytest.raises(RunError, match=r"metrics\.jsonl is damaged"):
        run.rows()


def test_trim_drops_what_a_resumed_run_writes_again(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", {})
    run.trim(5)
    assert run.rows() == []
    for step in (1, 2, 2, 3, 4):
        run.log({"step": step})
    run.trim(2)
    assert [row["step"] for row in run.rows()] == [1, 2, 2]
    assert not [name for name in os.listdir(run.path) if "partial" in name]


def test_a_second_process_is_kept_out_while_the_first_holds_the_lock(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", {})
    command = [sys.executable, "-c", LOCK, str(run.path)]
    with run.locked():
        second = subprocess.run(command, input="\n", capture_output=True, text=True, check=True)
        assert "is being trained by another process" in second.stdout
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "locked\n"
        with pytest.raises(RunError, match=f"{run.path} is being trained"), run.locked():
            pass
        first.kill()  # a killed process holds nothing
    with run.locked():
        pass


def test_the_lock_falls_with_an_exception(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", {})
    with pytest.raises(ZeroDivisionError), run.locked():
        _ = 1 / 0
    with run.locked():
        pass


def test_evaluations_are_listed_oldest_first(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", {})
    for age, name in enumerate(["b", "c", "a"]):
        file = run.path / "evaluations" / f"{name}.json"
        write_json(file, {"n": age})
        os.utime(file, (age, age))
    assert list(run.evaluations()) == ["b", "c", "a"]
    assert run.evaluations()["a"] == {"n": 2}


def test_json_is_replaced_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "a.json"
    write_json(file, {"a": 1})

    def fail(*_: object) -> None:
        raise OSError("no")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="no"):
        write_json(file, {"a": 2})
    assert json.loads(file.read_text()) == {"a": 1}


@pytest.mark.parametrize("content", [{"a": [1, None, "naïve"]}, [1], "text"])
def test_json_is_read_as_it_was_written(content: Any, tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", content)
    assert read_json(tmp_path / "a.json") == content


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe"])
def test_json_that_cannot_be_read_is_named(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_bytes(content)
    with pytest.raises(RunError, match=r"a\.json cannot be read"):
        read_json(file)


def test_json_that_is_not_there_is_named(tmp_path: Path) -> None:
    for path in (tmp_path / "a.json", tmp_path):
        with pytest.raises(RunError, match="cannot be read"):
            read_json(path)
