"""Which lines of a comparison are one test."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from app.helpers import Cli, header_of
from gambeson.app.compare import compare
from gambeson.app.families import distinct
from gambeson.engine.run import Run

Finished = Callable[[str], Path]


def answer(run: Path, right: int, *names: str) -> None:
    """Let checkpoints classify the first images correctly under attack, and no other."""
    for name in names:
        file = run / f"evaluations/{name}-test-fgsm-1.npz"
        with np.load(file, allow_pickle=False) as found:
            arrays = dict(found)
        arrays["fgsm"] = np.arange(len(arrays["y"])) < right
        np.savez(file, **arrays)


def move(run: Path, name: str) -> None:
    """Change one weight of a checkpoint."""
    file = run / f"checkpoints/{name}.safetensors"
    header, tensors = header_of(file), load_file(file)
    key = next(key for key, t in tensors.items() if t.is_floating_point())
    tensors[key].flatten()[0] += 1
    save_file(tensors, file, metadata={"gambeson": json.dumps(header)})


def compared(*names: str) -> dict[str, Any]:
    return compare([Run.open(Path(name)) for name in names])


def test_best_and_final_of_the_same_weights_are_one_test(finished: Finished, cli: Cli) -> None:
    """7 examples right in the second only: p = 0.0156; the 4 lines are two tests, clean and FGSM."""
    answer(finished("one"), 10, "best", "final")
    answer(finished("two"), 17, "best", "final")
    found = compared("one", "two")
    lines = {line["key"]: line for line in found["paired"]}

    assert (len(lines), found["tests"], found["correction"]) == (4, 2, "holm")
    for name in ("best", "final"):
        assert lines[f"{name} fgsm Linf 0.2"]["p"] == pytest.approx(2 / 2**7)
        assert lines[f"{name} fgsm Linf 0.2"]["p_holm"] == pytest.approx(4 / 2**7)
        assert lines[f"{name} fgsm Linf 0.2"]["significant"]
        assert lines[f"{name} clean"]["p_holm"] == 1
    out = cli("runs", "compare", "one", "two").out
    assert "Holm's correction for the 2 tests of this table (4 lines: of the same weights under two names" in out


def test_main_is_no_further_test_where_its_weights_stand_in_another_line(finished: Finished) -> None:
    """`main` is `best` of one and `final` of two, and one's `final` is its `best`."""
    answer(finished("one"), 10, "best", "final")
    answer(finished("two"), 17, "best", "final")
    Path("two/checkpoints/best.safetensors").unlink()
    found = compared("one", "two")

    assert [line["key"] for line in found["paired"]] == [
        *("final clean", "final fgsm Linf 0.2", "main clean", "main fgsm Linf 0.2")
    ]
    assert found["tests"] == 2
    assert found["paired"][3]["p_holm"] == pytest.approx(4 / 2**7)

    move(Path("one"), "best")
    assert compared("one", "two")["tests"] == 4


def test_other_weights_that_answer_alike_are_another_test(finished: Finished) -> None:
    answer(finished("one"), 10, "best", "final")
    answer(finished("two"), 17, "best", "final")
    move(Path("two"), "final")
    found = compared("one", "two")

    assert found["tests"] == 4
    assert [line["p_holm"] for line in found["paired"]] == pytest.approx([1, 8 / 2**7, 1, 8 / 2**7])


def test_the_same_weights_with_other_outcomes_are_another_test(finished: Finished) -> None:
    answer(finished("one"), 10, "best", "final")
    answer(finished("two"), 17, "best")
    answer(Path("two"), 18, "final")

    assert compared("one", "two")["tests"] == 3


def test_which_run_comes_first_makes_no_other_test(finished: Finished) -> None:
    """One against two, and two against one; a run against itself is a test for each of its attacks."""
    answer(finished("one"), 10, "best", "final")
    answer(finished("two"), 17, "best", "final")
    move(Path("two"), "final")
    move(Path("two"), "best")
    found = compared("one", "two", "one")

    assert len(found["paired"]) == 3 * 4
    assert found["tests"] == 2 * 2


def test_another_budget_or_data_set_is_another_test(finished: Finished) -> None:
    run = Run.open(finished("one"))
    y = np.zeros(5, dtype=np.int64)
    usual = {"checkpoint": "best", "attack": "fgsm", "norm": "Linf", "eps": 0.2, "data": "digits"}

    def pair(**changes: Any) -> Any:
        side = run, {"y": y, "correct": y == 0, "of": {**usual, **changes}}
        return side, side

    assert distinct([pair(), pair(checkpoint="final"), pair(eps=0.1), pair(data="mnist"), pair(norm="L2")]) == [
        *(0, 0, 2, 3, 4)
    ]
    clean = [pair(attack="clean", eps=eps) for eps in (0.1, 0.2)]  # measured beside attacks of two budgets
    assert distinct([*clean, pair(attack="fgsm")]) == [0, 0, 2]
    assert distinct([]) == []


def test_weights_are_read_only_where_all_else_agrees(finished: Finished, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Path] = []

    def digest(path: Path) -> str:
        read.append(path)
        return str(path)

    monkeypatch.setattr("gambeson.app.families.weights_digest", digest)
    for name, right in (("one", 10), ("two", 17)):
        answer(finished(name), right, "best")
        answer(Path(name), right + 1, "final")
    compared("one", "two")
    assert sorted(map(str, read)) == [  # for the clean accuracies alone, and once each
        *(f"{run}/checkpoints/{name}.safetensors" for run in ("one", "two") for name in ("best", "final"))
    ]
