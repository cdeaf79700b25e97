"""What several processes of one command say: an error that all have is said once, and that of one alone is not lost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from torch.distributed import TCPStore

from app.helpers import COMMAND, ENV, command
from gambeson.app import processes

Finished = Callable[[str], Path]
NOTHING = "gambeson: nothing is not a run directory (no run.json)\nhint: `gambeson runs list` shows the runs\n"


@pytest.fixture
def agent() -> Iterator[dict[str, str]]:
    """What torchrun's agent tells its processes of the store that it keeps for them."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    yield {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    del store  # until here


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["train", "n-lap", "--epohcs", "3"], 2, "gambeson: unknown option --epohcs\nhint: did you mean --epochs"),
        (["evaluate", "nothing", "--json"], 1, NOTHING),
        (["train", "n-lap", "--train-size", "0"], 2, "gambeson: --train-size must be between 1 and the 1330 training"),
    ],
    ids=["before the group", "with json", "in the group"],
)
def test_an_error_of_all_is_said_once(
    words: list[str], code: int, said: str, agent: dict[str, str], here: Path
) -> None:
    ran = command(here, words, 3, agent=agent)
    (out, err), *others = [process.communicate(timeout=120) for process in ran]

    assert [process.returncode for process in ran] == [code] * 3
    assert err.startswith(said)
    assert err.count("gambeson: ") == 1
    assert others == [("", "")] * 2
    if "--json" in words:
        assert json.loads(out)["exit_code"] == code


def test_an_error_of_one_alone_is_said_with_its_number(finished: Finished, agent: dict[str, str], here: Path) -> None:
    finished("here/nothing")
    (here / "there").mkdir()
    words = ["evaluate", "nothing", "--attack", "fgsm"]
    ran = command(here / "here", words, others=here / "there", agent=agent)
    first, second = (process.communicate(timeout=120)[1] for process in ran)

    assert [process.returncode for process in ran] == [1, 1]
    assert second == f"process 1 of 2: {NOTHING}"
    assert "gambeson: process 0 of 2 lost the others: one of them has ended" in first


@pytest.fixture
def second(agent: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """This process is the second of two."""
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", **agent}.items():
        monkeypatch.setenv(name, value)


def test_where_the_first_is_silent_the_others_speak(second: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "PATIENCE", 0.3)
    said: list[str] = []
    processes.say_once("gambeson: w", said.append)
    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE")  # started by something else
    monkeypatch.setattr(processes, "PATIENCE", 3600)
    processes.say_once("gambeson: x", said.append)

    assert said == ["process 1 of 2: gambeson: w", "process 1 of 2: gambeson: x"]


def test_two_errors_are_both_said(second: None, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setenv("RANK", "0")
    processes.say_once("gambeson: w\nhint: h", said.append)
    monkeypatch.setenv("RANK", "1")
    processes.say_once("gambeson: x", said.append)
    processes.say_once("gambeson: w\nhint: h", said.append)

    assert said == ["gambeson: w\nhint: h", "process 1 of 2: gambeson: x"]


def test_a_signal_does_not_silence_what_is_not_said_yet(agent: dict[str, str]) -> None:
    """When a process ends, torchrun sends SIGTERM to the others."""
    code = "import sys; from gambeson.app import processes; processes.PATIENCE = 3; before = processes._store;"
    code += "processes._store = lambda: print('asking', flush=True) or before();"
    code += "processes.say_once('gambeson: w', lambda words: print(words, file=sys.stderr))"
    child = subprocess.Popen(
        [COMMAND[0], "-c", code],
        env={**ENV, **agent, "RANK": "1", "WORLD_SIZE": "2"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "asking\n"
    os.kill(child.pid, signal.SIGTERM)

    assert child.communicate(timeout=60)[1] == "process 1 of 2: gambeson: w\n"
    assert child.returncode == 0
