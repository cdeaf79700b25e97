"""What keeps runs from being compared, and that the named commands help."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from app.helpers import Cli
from gambeson.app.compare import compare
from gambeson.engine.run import Run

Finished = Callable[[str], Path]
QUICK = ("--device", "cpu")


def found(*names: str) -> list[dict[str, Any]]:
    gaps: list[dict[str, Any]] = compare([Run.open(Path(name)) for name in names])["gaps"]
    return gaps


def run_all(gaps: list[dict[str, Any]], cli: Cli) -> None:
    for command in dict.fromkeys(gap["command"] for gap in gaps):
        program, *words = shlex.split(command)
        assert program == "gambeson"
        assert cli(*words, *QUICK).code == 0


def change(run: str, **settings: Any) -> None:
    file = Path(run, "run.json")
    call = json.loads(file.read_text())
    for key, values in settings.items():
        call[key].update(values)
    file.write_text(json.dumps(call))


def test_runs_that_were_evaluated_alike_have_no_gaps(finished: Finished, cli: Cli) -> None:
    finished("one")
    finished("two")
    assert found("one", "two") == []
    assert "to compare" not in cli("runs", "compare", "one", "two").out


@pytest.mark.parametrize(
    ("words", "key", "option"),
    [
        (("--eps", "51/255"), "best pgd-2 Linf 0.2", "--eps 0.2"),
        (("--eps", "8/255"), "best pgd-2 Linf 0.03137", "--eps 8/255"),
        (("--eps", "0.5", "--norm", "L2"), "best pgd-2 L2 0.5", "--norm L2 --eps 0.5"),
    ],
)
def test_other_budgets_are_named_and_the_commands_make_them_the_same(
    words: tuple[str, ...], key: str, option: str, finished: Finished, cli: Cli
) -> None:
    finished("one")
    finished("two run")
    assert cli("evaluate", "one", "--attack", "pgd-2,fgsm", "--test-size", "50", *words, *QUICK).code == 0
    assert cli("evaluate", "two run", "--attack", "pgd-2", "--test-size", "50", "--eps", "0.4", *QUICK).code == 0
    gaps = found("one", "two run")
    one, two = ([gap for gap in gaps if gap["run"] == run] for run in ("one", "two run"))
    (mine,) = [gap for gap in two if gap["key"] == key]
    out = cli("runs", "compare", "one", "two run").out

    assert {gap["reason"] for gap in gaps} == {"missing"}
    assert mine["has"] == ["best pgd-2 Linf 0.4, n = 50"]
    assert (mine["n"], mine["wanted"]) == (None, 50)
    attacks = "pgd-2" if "0.2" in key else "pgd-2,fgsm"  # of fgsm there is an evaluation at 0.2
    assert mine["command"] == f"gambeson evaluate 'two run' --attack {attacks} {option} --test-size 50"
    assert [gap["key"] for gap in one] == ["best pgd-2 Linf 0.4"]
    assert one[0]["command"] == "gambeson evaluate one --attack pgd-2 --eps 0.4 --test-size 50"
    assert f"two run has no evaluation of {', '.join(gap['key'] for gap in two)}; it has" in out
    assert "to compare on the same images, run\n" in out
    assert all(f"\n  {gap['command']}\n" in out for gap in gaps)

    run_all(gaps, cli)
    assert found("one", "two run") == []
    tested = [row["key"] for row in compare([Run.open(Path(name)) for name in ("one", "two run")])["paired"]]
    assert {key, "best pgd-2 Linf 0.4"} <= set(tested)


def test_fewer_images_are_named_and_the_command_takes_as_many(finished: Finished, cli: Cli) -> None:
    finished("one")
    finished("two")
    assert cli("evaluate", "one", "--attack", "fgsm", "--test-size", "60", *QUICK).code == 0
    gaps = found("one", "two")

    assert [(gap["run"], gap["key"], gap["reason"], gap["n"], gap["wanted"]) for gap in gaps] == [
        ("two", "best clean", "fewer images", 50, 60),
        ("two", "best fgsm Linf 0.2", "fewer images", 50, 60),
    ]
    assert {gap["command"] for gap in gaps} == {"gambeson evaluate two --attack fgsm --eps 0.2 --test-size 60"}
    said = "two was evaluated on fewer images: best clean (n = 50, not 60), best fgsm Linf 0.2 (n = 50, not 60)"
    assert said in cli("runs", "compare", "one", "two").out
    run_all(gaps, cli)
    assert found("one", "two") == []


def test_another_checkpoint_is_in_the_command(finished: Finished, cli: Cli) -> None:
    finished("one")
    finished("two")
    assert cli("evaluate", "one", "--checkpoint", "last", "--attack", "clean", "--test-size", "20", *QUICK).code == 0
    (gap,) = found("one", "two")

    assert gap["command"] == "gambeson evaluate two --attack clean --checkpoint last --test-size 20"
    run_all([gap], cli)
    assert found("one", "two") == []


def test_a_checkpoint_that_a_run_does_not_have_is_no_matter_of_a_command(finished: Finished) -> None:
    finished("one")
    (finished("two") / "checkpoints/best.safetensors").unlink()
    gaps = found("one", "two")

    assert [(gap["run"], gap["reason"], gap["command"]) for gap in gaps] == [("two", "no checkpoint", None)] * 2


def test_an_evaluation_of_earlier_weights_is_called_so(finished: Finished, cli: Cli) -> None:
    finished("one")
    file = finished("two") / "evaluations/best-test-fgsm-1.json"
    record = json.loads(file.read_text())
    file.write_text(json.dumps({**record, "step": record["step"] - 1}))
    gaps = found("one", "two")

    assert [(gap["key"], gap["reason"]) for gap in gaps] == [
        ("best clean", "earlier weights"),
        ("best fgsm Linf 0.2", "earlier weights"),
    ]
    run_all(gaps, cli)
    assert found("one", "two") == []


def test_images_of_other_classes_are_other_images(finished: Finished) -> None:
    finished("one")
    file = finished("two") / "evaluations/best-test-fgsm-1.npz"
    with np.load(file) as arrays:
        changed = {name: values[:40] for name, values in arrays.items()}
    np.savez(file, **{**changed, "y": (changed["y"] + 1) % 10})
    gaps = found("one", "two")

    assert {(gap["reason"], gap["command"]) for gap in gaps} == {("other images", None)}


def test_runs_on_other_data_have_no_images_in_common(finished: Finished, cli: Cli) -> None:
    finished("one")
    finished("two")
    change("two", data={"name": "mnist"})
    for file in Path("two/evaluations").glob("*.json"):
        file.write_text(json.dumps({**json.loads(file.read_text()), "data": "mnist"}))
    gaps = found("one", "two")

    assert {(gap["run"], gap["reason"], gap["command"]) for gap in gaps} == {("two", "other data", None)}
    assert "two was trained on other data" in cli("runs", "compare", "one", "two").out
