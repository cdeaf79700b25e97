"""The moment of collapse and the detectors, on histories written by hand."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gambeson.diagnosis.collapse import DETECTORS, EVENT, Look, detect, find_collapse, read_looks


def look(step: int, fgsm: float, pgd: float, collapsed: bool = False, **signs: float | None) -> Look:
    """A look of a training of 50 steps an epoch."""
    return Look(step, step / 50, fgsm, pgd, collapsed, **signs)


HISTORY = (
    look(0, 0.10, 0.10, aae=0.02, alignment=0.9),
    look(25, 0.40, 0.35, aae=0.0, alignment=0.8),
    look(50, 0.50, 0.45, aae=0.01, alignment=0.7),
    look(75, 0.60, 0.38, aae=0.08, alignment=0.5),
    look(100, 0.80, 0.20, True, aae=0.3, alignment=0.34),
    look(125, 0.90, 0.05, True, aae=0.6, alignment=0.2),
)


def row(one: Look, **more: Any) -> dict[str, Any]:
    """A look as the trainer logs it."""
    found = {"step": one.step, "epoch": one.epoch, "seconds": 1.0, "probe/fgsm_acc": one.fgsm}
    found |= {"probe/pgd10_acc": one.pgd, "probe/gap": one.gap, "probe/aae": one.aae, "probe/alignment": one.alignment}
    return {**found, **({"event": EVENT} if one.collapsed else {}), **more}


def test_the_moment_is_between_the_last_healthy_look_and_the_first_collapsed_one() -> None:
    found = find_collapse(HISTORY)
    assert found is not None
    assert (found.look, found.healthy, found.recovered, found.count) == (HISTORY[4], HISTORY[3], None, 2)
    record = json.loads(json.dumps(found.to_dict()))
    assert (record["step"], record["epoch"], record["healthy"]["step"], record["recovered"]) == (100, 2.0, 75, None)
    assert record["look"]["gap"] == pytest.approx(0.6)
    assert record["looks"] == 2


def test_a_training_that_ends_healthy_has_recovered_from_the_first_look_of_that_end() -> None:
    later = [look(150, 0.5, 0.5), look(175, 0.9, 0.1, True), look(200, 0.5, 0.5), look(225, 0.5, 0.5)]
    found = find_collapse([*HISTORY, *later])
    assert found is not None
    assert found.look.step == 100  # the first one counts
    assert found.recovered is not None
    assert (found.recovered.step, found.count) == (200, 3)


def test_a_large_gap_is_no_recovery_though_the_verdict_is_gone() -> None:
    """PGD accuracy above a quarter of FGSM accuracy, and a new maximum: as FGSM training on digits ends."""
    later = [look(150, 0.93, 0.50), look(175, 0.93, 0.55)]
    found = find_collapse([*HISTORY, *later])
    assert found is not None
    assert (found.recovered, found.count) == (None, 2)
    assert find_collapse([*HISTORY, *later, look(200, 0.6, 0.45)]).recovered.step == 200  # type: ignore[union-attr]


def test_a_collapse_at_the_first_look_has_no_healthy_one_and_none_is_none() -> None:
    found = find_collapse([look(0, 0.9, 0.1, True)])
    assert found is not None
    assert (found.look.step, found.healthy) == (0, None)
    assert find_collapse(HISTORY[:4]) is None
    assert find_collapse([]) is None


@given(before=st.integers(0, 20), verdicts=st.lists(st.booleans(), max_size=8))
def test_healthy_looks_before_do_not_move_the_moment(before: int, verdicts: list[bool]) -> None:
    looks = [replace(HISTORY[0], step=1000 + k, collapsed=verdict) for k, verdict in enumerate([*verdicts, True])]
    healthy = [replace(HISTORY[0], step=k) for k in range(before)]
    with_them, without = find_collapse([*healthy, *looks]), find_collapse(looks)
    assert with_them is not None
    assert without is not None
    assert (with_them.look, with_them.recovered, with_them.count) == (without.look, without.recovered, without.count)
    assert with_them.healthy == (without.healthy or (healthy[-1] if healthy else None))


def fired(*looks: Look) -> dict[str, int | None]:
    return {one.detector: one.look.step if one.look else None for one in detect(looks)}


def test_every_detector_has_its_own_step() -> None:
    assert fired(*HISTORY) == {
        "sentinel": 100,
        "gap": 75,  # 0.22
        "half": 100,  # 0.20 of 0.45
        "wong": 100,  # 0.45 at step 50, an epoch before
        "alignment": 100,  # 0.34 of 0.7
        "aae": 100,
    }
    assert set(fired(*HISTORY[:3]).values()) == {None}


@pytest.mark.parametrize(
    ("detector", "looks", "step"),
    [
        ("gap", [look(0, 0.5, 0.3), look(25, 0.51, 0.3)], 25),
        ("half", [look(0, 0.1, 0.19), look(25, 0.1, 0.0)], None),  # it never had anything to lose
        ("half", [look(0, 0.1, 0.4), look(25, 0.1, 0.2), look(50, 0.1, 0.19)], 50),
        ("wong", [look(0, 0.5, 0.5), look(25, 0.5, 0.3), look(50, 0.5, 0.29)], 50),
        ("wong", [look(0, 0.5, 0.5), look(25, 0.5, 0.4), look(75, 0.5, 0.2)], None),  # the 0.5 is older than an epoch
        ("wong", [look(0, 0.5, 0.5), look(500, 0.5, 0.2)], 500),  # looks further apart than an epoch
        ("alignment", [look(0, 0, 0, alignment=0.8), look(25, 0, 0, alignment=0.4)], None),
        ("alignment", [look(0, 0, 0, alignment=0.8), look(25, 0, 0), look(50, 0, 0, alignment=0.3)], 50),
        ("alignment", [look(0, 0, 0, alignment=-0.5)], None),  # nothing before it
        ("aae", [look(0, 0, 0, aae=0.09), look(25, 0, 0, aae=0.1)], 25),
    ],
)
def test_where_a_detector_fires(detector: str, looks: list[Look], step: int | None) -> None:
    assert fired(*looks)[detector] == step


def test_a_number_that_older_metrics_lack_is_not_judged() -> None:
    found = {one.detector: one for one in detect([replace(one, aae=None, alignment=None) for one in HISTORY])}
    assert {name: one.judged for name, one in found.items()} == {
        **dict.fromkeys(DETECTORS, 6),
        "aae": 0,
        "alignment": 0,
    }
    assert found["aae"].to_dict()["step"] is None
    assert found["sentinel"].to_dict()["step"] == 100
    assert all(one.source and one.rule for one in found.values())


def test_looks_are_read_from_the_metrics() -> None:
    others: list[dict[str, Any]] = [
        {"step": 3, "epoch": 0.1, "train/loss": 1.0},
        {"step": 9, "event": "rollback 1 of 3"},
    ]
    assert read_looks([*others, *map(row, HISTORY)]) == (HISTORY, 0)
    old = {key: value for key, value in row(HISTORY[4]).items() if key not in ("probe/aae", "probe/alignment")}
    assert read_looks([old]) == ((replace(HISTORY[4], aae=None, alignment=None),), 0)
    assert read_looks([]) == ((), 0)


@pytest.mark.parametrize(
    "wrong",
    [
        {"probe/fgsm_acc": math.nan},
        {"probe/pgd10_acc": 1.5},
        {"probe/pgd10_acc": "0.5"},
        {"probe/pgd10_acc": None},
        {"probe/aae": -0.1},
        {"probe/alignment": math.inf},
        {"probe/alignment": True},
        {"step": 60.5},
        {"step": "sixty"},
        {"step": 50},  # not after the look before it
        {"epoch": None},
    ],
    ids=str,
)
def test_a_damaged_look_is_left_out_and_counted(wrong: dict[str, Any]) -> None:
    rows = [row(one) for one in HISTORY]
    rows[3] |= wrong
    assert read_looks(rows) == (HISTORY[:3] + HISTORY[4:], 1)


def test_an_alignment_that_no_image_gave_is_not_damaged() -> None:
    (found,), damaged = read_looks([row(HISTORY[0], **{"probe/alignment": None})])
    assert (found.alignment, damaged) == (None, 0)
