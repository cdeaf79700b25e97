"""Lines of metrics by epoch."""

from __future__ import annotations

import math

from gambeson.engine.history import epoch_means


def line(step: int, loss: float, **more: float) -> dict[str, float]:
    return {"step": step, "epoch": step / 4, "train/loss": loss, "train/lr": step / 100, **more}


def test_every_line_weighs_as_many_as_it_has_steps() -> None:
    """An epoch of four steps, with lines after three and one of them: not that of the last step alone."""
    rows = [line(3, 2.0, **{"train/adv_acc": 0.4}), {"step": 3, "epoch": 0.75, "probe/gap": 0.0}]
    rows += [line(4, 6.0, **{"train/adv_acc": 0.8}), line(8, 1.0, **{"train/adv_acc": 0.9}), line(9, 5.0)]
    found = epoch_means(rows)

    assert [(row["step"], row["train/loss"]) for row in found] == [(4, 3.0), (8, 1.0), (9, 5.0)]
    assert found[0]["train/adv_acc"] == (3 * 0.4 + 0.8) / 4
    assert found[0]["train/lr"] == 0.04


def test_a_training_that_goes_on() -> None:
    assert epoch_means([line(7, 2.0), line(8, 5.0)], start=4)[0]["train/loss"] == 2.75


def test_what_is_not_finite_stays_so() -> None:
    assert math.isnan(epoch_means([line(2, math.nan), line(4, 1.0)])[0]["train/loss"])
    assert epoch_means([]) == []
