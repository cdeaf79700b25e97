"""`gambeson demo`: its commands in order, each as it would be typed, and where it stops."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from app.helpers import Cli, assert_error
from gambeson.app import commands, demo, measuring, reporting, training, tuning
from gambeson.app.options import EvaluateOptions, ReportOptions, RiftOptions, TrainOptions
from gambeson.app.parsing import Parser, options_of, split_words
from gambeson.app.training import train_parser
from gambeson.methods import METHODS

MODULES = {"train": training, "evaluate": measuring, "finetune": tuning, "report": reporting}


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The commands that the demonstration calls, none of which is carried out."""
    calls: list[list[str]] = []
    for name in MODULES:
        monkeypatch.setattr(commands, name, lambda words, name=name: calls.append([name, *words]) or 0, raising=False)
    return calls


def test_the_commands_are_those_that_are_printed(called: list[list[str]], cli: Cli) -> None:
    result = cli("demo", "--test-size", "7")

    assert result.code == 0
    printed = [line.removeprefix("$ gambeson ") for line in result.out.splitlines() if line.startswith("$ ")]
    assert [shlex.split(line) for line in printed] == called == demo.steps(Path("runs/demo-1"), 7, "auto")
    assert [call[0] for call in called] == ["train", "evaluate", "finetune", "evaluate", "report"]
    assert "runs/demo-1/report.html" in result.err


def test_every_command_is_one(here: Path) -> None:
    """Its options are known, and the runs it names are those that came before."""
    made: set[str] = set()
    for name, *words in demo.steps(Path("d"), 64, "cpu"):
        if name == "train":
            parser, _ = train_parser("n-lap", METHODS["n-lap"], "digits")
            schema: type = TrainOptions
        else:
            schema = {"evaluate": EvaluateOptions, "finetune": RiftOptions, "report": ReportOptions}[name]
            parser = Parser("x", "")
            parser.add(schema)
        rest, options = split_words(words, parser.flags)
        found = options_of(schema, parser.parse(options))
        runs = [word for word in rest if word not in ("n-lap", "rift")]
        assert set(runs) <= made
        made |= {found.run} if name in ("train", "finetune") else set()
    assert made == {"d/n-lap", "d/n-lap-rift"}


def test_it_stops_where_a_command_stops(called: list[list[str]], cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands, "evaluate", lambda words: 130, raising=False)

    assert cli("demo").code == 130
    assert [call[0] for call in called] == ["train"]


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (("n-lap",), 2, "demo takes no 'n-lap'"),
        (("--test-size", "0"), 2, "--test-size must be at least 1"),
        (("--run", "there"), 1, "there"),
    ],
)
def test_refusals(args: tuple[str, ...], code: int, words: str, cli: Cli, here: Path) -> None:
    (here / "there").mkdir()
    assert_error(cli("demo", *args), code, words)
