"""The table of a sweep: means, spreads and intervals over seeds, collapses, and paired differences."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from app.helpers import make_run, write_sweep
from gambeson.app.sweep_plan import Plan, plan_of
from gambeson.app.sweep_table import collect
from gambeson.core.errors import InputError
from gambeson.evaluation import bootstrap, bootstrap_runs

TEXT = (
    "seeds: [0, 1, 2]\nattack: clean,pgd-40\npairs: [[b, V FGSM], [b, c]]\nrows: {V FGSM: fgsm, b: fgsm, c: n-fgsm}\n"
)


@pytest.fixture(autouse=True)
def inside(here: Path) -> None:
    """Every file of these tests lies in a folder of their own."""


def filled(values: dict[str, list[tuple[float, float]]], text: str = TEXT, **options: Any) -> Plan:
    plan = plan_of(write_sweep(text))
    for label, seeds in values.items():
        for job, (clean, robust) in zip(plan.of(label), seeds, strict=False):
            make_run(job, {"clean": clean, "pgd-40": robust}, **options)
    return plan


def test_a_row_has_mean_spread_interval_and_collapses() -> None:
    plan = filled({"V FGSM": [(0.9, 0.0), (0.8, 0.1)]}, collapsed=True)

    (row,) = collect(plan)["rows"]

    assert (row["label"], row["seeds"], row["collapsed"], row["watched"], row["seconds"]) == ("V FGSM", [0, 1], 2, 2, 5)
    clean = row["accuracy"]["clean"]
    assert clean["values"] == [0.9, 0.8]
    assert [clean[key] for key in ("n", "mean", "std", "min", "max")] == pytest.approx([2, 0.85, 0.005**0.5, 0.8, 0.9])
    half = 12.7062047 * 0.005**0.5 / 2**0.5  # Student's 97.5 % quantile with one degree of freedom
    assert [clean["low"], clean["high"]] == pytest.approx([0.85 - half, 0.85 + half])


def test_differences_are_paired_by_seed() -> None:
    first = [(0.9, 0.5), (0.8, 0.4), (0.7, 0.3)]
    other = [(clean - 0.1, robust + 0.01 * seed) for seed, (clean, robust) in enumerate(first)]

    (pair,) = collect(filled({"b": first, "V FGSM": other}))["pairs"]

    assert (pair["a"], pair["b"], pair["seeds"]) == ("b", "V FGSM", [0, 1, 2])
    robust = pair["difference"]["pgd-40"]
    assert robust["values"] == pytest.approx([0, -0.01, -0.02])
    half = 4.30265273 * 0.01 / 3**0.5
    assert [robust[key] for key in ("mean", "low", "high")] == pytest.approx([-0.01, -0.01 - half, -0.01 + half])


def test_seeds_that_one_of_a_pair_lacks_are_left_out_of_the_difference() -> None:
    plan = filled({"b": [(0.9, 0.5), (0.8, 0.4)]})
    make_run(plan.of("V FGSM")[1], {"clean": 0.6, "pgd-40": 0.4})

    (pair,) = collect(plan)["pairs"]

    assert pair["seeds"] == [1]
    assert pair["difference"]["clean"]["values"] == pytest.approx([0.2])
    assert pair["difference"]["clean"]["low"] is None


def test_one_seed_has_no_interval_and_every_job_its_state() -> None:
    found = collect(filled({"c": [(0.9, 0.5)]}))

    assert found["rows"][0]["accuracy"]["clean"]["std"] is None
    assert found["rows"][0]["accuracy"]["clean"]["low"] is None
    assert [job["state"] for job in found["jobs"]] == ["not begun"] * 6 + ["done", "not begun", "not begun"]


@pytest.mark.parametrize("interval", ["student", "bootstrap"])
def test_seeds_that_agree_have_no_interval_over_seeds(interval: str) -> None:
    plan = filled({"V FGSM": [(0.9, 0.5), (0.9, 0.4)], "b": [(0.8, 0.4), (0.8, 0.4)]})
    found = collect(plan, interval=interval)

    accuracy = found["rows"][0]["accuracy"]
    assert (accuracy["clean"]["std"], accuracy["clean"]["low"], accuracy["clean"]["high"]) == (0, None, None)
    assert accuracy["pgd-40"]["low"] is not None


def test_the_interval_by_bootstrap_is_that_of_the_library() -> None:
    values = [(0.9, 0.5), (0.8, 0.4), (0.75, 0.3)]
    plan = filled({"b": values, "V FGSM": [(0.5, 0.5), (0.6, 0.1), (0.5, 0.2)]})

    row = collect(plan, "bootstrap")["rows"][1]["accuracy"]["clean"]
    images = collect(plan, "images")["rows"][1]["accuracy"]["clean"]
    pair = collect(plan, "images")["pairs"][0]["difference"]["clean"]

    expected = bootstrap([0.9, 0.8, 0.75])
    assert (row["low"], row["high"]) == (expected.low, expected.high)
    outcomes = np.stack([np.arange(100) < 100 * clean for clean, _ in values]).astype(float)
    expected = bootstrap_runs(outcomes)
    assert (images["low"], images["high"]) == (expected.low, expected.high)
    assert images["low"] < row["low"]  # the test set is drawn too
    others = np.stack([np.arange(100) < 100 * clean for clean in (0.5, 0.6, 0.5)]).astype(float)
    expected = bootstrap_runs(outcomes - others)
    assert (pair["low"], pair["high"]) == (expected.low, expected.high)


def test_an_interval_over_images_needs_the_same_ones_and_another_kind_is_unknown() -> None:
    plan = filled({"b": [(0.9, 0.5)]})
    make_run(plan.of("b")[1], {"clean": 0.9, "pgd-40": 0.5}, n=50)

    with pytest.raises(InputError, match="got 50 and 100 images"):
        collect(plan, "images")
    with pytest.raises(InputError, match="unknown interval 'wald'"):
        collect(plan, "wald")


def test_a_column_out_of_distribution_waits_for_the_corruptions() -> None:
    text = f"{TEXT}ood: --set rift18\n"
    plan = filled({"b": [(0.9, 0.5)]}, text, ood=("corruptions-final-rift18.json", 0.7))
    make_run(plan.of("c")[0], {"clean": 0.9, "pgd-40": 0.5})

    (row,) = collect(plan)["rows"]

    assert row["label"] == "b"
    assert row["accuracy"]["ood"]["values"] == [0.7]
