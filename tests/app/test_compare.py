"""Runs side by side, and what is said of damaged ones."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from app.helpers import Cli, assert_error, bomb, fingerprint
from gambeson.app.compare import compare, overview
from gambeson.engine.run import Run
from gambeson.evaluation import paired_difference

Finished = Callable[[str], Path]


def change(run: Path, **settings: object) -> None:
    file = run / "run.json"
    call = json.loads(file.read_text())
    call["settings"].update(settings)
    file.write_text(json.dumps(call))


def tune(run: Path, *, select: str = "val", **options: object) -> None:
    """Make a run look like a fine-tuning of another one."""
    file = run / "run.json"
    call = json.loads(file.read_text())
    base = {"run": "/runs/base", "checkpoint": "best", "sha256": str(run)}
    tuning = {"name": "rift", "module": "argmin", "select": select, **options, "base": base}
    file.write_text(json.dumps({**call, "finetune": tuning, "selection": {"split": select}}))


def outcomes(run: Path, name: str) -> tuple[Path, dict[str, np.ndarray]]:
    file = run / "evaluations" / f"{name}.npz"
    with np.load(file, allow_pickle=False) as found:
        return file, dict(found)


def test_a_run_does_not_differ_from_itself(trained: Path) -> None:
    found = compare([Run.open(trained), Run.open(trained)])

    assert found["settings"] == {}
    assert list(found["accuracy"]) == ["best clean", "best fgsm Linf 0.2", "final clean", "final fgsm Linf 0.2"]
    assert [row["p"] for row in found["paired"]] == [1.0] * 4
    assert {row["n"] for row in found["paired"]} == {50}
    assert found["tests"] == 2  # the last step was the best one: `final` has the weights of `best`


def test_what_runs_are_reported_by_stands_side_by_side(finished: Finished, cli: Cli) -> None:
    """`best` of one and `final` of the other; two with `best` are not tested twice."""
    for name in ("one", "two", "three"):
        finished(name)
    (Path("three") / "checkpoints/best.safetensors").unlink()
    found = compare([Run.open(Path(name)) for name in ("one", "two", "three")])

    assert found["main"] == ["best", "best", "final"]
    rows = {key: [value and value["value"] for value in values] for key, values in found["accuracy"].items()}
    assert rows["main clean"] == [rows["best clean"][0], rows["best clean"][1], rows["final clean"][2]]
    assert [(line["a"], line["b"]) for line in found["paired"] if line["key"] == "main clean"] == [
        ("one", "three"),
        ("two", "three"),
    ]
    assert "main: best of one, best of two, final of three" in cli("runs", "compare", "one", "two", "three").out


def test_many_runs_are_listed_alike(trained: Path, monkeypatch: pytest.MonkeyPatch, cli: Cli, here: Path) -> None:
    """Long lists are set without rich: the same words in the same order."""
    for name in ("a", "b"):
        shutil.copytree(trained, here / "runs" / name)
    few = cli("runs", "list").out.split()
    monkeypatch.setattr("gambeson.app.show.MANY", 1)
    many = cli("runs", "list").out

    assert [word for word in many.split() if set(word) != {"─"}] == [word for word in few if set(word) != {"─"}]
    assert all(len(line) <= 80 for line in many.splitlines())


def test_only_differing_settings_are_shown(finished: Finished, cli: Cli) -> None:
    change(finished("one"))
    change(finished("two"), seed=1, lr=0.25)
    result = cli("runs", "compare", "one", "two")

    assert result.code == 0
    assert compare([Run.open(Path("one")), Run.open(Path("two"))])["settings"] == {
        "settings.seed": [0, 1],
        "settings.lr": [0.1, 0.25],
    }
    assert "settings.seed" in result.out
    assert "settings.epochs" not in result.out
    assert result.out.count(" not significant ") == 4


def test_sizes_of_splits_are_compared_where_all_runs_say_them(finished: Finished) -> None:
    for name, sizes in (("one", {"train": 200}), ("two", {"train": 100}), ("older", None)):
        file = finished(name) / "run.json"
        call = json.loads(file.read_text())
        del call["data"]["sizes"]
        call["data"] |= {} if sizes is None else {"sizes": sizes}
        file.write_text(json.dumps(call))

    assert compare([Run.open(Path(name)) for name in ("one", "two")])["settings"] == {"data.sizes.train": [200, 100]}
    assert compare([Run.open(Path(name)) for name in ("one", "older")])["settings"] == {}


def test_a_difference_is_tested_on_the_same_examples(finished: Finished, cli: Cli) -> None:
    """12 examples right in the second only: p = 2 * 2^-12."""
    one, two = finished("one"), finished("two")
    for run, right in ((one, 0), (two, 12)):
        file, arrays = outcomes(run, "best-test-fgsm-1")
        arrays["fgsm"][:] = False
        arrays["fgsm"][:right] = True
        np.savez(file, **arrays)
    pair = next(r for r in compare([Run.open(one), Run.open(two)])["paired"] if r["key"] == "best fgsm Linf 0.2")
    out = cli("runs", "compare", "one", "two").out

    assert (pair["only_a"], pair["only_b"], pair["n"]) == (0, 12, 50)
    assert pair["p"] == pytest.approx(2 * 0.5**12)
    assert pair["difference"] == vars(paired_difference(0, 12, 50))
    assert pair["p_holm"] == pytest.approx(3 * pair["p"])  # the smallest of three; `final clean` is `best clean`
    assert pair["significant"]
    low, high = (f"{100 * pair['difference'][end]:+.1f}" for end in ("low", "high"))
    assert re.search(rf"best fgsm Linf 0.2 +50 +0 +12 +-24\.0 \[{low}, {high}\] +0\.00049 +0\.0015 +significant", out)


def test_what_holm_does_not_leave_is_not_significant(finished: Finished) -> None:
    """6 examples right in the second only: p = 0.03125, and there are three tests."""
    one, two = finished("one"), finished("two")
    for run, right in ((one, 0), (two, 6)):
        file, arrays = outcomes(run, "best-test-fgsm-1")
        arrays["fgsm"][:] = False
        arrays["fgsm"][:right] = True
        np.savez(file, **arrays)
    found = compare([Run.open(one), Run.open(two)])
    pair = next(r for r in found["paired"] if r["key"] == "best fgsm Linf 0.2")
    assert (found["alpha"], found["correction"], found["tests"], len(found["paired"])) == (0.05, "holm", 3, 4)
    assert pair["p"] == pytest.approx(2 / 2**6)
    assert pair["p_holm"] == pytest.approx(6 / 2**6)
    assert not pair["significant"]


def test_a_single_test_needs_no_correction(cli: Cli, here: Path) -> None:
    words = ["--epochs", "1", "--train-size", "200", "--test-size", "50", "--attack", "clean", "--val-fraction", "0"]
    assert cli("train", "standard", *words, "--run", "a").code == 0
    found = compare([Run.open(Path("a"))] * 2)
    assert [row["key"] for row in found["paired"]] == ["final clean"]
    assert found["correction"] is None
    assert found["paired"][0]["p_holm"] == found["paired"][0]["p"] == 1


def test_other_examples_are_not_paired(finished: Finished, cli: Cli) -> None:
    finished("one")
    file, arrays = outcomes(finished("two"), "best-test-fgsm-1")
    np.savez(file, **{key: value[:40] for key, value in arrays.items()})
    out = cli("runs", "compare", "one", "two").out

    tests, after = out[out.index("same examples") :].split("first: one, second: two")
    assert "best clean" not in tests
    assert "two was evaluated on fewer images: best clean (n = 40, not 50)" in after
    assert re.search(r"final clean .* not significant", tests)


def test_three_runs_give_three_pairs_and_json(finished: Finished, cli: Cli) -> None:
    for name in ("a", "b", "c"):
        finished(name)
    found = json.loads(cli("runs", "compare", "a", "b", "c", "--json").out)

    assert found["runs"] == ["a", "b", "c"]
    assert [(r["a"], r["b"]) for r in found["paired"] if r["key"] == "final clean"] == [
        ("a", "b"),
        ("a", "c"),
        ("b", "c"),
    ]


def test_the_newest_evaluation_counts(finished: Finished, cli: Cli) -> None:
    finished("r")
    assert cli("evaluate", "r", "--attack", "fgsm", "--test-size", "60").code == 0
    found = compare([Run.open(Path("r"))])

    assert found["accuracy"]["best clean"][0]["n"] == 60
    assert found["accuracy"]["final clean"][0]["n"] == 50


@pytest.mark.parametrize("args", [[], ["one"]])
def test_compare_needs_two_runs(args: list[str], cli: Cli, finished: Finished) -> None:
    finished("one")
    assert_error(cli("runs", "compare", *args), 2, "at least two runs")


def test_compare_with_nothing(cli: Cli, finished: Finished) -> None:
    finished("one")
    assert_error(cli("runs", "compare", "one", "none"), 1, "none is not a run directory")


@pytest.mark.parametrize("damage", ["pickle", "gone", "truncated", "json"])
def test_a_damaged_evaluation_is_named(damage: str, cli: Cli, finished: Finished) -> None:
    finished("one")
    file = finished("two") / "evaluations/best-test-fgsm-1.npz"
    if damage == "pickle":
        file.write_bytes(bomb(Path("evil").absolute()))
    elif damage == "gone":
        file.unlink()
    elif damage == "truncated":
        file.write_bytes(file.read_bytes()[:100])
    else:
        file = file.with_suffix(".json")
        file.write_text("{")
    result = cli("runs", "compare", "one", "two")

    assert not Path("evil").exists()
    assert_error(result, 1, str(file))


def test_a_pickle_among_the_outcomes_is_not_executed(finished: Finished) -> None:
    run = finished("r")
    (run / "evaluations/best-test-fgsm-1.npz").write_bytes(bomb(Path("evil").absolute()))
    with pytest.raises(Exception, match="pickle"):
        compare([Run.open(run), Run.open(run)])

    assert not Path("evil").exists()


def test_fine_tunings_differ_in_their_options(finished: Finished, cli: Cli) -> None:
    tune(finished("one"))
    tune(finished("two"), module="last", select="test")
    finished("three")
    pair = compare([Run.open(Path(name)) for name in ("one", "two")])
    assert pair["settings"] == {
        "finetune.module": ["argmin", "last"],
        "finetune.select": ["val", "test"],
        "selection.split": ["val", "test"],
    }
    assert pair["selection"] == ["val", "test"]
    start = compare([Run.open(Path(name)) for name in ("one", "three")])["settings"]
    assert (start["finetune.base.run"], start["finetune.base.checkpoint"]) == (["/runs/base", None], ["best", None])
    assert "finetune.base.sha256" not in start
    out = cli("runs", "compare", "one", "two").out
    assert "all settings are equal" not in out
    assert "two: selected on test: these numbers are optimistic" in out


# runs list


def test_fine_tuned_runs_can_be_told_and_those_selected_on_test_are_marked(finished: Finished, cli: Cli) -> None:
    finished("runs/a")
    out = cli("runs", "list").out
    assert "*" not in out
    tune(finished("runs/b"), select="test")
    Path("runs/b/line.json").write_text("{}")
    rows = json.loads(cli("runs", "list", "--json").out)
    out = cli("runs", "list").out
    assert [row["method"] for row in rows] == ["n-lap", "n-lap + rift"]
    assert [row["selection"] for row in rows] == ["val", "test"]
    assert re.search(r"^ runs/b \* +n-lap \+ rift +digits +done", out, re.MULTILINE)
    assert "* selected on test: these numbers are optimistic" in out


def test_the_state_of_a_fine_tuning(finished: Finished) -> None:
    run = finished("runs/r")
    tune(run)

    def state() -> str:
        return str(overview(Path("runs"))[0]["state"])

    assert state() == "not begun"  # its line was not kept, so that `final` is made again
    (run / "criticality.partial.json").write_text("{}")
    assert state() == "measuring criticality"
    (run / "layers.json").write_text("{}")
    assert state() == "fine-tuning, step 0"
    (run / "finetune/checkpoints").mkdir(parents=True)
    shutil.copy(run / "checkpoints/last.safetensors", run / "finetune/checkpoints/last.safetensors")
    assert state() == "fine-tuning, step 2"
    shutil.copy(run / "checkpoints/final.safetensors", run / "finetune/checkpoints/final.safetensors")
    assert state() == "fine-tuned, not interpolated"
    (run / "line.json").write_text("{}")
    assert state() == "done"


def test_the_overview_has_a_row_per_run(finished: Finished, cli: Cli) -> None:
    for name in ("runs/b", "runs/a"):
        finished(name)
    Path("runs/empty").mkdir()
    Path("runs/notes.txt").write_text("no run")
    result = cli("runs", "list")
    rows = json.loads(cli("runs", "list", "--json").out)
    evaluation = json.loads(Path("runs/a/evaluations/best-test-fgsm-1.json").read_text())

    assert result.code == 0
    assert [row["run"] for row in rows] == ["runs/a", "runs/b"]
    assert (rows[0]["method"], rows[0]["data"], rows[0]["model"], rows[0]["state"]) == (
        "n-lap",
        "digits",
        "small-cnn",
        "done",
    )
    assert rows[0]["test worst"] == evaluation["worst"]["value"]
    assert "runs/a   n-lap    digits   done" in result.out
    assert "empty" not in result.out


def test_a_smaller_evaluation_does_not_take_the_place_of_a_larger_one(finished: Finished, cli: Cli) -> None:
    finished("runs/a")
    before = json.loads(cli("runs", "list", "--json").out)
    cli("evaluate", "runs/a", "--attack", "fgsm", "--test-size", "5")
    found = json.loads(cli("runs", "compare", "runs/a", "runs/a", "--json").out)

    assert json.loads(cli("runs", "list", "--json").out) == before
    assert {value["n"] for values in found["accuracy"].values() for value in values} == {50}


def test_the_worst_is_that_of_all_attacks_at_the_runs_own_budget(finished: Finished, cli: Cli) -> None:
    run = finished("runs/a")
    file = run / "evaluations/best-test-fgsm-1.json"
    record = json.loads(file.read_text())
    for name, eps, n, worst in (
        ("fgsm-1", 0.2, 50, 0.5),
        ("autoattack-1", 0.2, 50, 0.02),
        ("autoattack-2", 0.3, 50, 0.01),
        ("autoattack-3", 0.2, 20, 0.0),
    ):
        other = {**record, "eps": eps, "n": n, "worst": {**record["worst"], "value": worst}}
        (run / f"evaluations/best-test-{name}.json").write_text(json.dumps(other))
    assert overview(Path("runs"))[0]["test worst"] == 0.02


def test_an_evaluation_of_earlier_weights_is_not_shown(finished: Finished, cli: Cli) -> None:
    """Evaluated, resumed, changed: the old number speaks of other weights."""
    run = finished("runs/a")
    file = run / "evaluations/best-test-fgsm-1.json"
    record = json.loads(file.read_text())
    file.write_text(json.dumps({**record, "step": record["step"] - 1}))
    row = json.loads(cli("runs", "list", "--json").out)[0]
    found = json.loads(cli("runs", "compare", "runs/a", "runs/a", "--json").out)

    assert row["test clean"] is None
    assert not any(key.startswith("best") for key in found["accuracy"])


def test_a_run_evaluated_without_attack_has_no_robust_accuracy(cli: Cli, here: Path) -> None:
    words = ["--epochs", "1", "--train-size", "200", "--test-size", "50", "--attack", "clean", "--run", "runs/a"]
    assert cli("train", "standard", *words).code == 0
    row = json.loads(cli("runs", "list", "--json").out)[0]

    assert row["test clean"] > 0
    assert row["test worst"] is None


def test_no_number_is_cut_on_a_narrow_terminal(finished: Finished, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "runs/a-run-with-a-name-that-is-longer-than-the-terminal-is-wide-and-then-some-more"
    finished(name)
    monkeypatch.setenv("COLUMNS", "40")
    result = cli("runs", "list")

    assert name in result.out
    assert "…" not in result.out


def test_an_empty_folder_says_how_to_begin(here: Path, cli: Cli) -> None:
    Path("runs").mkdir()
    result = cli("runs", "list")

    assert (result.code, result.err) == (0, "")
    assert "no runs in runs; start one with" in result.out
    assert json.loads(cli("runs", "list", "--json").out) == []


def test_a_run_in_the_middle_shows_its_step(finished: Finished) -> None:
    run = finished("runs/r")
    (run / "checkpoints/final.safetensors").unlink()
    assert overview(Path("runs"))[0]["state"] == "step 2"
    (run / "checkpoints/last.safetensors").unlink()
    assert overview(Path("runs"))[0]["state"] == "not begun"


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("run.json", b'{"format": 1, '),
        ("run.json", b'{"format": 1}'),
        ("run.json", b'{"format": 2}'),
        ("run.json", b"[]"),
        ("evaluations/best-test-fgsm-1.json", b"{"),
        ("evaluations/best-test-fgsm-1.json", b"{}"),
        ("run.json", b"\xff\xfe"),
        ("run.json", b'{"format": 1, "method": "n-lap"}'),
        ("metrics.jsonl", b"3\n"),
        ("metrics.jsonl", b'{"epoch": 1}\n'),
        ("metrics.jsonl", b"\xff\xfe\n"),
        ("checkpoints/last.safetensors", b"cut"),
    ],
)
def test_a_damaged_run_is_shown_as_damaged_beside_the_others(
    file: str, content: bytes, finished: Finished, cli: Cli
) -> None:
    finished("runs/fine")
    run = finished("runs/bad")
    (run / "checkpoints/final.safetensors").unlink()
    (run / file).write_bytes(content)
    before = fingerprint(Path("runs"))
    result = cli("runs", "list")

    assert result.code == 0
    assert {row["run"]: row["state"] for row in overview(Path("runs"))} == {"runs/bad": "damaged", "runs/fine": "done"}
    assert fingerprint(Path("runs")) == before


def test_a_run_made_in_python_is_called_so(here: Path, cli: Cli) -> None:
    Run.create(Run.free_path(Path("runs"), "composed"), {"note": "mine"})
    result = cli("runs", "list")
    assert result.code == 0
    assert [(row["run"], row["state"]) for row in overview(Path("runs"))] == [("runs/composed-1", "made in Python")]
    assert "made in Python" in result.out


def test_a_cut_off_line_of_metrics_is_no_damage(finished: Finished) -> None:
    run = finished("runs/r")
    with open(run / "metrics.jsonl", "a") as metrics:
        metrics.write('{"step": 3, "val/pgd10')

    assert overview(Path("runs"))[0]["state"] == "done"
