"""The intervals in the report's charts, and what is said of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gambeson.app.report import looked, measured, training
from gambeson.app.report.blocks import Chart, Section
from gambeson.app.report.charts import Bar, Line
from gambeson.app.report.intervals import accuracy_ends, caption, images_of, rises
from gambeson.app.report.records import Records, read
from gambeson.engine.run import Run
from gambeson.evaluation import wilson

Finished = Callable[[str], Path]
SIZES = {"train": 200, "val": 70, "test": 397}


def recorded(sizes: dict[str, int] | None, **call: Any) -> Records:
    data = {"name": "digits"} if sizes is None else {"name": "digits", "sizes": sizes}
    return Records(Run(Path("r"), {"data": data, **call}), "r")


def charts(section: Section | None) -> dict[str, Chart]:
    assert section is not None
    return {block.title: block for block in section.blocks if isinstance(block, Chart)}


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[Line]]:
    """The lines of every chart of the training, by title."""
    found: dict[str, list[Line]] = {}

    def line_chart(lines: list[Line], title: str, **options: Any) -> Chart:
        found[title] = lines
        return Chart(title, "", "", options.get("note", ""))

    monkeypatch.setattr(training, "line_chart", line_chart)
    return found


def test_an_accuracy_has_the_interval_of_its_count() -> None:
    low, high = accuracy_ends([0.0, 35 / 70, 1.0], 70)
    assert low == pytest.approx([100 * wilson(k, 70).low for k in (0, 35, 70)])
    assert high == pytest.approx([100 * wilson(k, 70).high for k in (0, 35, 70)])
    assert accuracy_ends([0.30000001192092896], 200) == accuracy_ends([0.3], 200)  # the sentinel's are float32


@pytest.mark.parametrize(("value", "n"), [(0.5, None), (0.5, 0), (0.5, 7), (36 / 71, 70), (1.5, 70), (-0.5, 70)])
def test_without_the_number_of_images_there_is_no_interval(value: float, n: int | None) -> None:
    assert accuracy_ends([0.0, value], n) == (None, None)


def test_the_images_of_a_metric() -> None:
    metrics = ("val/clean_acc", "val/pgd10_acc", "probe/fgsm_acc", "train/adv_acc", "probe/aae", "probe/alignment")
    assert [images_of(recorded(SIZES), name) for name in metrics] == [70, 70, 200, None, None, None]
    assert images_of(recorded({**SIZES, "train": 1330}), "probe/fgsm_acc") == 256
    assert images_of(recorded(SIZES, finetune={"select": "val"}), "val/clean_acc") == 70
    assert images_of(recorded(SIZES, finetune={"select": "test"}), "val/clean_acc") == 397
    assert images_of(recorded(None), "val/clean_acc") is None


def test_what_is_drawn_is_said_and_nothing_else() -> None:
    line, bar = Line("a", [0], [1.0], [0.5], [2.0]), Bar("a", 1.0, 0.5, 2.0)
    assert caption([line], [70]) == "Shaded: Wilson 95 % intervals, n = 70."
    assert caption([Line("b", [0], [1.0]), line], [1330, 70, 70]) == "Shaded: Wilson 95 % intervals, n = 70 to 1,330."
    assert caption([bar], [50], "Student's") == "Lines: Student's 95 % intervals, n = 50."
    assert caption([Line("b", [0], [1.0])], []) == caption([Bar("b", 1.0)], [50]) == ""


def test_validations_and_looks_have_intervals(finished: Finished, drawn: dict[str, list[Line]]) -> None:
    run = finished("run")
    section = charts(training.curves(read(Run.open(run))))
    rows = Run.open(run).rows()

    for title, keys, n in (
        ("Accuracy on the validation images", ("val/clean_acc", "val/pgd10_acc"), 70),
        ("Accuracy on the probe batch (training images)", ("probe/fgsm_acc", "probe/pgd10_acc"), 200),
    ):
        assert section[title].note == f"Shaded: Wilson 95 % intervals, n = {n}."
        for line, key in zip(drawn[title], keys, strict=True):
            expected = [wilson(round(row[key] * n), n) for row in rows if key in row]
            assert line.low == pytest.approx([100 * one.low for one in expected])
            assert line.high == pytest.approx([100 * one.high for one in expected])
    for title in ("Accuracy while training", "Signs of overfitting to one step", "Training loss"):
        assert section[title].note == ""
        assert all(line.low is None for line in drawn[title])


def test_a_run_without_sizes_has_curves_without_intervals(finished: Finished, drawn: dict[str, list[Line]]) -> None:
    file = finished("old") / "run.json"
    call = json.loads(file.read_text())
    del call["data"]["sizes"]
    file.write_text(json.dumps(call))
    old, new = read(Run.open(Path("old"))), read(Run.open(finished("new")))
    title = "Accuracy on the validation images"

    assert charts(training.curves(old))[title].note == ""
    assert all(line.low is None for line in drawn[title])
    blocks = training.overlaid([old, new], ["old", "new"])
    assert [line.low is None for line in drawn[title]] == [True, True, False, False]
    assert charts(Section("a", "a", blocks, None))[title].note == "Shaded: Wilson 95 % intervals, n = 70."


def test_a_band_is_drawn(finished: Finished) -> None:
    found = charts(training.curves(read(Run.open(finished("run")))))
    assert found["Accuracy on the validation images"].svg.count("opacity: 0.18") == 2
    assert found["Accuracy while training"].svg.count("opacity: 0.18") == 0


def test_what_stands_after_every_attack_has_an_interval(finished: Finished) -> None:
    file = finished("run") / "evaluations/best-test-fgsm-1.json"
    record = json.loads(file.read_text())
    stage = {"attack": "apgd-ce", "standing": 8, "fell": 2, "left": 6, "seconds": 1.0, "forwards": 1, "backwards": 1}
    clean = vars(wilson(8, 10))
    found = {"norm": "Linf", "eps": 0.2, "n": 10, "clean": clean, "stages": [stage], "searches": ["x"]}
    file.write_text(json.dumps({**record, "ensembles": {"autoattack": found}}))
    (chart,) = charts(measured.autoattack(read(Run.open(Path("run"))))).values()

    ends = [100 * end for k in (8, 6) for end in (wilson(k, 10).low, wilson(k, 10).high)]
    assert chart.text == "accuracy, %: clean 80 ({:.3g} to {:.3g}); apgd-ce 60 ({:.3g} to {:.3g}).".format(*ends)
    assert chart.note == "Lines: Wilson 95 % intervals, n = 10."


def test_the_rise_of_a_loss_has_the_interval_of_its_record(finished: Finished) -> None:
    known, unknown = {"value": 0.2, "low": 0.1, "high": 0.4, "n": 50}, {"value": None, "low": None, "high": None}
    y, low, high = rises([known, unknown, None, {"value": 0.3}])
    assert low is not None
    assert high is not None
    assert [y[0], low[0], high[0], y[3]] == [0.2, 0.1, 0.4, 0.3]
    assert all(one != one for one in (*y[1:3], *low[1:], *high[1:]))
    assert rises([{"value": 0.3}])[1:] == rises([unknown])[1:] == (None, None)

    run = finished("run")
    (run / "diagnosis").mkdir()
    record = {"checkpoint": "best", "step": 2, "data": "digits", "split": "test", "n": 50}
    for rise, note, bands in (
        (known, "Shaded: Student's 95 % intervals, n = 50.", 1),
        ({"value": 0.2}, "", 0),
    ):
        move = {"group": "conv1", "kind": "adversarial", "rho": 0.05, "inputs": "clean", "rise": rise}
        found = {"groups": {"conv1": ["conv1.weight"]}, "moves": [move], "sentence": "the loss rises"}
        content = {**record, "responses": {"final (step 2)": found}}
        (run / "diagnosis/response-x.json").write_text(json.dumps(content))
        (chart,) = charts(looked.response(read(Run.open(run)))).values()
        assert (chart.note, chart.svg.count("opacity: 0.18")) == (note, bands)


def test_other_intervals_are_named(finished: Finished) -> None:
    records = read(Run.open(finished("run")))
    assert charts(measured.accuracy(records))["Test accuracy of best"].note == "Lines: Wilson 95 % intervals, n = 50."
    (classes,) = charts(measured.classes(records)).values()
    assert classes.note.startswith("Lines: Wilson 95 % intervals, n = ")
