"""What a history says of overfitting: numbers and words of histories written by hand, and a training that collapses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib.figure import Figure

from gambeson.core.errors import InputError, RunError
from gambeson.data import load
from gambeson.diagnosis import diagnose_overfitting, draw_overfitting
from gambeson.diagnosis.collapse import EVENT
from gambeson.engine.run import Run
from gambeson.engine.settings import Settings
from gambeson.engine.trainer import Trainer
from gambeson.evaluation import Report
from gambeson.methods import fgsm
from gambeson.models import create

Row = dict[str, Any]


def look(step: int, fgsm: float, pgd: float, aae: float = 0.0, alignment: float = 0.9, event: bool = False) -> Row:
    found: Row = {"step": step, "epoch": step / 50, "probe/fgsm_acc": fgsm, "probe/pgd10_acc": pgd}
    found |= {"probe/gap": fgsm - pgd, "probe/aae": aae, "probe/alignment": alignment}
    return {**found, "event": EVENT} if event else found


def validation(step: int, clean: float, pgd: float) -> Row:
    return {"step": step, "epoch": step / 50, "val/clean_acc": clean, "val/pgd10_acc": pgd}


def training(step: int, acc: float) -> Row:
    return {"step": step, "epoch": step / 50, "train/loss": 1.0, "train/adv_acc": acc, "train/lr": 0.1}


COLLAPSES = [
    look(0, 0.1, 0.1),
    training(25, 0.2),
    look(50, 0.5, 0.4),
    validation(50, 0.6, 0.40),
    look(75, 0.9, 0.1, aae=0.5, event=True),
    training(75, 0.8),
    look(100, 0.95, 0.0, aae=0.7, event=True),
    validation(100, 0.7, 0.05),
]
ROBUST = [validation(50, 0.6, 0.4), validation(100, 0.8, 0.5), validation(150, 0.9, 0.5), validation(200, 0.95, 0.42)]


def report(y: torch.Tensor, **right: list[bool]) -> Report:
    outcomes = {name.replace("_", "-"): torch.tensor(values) for name, values in right.items()}
    return Report(outcomes, y, ("cat", "dog"), {})


def reports(best: int, final: int) -> dict[str, Report]:
    """Of 100 images of two classes, how many are right under PGD-10."""
    y = torch.arange(100) % 2
    return {
        name: report(y, clean=[True] * 100, pgd_10=[k < count for k in range(100)])
        for name, count in (("best", best), ("final", final))
    }


def test_a_collapse_in_numbers_and_words() -> None:
    found = diagnose_overfitting(COLLAPSES)
    assert found.collapse is not None
    assert (found.collapse.look.step, found.collapse.look.epoch) == (75, 1.5)
    assert found.robust is not None
    assert found.robust.drop == pytest.approx(0.35)
    assert found.sentence() == (
        "Catastrophic overfitting between step 50 (epoch 1) and step 75 (epoch 1.5): then FGSM 90.0 %, PGD-10 10.0 %,"
        " and at the last look FGSM 95.0 %, PGD-10 0.0 %. A sudden fall of PGD-10 at step 75; abnormal adversarial"
        " examples at step 75; not seen: a sudden fall of gradient alignment. Validation PGD-10 was highest at epoch 1"
        " (40.0 %), at the end 35.0 points lower (5.0 %)."
    )
    record = json.loads(json.dumps(found.to_dict()))
    assert record["looks"] == {
        "step": [0, 50, 75, 100],
        "epoch": [0, 1, 1.5, 2],
        "fgsm": [0.1, 0.5, 0.9, 0.95],
        "pgd": [0.1, 0.4, 0.1, 0.0],
        "gap": pytest.approx([0.0, 0.1, 0.8, 0.95]),
        "aae": [0.0, 0.0, 0.5, 0.7],
        "alignment": [0.9] * 4,
        "collapsed": [False, False, True, True],
    }
    assert record["training"] == {"step": [25, 75], "epoch": [0.5, 1.5], "clean": [None, None], "robust": [0.2, 0.8]}
    assert record["validation"]["robust"] == [0.4, 0.05]
    assert [row["detector"] for row in record["detections"]] == ["sentinel", "gap", "half", "wong", "alignment", "aae"]
    assert [row["step"] for row in record["detections"]] == [75, 75, 75, 75, None, 75]
    assert (record["complete"], record["damaged_rows"], record["rollbacks"]) == (True, 0, 0)
    assert (record["best_against_final"], record["classes"]) == (None, {})


def test_a_training_that_went_back_and_recovered() -> None:
    back = {"step": 75, "epoch": 1.5, "event": "rollback 1 of 3"}
    found = diagnose_overfitting([*COLLAPSES[:5], back, look(100, 0.5, 0.4), look(125, 0.5, 0.45)])
    assert found.rollbacks == 1
    assert "; healthy again from step 100 (epoch 2) on (1 rollback)." in found.sentence()


def test_a_collapse_before_the_first_look() -> None:
    found = diagnose_overfitting([look(50, 0.9, 0.1, event=True)])
    assert found.sentence().startswith(
        "Catastrophic overfitting by the first look, step 50 (epoch 1): then FGSM 90.0 %"
    )


def test_a_healthy_training_says_how_near_it_came() -> None:
    found = diagnose_overfitting([*COLLAPSES[:4], look(100, 0.6, 0.45)])
    assert found.collapse is None
    assert found.sentence() == (
        "No catastrophic overfitting in 3 looks: FGSM at most 15.0 points above PGD-10 (step 100 (epoch 2))."
        " Validation PGD-10 is as high at the end as ever (40.0 %)."
    )


def test_without_a_sentinel_robust_overfitting_is_told() -> None:
    """The best is the one that the trainer keeps: of equals the one of higher clean accuracy."""
    found = diagnose_overfitting(ROBUST)
    assert found.robust is not None
    assert (found.robust.best.step, found.robust.last.step) == (150, 200)
    assert found.robust.drop == pytest.approx(0.08)
    assert found.looks == ()
    assert all(one.judged == 0 and one.look is None for one in found.detections)
    assert found.sentence() == (
        "No sentinel watched: of a collapse nothing is known. Validation PGD-10 was highest at epoch 3 (50.0 %), at the"
        " end 8.0 points lower (42.0 %)."
    )


@pytest.mark.parametrize(
    ("best", "final", "verdict"),
    [
        (60, 40, "best minus last is +20.0 points [+13.3, +28.9], more than chance: robust overfitting."),
        (50, 49, "best minus last is +1.0 points [-2.7, +5.4], which may be chance."),
        (40, 60, "best minus last is -20.0 points [-28.9, -13.3], the last weights are better."),
    ],
)
def test_the_test_images_say_whether_it_is_chance(best: int, final: int, verdict: str) -> None:
    found = diagnose_overfitting(ROBUST, reports=reports(best, final))
    assert f"; on test, under pgd-10, {verdict} " in found.sentence()
    assert list(found.classes) == ["best", "final"]


def test_after_a_collapse_a_loss_is_not_called_robust_overfitting() -> None:
    assert "more than chance. " in diagnose_overfitting(COLLAPSES, reports=reports(60, 40)).sentence()


def test_the_classes_are_those_of_the_last_weights() -> None:
    y = torch.tensor([0] * 10 + [1] * 10)
    final = report(y, clean=[True] * 20, fgsm=[k % 10 < (8 if k < 10 else 3) for k in range(20)])
    found = diagnose_overfitting(ROBUST, reports={"final": final})
    assert found.paired is None
    assert found.sentence().endswith(
        "Under fgsm the final weights are worst on class dog (30.0 % [10.8, 60.3]); class dog loses most to the attack,"
        " 70.0 points."
    )
    assert found.to_dict()["classes"]["final"]["classes"]["cat"]["robust"]["value"] == 0.8


def test_a_training_that_is_not_complete_says_so() -> None:
    assert diagnose_overfitting(ROBUST, complete=False).sentence().startswith("The training is not complete: ")


def test_validation_without_attack_or_none_at_all() -> None:
    for rows in ([training(25, 0.5)], [{"step": 50, "epoch": 1.0, "val/clean_acc": 0.5}]):
        found = diagnose_overfitting(rows)
        assert found.robust is None
        assert "No validation under attack: of robust overfitting nothing is known." in found.sentence()


def test_damaged_rows_are_left_out_and_counted() -> None:
    wrong = [
        {**ROBUST[0], "val/pgd10_acc": float("nan")},
        {**ROBUST[3], "epoch": "four"},
        {"step": 300, "train/adv_acc": 0.5},
        {"step": 400, "epoch": 8.0, "probe/fgsm_acc": 0.5},
        validation(20, 0.5, 0.5),  # of an earlier step
    ]
    found = diagnose_overfitting([*ROBUST, *wrong])
    assert found.damaged == 5
    assert found.to_dict()["validation"] == diagnose_overfitting(ROBUST).to_dict()["validation"]


def test_metrics_that_hold_nothing_and_strange_reports_are_refused() -> None:
    for rows in ([], [{"step": 5, "epoch": 0.1, "event": "rollback 1 of 3"}]):
        with pytest.raises(RunError, match="no look of a sentinel, no validation and no line of training"):
            diagnose_overfitting(rows)
    with pytest.raises(InputError, match="reports are of best and final, got last"):
        diagnose_overfitting(ROBUST, reports={"last": reports(1, 1)["best"]})


# the picture


def drawn(monkeypatch: pytest.MonkeyPatch, *args: Any, **settings: Any) -> Figure:
    """The figure that would have been written."""
    figures: list[Figure] = []
    monkeypatch.setattr("gambeson.diagnosis.overfitting_picture.save", lambda figure, path: figures.append(figure))
    draw_overfitting(diagnose_overfitting(*args, **settings), Path("unused.png"), "my run")
    return figures[0]


@pytest.mark.parametrize("ending", ["svg", "png", "pdf"])
@pytest.mark.parametrize("rows", [COLLAPSES, ROBUST, [training(5, 0.5)], [look(0, 0.5, 0.5)]])
def test_the_picture_is_written(rows: list[Row], ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"o.{ending}"
    draw_overfitting(diagnose_overfitting(rows), path, r"run$\nosuch$")
    assert path.stat().st_size > 1000


def test_the_collapse_is_a_band_and_a_line_in_both_panels(monkeypatch: pytest.MonkeyPatch) -> None:
    figure = drawn(monkeypatch, COLLAPSES, reports=reports(60, 40))
    top, signs, classes = figure.axes
    for axis in (top, signs):
        line = next(line for line in axis.lines if line.get_label() == "collapse")
        assert list(line.get_xdata()) == [1.5, 1.5]
        (band,) = axis.patches
        assert (band.get_x(), band.get_width()) == (1.0, 0.5)
    curves = {line.get_label(): list(line.get_ydata()) for line in (*top.lines, *signs.lines)}
    assert curves["FGSM, probe"] == pytest.approx([10, 50, 90, 95])
    assert curves["PGD-10, probe"] == pytest.approx([10, 40, 10, 0])
    assert curves["PGD-10, validation"] == pytest.approx([40, 5])
    assert curves["own attack, training"] == pytest.approx([20, 80])
    assert curves["best"] == pytest.approx([40])
    assert curves["abnormal examples"] == [0.0, 0.0, 0.5, 0.7]
    assert [bar.get_height() for bar in classes.patches] == pytest.approx([100, 100, 40, 40])
    assert [label.get_text() for label in classes.get_xticklabels()] == ["cat", "dog"]
    assert figure.get_suptitle() == "my run"


def test_a_recovery_is_marked(monkeypatch: pytest.MonkeyPatch) -> None:
    (top, _) = drawn(monkeypatch, [*COLLAPSES, look(150, 0.5, 0.4)]).axes
    line = next(line for line in top.lines if line.get_label() == "healthy again")
    assert list(line.get_xdata()) == [3, 3]


def test_what_was_not_measured_has_no_panel(monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(drawn(monkeypatch, ROBUST).axes) == 1
    old = [
        {key: value for key, value in row.items() if key not in ("probe/aae", "probe/alignment")} for row in COLLAPSES
    ]
    assert len(drawn(monkeypatch, old).axes) == 1


def test_of_many_classes_those_with_the_largest_gaps_are_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    y = torch.arange(300) // 10
    right = torch.arange(300) % 10 >= y // 4  # later classes lose more
    made = Report({"clean": y >= 0, "fgsm": right}, y, tuple(f"c{k}" for k in range(30)), {})
    axis = drawn(monkeypatch, ROBUST, reports={"final": made}).axes[-1]
    labels = [label.get_text() for label in axis.get_xticklabels()]
    assert len(labels) == 20
    assert labels == sorted(labels, key=lambda name: int(name[1:]))
    assert labels[-1] == "c29"
    assert "c0" not in labels
    assert axis.get_title().endswith(", by class, the 20 of 30 with the largest gaps")


def test_a_picture_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot write the picture"):
        draw_overfitting(diagnose_overfitting(ROBUST), tmp_path / "c.xyz")
    assert not list(tmp_path.iterdir())


# end to end


def test_fgsm_on_digits_collapses_and_keeps_both_sides(tmp_path: Path) -> None:
    """As `test_real_digits` of the sentinel: FGSM training at eps 0.3."""
    data = load("digits", val_fraction=0.05)
    model = create("small-cnn", data.facts.task, seed=0)
    settings = Settings(epochs=10, lr=0.1, probe_every=22, snapshots=2, val_every=5)
    trainer = Trainer(model, fgsm(eps=0.3), data.train, data.val, data.facts.task, settings)
    run = Run.create(tmp_path / "run", {})
    trainer.fit(run)
    found = diagnose_overfitting(run.rows())
    assert found.collapse is not None
    assert found.collapse.healthy is not None
    steps = [look.step for look in found.looks]
    assert steps.index(found.collapse.look.step) == steps.index(found.collapse.healthy.step) + 1
    assert found.collapse.look.gap >= 0.2
    assert {found.collapse.healthy.step, found.collapse.look.step} <= set(run.snapshots().values())
    assert found.damaged == 0
