"""`gambeson`: dispatch, help without torch, exit codes."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from app.helpers import COMMAND, ENV, Cli, assert_error
from gambeson.app import cli as cli_module
from gambeson.app import commands
from gambeson.app.parsing import UsageError
from gambeson.core.errors import DataError, GambesonError, InputError
from gambeson.methods import METHODS

HELP = [
    ["--help"],
    ["-h"],
    *[[name, "--help"] for name in cli_module.COMMANDS],
    ["train", "n-lap", "-h"],
    ["diagnose", "cam", "--help"],
    ["diagnose", "overfitting", "--help"],
    ["diagnose", "regions", "--help"],
    *[["train", name, "--help"] for name in METHODS],
]


@pytest.mark.parametrize("args", HELP, ids=" ".join)
def test_help_goes_to_stdout_and_exits_0(args: list[str], cli: Cli) -> None:
    result = cli(*args)

    assert result.code == 0
    assert result.err == ""
    assert result.out.startswith("usage: gambeson")


def test_the_first_page_names_every_command(cli: Cli) -> None:
    out = cli("--help").out

    assert all(re.search(rf"^  {name} +\w", out, re.MULTILINE) for name in cli_module.COMMANDS)


def test_without_a_command_the_first_page_is_shown_and_the_usage_is_wrong(cli: Cli) -> None:
    result = cli()

    assert result.code == 2
    assert result.out == cli("--help").out


PAGES = [
    *[["train", name, "--help"] for name in METHODS],
    ["evaluate", "-h"],
    ["doctor", "-h"],
    ["resume", "-h"],
    ["runs", "-h"],
    ["diagnose", "cam", "-h"],
    ["diagnose", "regions", "-h"],
    ["diagnose", "criticality", "-h"],
    ["corruptions", "-h"],
    ["import", "-h"],
    ["interpolate", "-h"],
    ["finetune", "rift", "-h"],
]


def defaults(out: str) -> dict[str, str]:
    """Default by option, as a page of help shows it."""
    entries = re.split(r"\n(?=  -)", out.split("\noptions:\n")[1])
    found = {entry.split()[0]: re.search(r"\(default:\s+(.*?)\)", entry, re.DOTALL) for entry in entries}
    return {option: "".join(match[1].split()) for option, match in found.items() if match}  # wrapped at hyphens


@pytest.mark.parametrize("args", PAGES, ids=" ".join)
def test_help_shows_no_types_and_no_default_that_says_nothing(args: list[str], cli: Cli) -> None:
    out = cli(*args).out
    shown = defaults(out)

    assert "type:" not in out
    assert "null)" not in out
    assert "\u200b" not in out
    assert not re.search(r"\bNone\b", out)  # no word of the command line
    assert not {"None", "null", "==SUPPRESS=="} & set(shown.values())
    assert shown
    assert "--eps" not in shown  # the data set decides


def test_help_shows_the_defaults_that_the_data_set_gives(cli: Cli) -> None:
    digits, cifar = (defaults(cli("train", "n-lap", "--data", data, "--help").out) for data in ("digits", "cifar10"))

    assert (digits["--model"], digits["--epochs"], digits["--lr"]) == ("small-cnn", "40", "0.1")
    assert (cifar["--model"], cifar["--epochs"], cifar["--lr"]) == ("preact-resnet18", "30", "0.2")
    assert digits["--attack"] == "clean,fgsm,pgd-50"


@pytest.mark.parametrize("args", PAGES)
def test_every_option_has_hyphens_and_a_help_text(args: list[str], cli: Cli) -> None:
    out = cli(*args).out
    listed = out.split("\noptions:\n")[1]
    entries = re.split(r"\n(?=  -)", "\n" + listed)[1:]

    assert len(entries) > 2
    for entry in entries:
        option = entry.split()[0]
        assert "_" not in option, entry
        text = re.sub(r"^  (-h, )?--\S+( (\{[^}]*\}|\[\S+\]|\S+))?", "", entry)
        text = re.sub(r"\(type:.*|\(default:.*", "", text, flags=re.DOTALL)
        assert len(text.split()) >= 2, entry


def test_help_shows_how_a_flag_is_taken_back(cli: Cli) -> None:
    """What is on, or left to the data set, has a `--no-`; what is off needs none, and no default is said of it."""
    evaluate, train = cli("evaluate", "-h").out, cli("train", "n-lap", "-h").out

    for page, flags in ((evaluate, ("fold",)), (train, ("report", "flip", "deterministic"))):
        assert all(re.search(rf"^  --{flag}, --no-{flag}\b", page, re.MULTILINE) for flag in flags)
        assert "true,false" not in page
        assert not {"True", "False"} & set(defaults(page).values())
    assert re.search(r"^  --per-class  +Print", evaluate, re.MULTILINE)


def test_help_loads_no_torch() -> None:
    """All pages in one process: the first that imports torch is named."""
    code = f"""
import contextlib, io, sys
from gambeson.app.cli import main
for args in {HELP!r}:
    with contextlib.redirect_stdout(io.StringIO()):
        try:
            code = main(args)
        except SystemExit as stop:
            code = stop.code
    assert code == 0, (args, code)
    assert "torch._C" not in sys.modules, args
"""
    done = subprocess.run([sys.executable, "-c", code], env=ENV, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("args", [["--help"], ["train", "n-lap", "--help"], ["evaluate", "--help"]], ids=" ".join)
def test_help_takes_less_than_half_a_second(args: list[str], tmp_path: Path) -> None:
    """Processor time in units of what importing the parser's library takes beside it: a sixth of a second if quiet.

    Seconds would measure who else works on the machine. Modules are compiled, as in an installation, by the first run.
    """
    environment = {**ENV, "PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": str(tmp_path)}

    def seconds(command: list[str]) -> float:
        child = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        assert child.returncode == 0
        return usage.ru_utime + usage.ru_stime

    times, units = [], []
    for _ in range(5):
        times.append(seconds([*COMMAND, *args]))
        units.append(seconds([sys.executable, "-c", "import jsonargparse"]))

    assert min(times) < 3 * min(units), (times, units)


def test_the_version_is_the_installed_one(cli: Cli) -> None:
    assert re.fullmatch(r"gambeson \d+\.\d+\.\d+\n", cli("--version").out)


@pytest.mark.parametrize(("wrong", "near"), [("tarin", "train"), ("evalute", "evaluate"), ("--resume", "resume")])
def test_an_unknown_command_names_the_nearest(wrong: str, near: str, cli: Cli) -> None:
    assert_error(cli(wrong), 2, repr(wrong), f"did you mean {near}?")


def test_a_command_like_none_names_all(cli: Cli) -> None:
    assert_error(cli("xyzzy"), 2, "known: " + ", ".join(sorted(cli_module.COMMANDS)))


@pytest.mark.parametrize(
    ("error", "code"), [(UsageError("w", hint="h"), 2), (InputError("w", hint="h"), 2), (DataError("w", hint="h"), 1)]
)
def test_errors_become_a_sentence_and_a_hint(
    error: Exception, code: int, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(args: list[str]) -> int:
        raise error

    monkeypatch.setattr(commands, "train", fail)
    result = cli("train")

    assert result == (code, "", "gambeson: w\nhint: h\n")


WRITTEN_WRONGLY = [
    ["train", "nosuch"],
    ["train", "--config", "nosuch"],
    ["train", "n-lap", "--nosuch", "1"],
    ["train", "n-lap", "--data", "nosuch"],
    ["train", "n-lap", "--model", "nosuch"],
    ["train", "n-lap", "--attack", "nosuch"],
    ["train", "n-lap", "--device", "nosuch"],
    ["train", "n-lap", "--eps", "nosuch"],
    ["train", "n-lap", "--eps", "8"],
    ["train", "part", "--mask", "nosuch"],
    ["train", "n-lap", "--data", "digits", "--stream", "on"],
    ["evaluate", "r", "--attack", "nosuch"],
    ["evaluate", "r", "--split", "nosuch"],
    ["diagnose", "nosuch", "r"],
    ["corruptions", "r", "--set", "nosuch"],
    ["finetune", "nosuch", "r"],
    ["list", "nosuch"],
    ["sweep", "nosuch.yaml", "--executor", "nosuch"],
    ["sweep", "unknown-key.yaml"],
    ["sweep", "unknown-method.yaml"],
    ["sweep", "no-yaml.yaml"],
]
FAILING = [
    ["evaluate", "nowhere"],
    ["resume", "nowhere"],
    ["report", "nowhere"],
    ["runs", "list", "--root", "nowhere"],
    ["train", "n-lap", "--data", "npz:nowhere.npz"],
    ["train", "n-lap", "--data", "folder:nowhere"],
    ["train", "n-lap", "--run", "there"],
    ["train", "--config", "."],
    ["train", "--config", "no-text.yaml"],
    ["import", "nowhere.pt", "--model", "small-cnn", "--data", "digits"],
    ["sweep", "nowhere.yaml"],
    ["sweep", "no-text.yaml"],
]


@pytest.mark.parametrize(
    ("args", "code"), [*[(args, 2) for args in WRITTEN_WRONGLY], *[(args, 1) for args in FAILING]], ids=str
)
def test_the_exit_code_tells_wrong_words_from_failures(args: list[str], code: int, cli: Cli, here: Path) -> None:
    Path("there").mkdir()
    Path("no-text.yaml").write_bytes(b"\xff\xfe")
    Path("no-yaml.yaml").write_text("seeds: [0\n")
    Path("unknown-key.yaml").write_text("sedes: [0]\n")
    Path("unknown-method.yaml").write_text("seeds: [0]\nrows: {a: nosuch}\n")

    assert_error(cli(*args), code)


@pytest.mark.parametrize("words", [("--json",), ("--json", "true"), ("--json=true",)], ids=" ".join)
@pytest.mark.parametrize(
    ("error", "code"), [(UsageError("w", hint="h"), 2), (InputError("w"), 2), (DataError("w", hint="h"), 1)]
)
def test_with_json_an_error_is_an_object_too(
    error: GambesonError, code: int, words: tuple[str, ...], cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(args: list[str]) -> int:
        raise error

    monkeypatch.setattr(commands, "evaluate", fail)
    result = cli("evaluate", *words)

    assert result.code == code
    assert result.err == f"gambeson: {error}\n"
    assert json.loads(result.out) == {"error": "w", "hint": error.hint, "type": type(error).__name__, "exit_code": code}


@pytest.mark.parametrize("words", [(), ("--no-json",), ("--json", "false"), ("--json=false",)], ids=" ".join)
def test_without_json_an_error_leaves_standard_output_empty(words: tuple[str, ...], cli: Cli) -> None:
    assert_error(cli("evaluate", "nothing", *words), 1, "nothing is not a run directory")


def test_with_json_wrong_words_are_an_object_too(cli: Cli) -> None:
    for words in (("evalute", "r", "--json"), ("evaluate", "r", "--json", "--atack", "fgsm"), ("runs", "--json")):
        result = cli(*words)
        found = json.loads(result.out)
        assert (result.code, found["type"], found["exit_code"]) == (2, "UsageError", 2)
        hint = f"\nhint: {found['hint']}" if found["hint"] else ""
        assert result.err == f"gambeson: {found['error']}{hint}\n"


def test_with_json_an_interruption_is_an_object_too(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(args: list[str]) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(commands, "evaluate", interrupt)
    result = cli("evaluate", "r", "--json")

    assert json.loads(result.out) == {
        "error": "interrupted",
        "hint": None,
        "type": "KeyboardInterrupt",
        "exit_code": 130,
    }
    assert (result.code, result.err) == (130, "interrupted\n")


def test_with_json_a_fault_of_the_program_is_an_object_before_its_traceback(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(args: list[str]) -> int:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(commands, "evaluate", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        cli("evaluate", "r", "--json")

    found = json.loads(capsys.readouterr().out)
    assert (found["error"], found["type"], found["exit_code"]) == ("out of memory", "RuntimeError", 1)


def test_of_several_processes_the_first_prints_the_object(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    assert_error(cli("evaluate", "nothing", "--json"), 1, "nothing is not a run directory")


def test_an_interruption_before_there_is_anything_to_save_exits_130(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(args: list[str]) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(commands, "train", interrupt)
    result = cli("train")

    assert (result.code, result.out) == (130, "")
    assert "interrupted" in result.err


@pytest.mark.parametrize(
    "args",
    [
        ["list", "methods"],
        ["--help"],
        ["train", "n-lap", "--help"],
        ["resume", "--help"],
    ],
    ids=str,
)
def test_a_reader_that_has_gone_is_no_error(args: list[str]) -> None:
    """`gambeson list methods | head -1`."""
    child = subprocess.Popen([*COMMAND, *args], env=ENV, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert child.stdout is not None
    assert child.stderr is not None
    child.stdout.close()
    err = child.stderr.read().decode()
    child.stderr.close()

    assert (child.wait(), err) == (0, "")
