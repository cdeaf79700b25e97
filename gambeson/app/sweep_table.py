"""The results of a sweep: mean, spread and interval over seeds for every row, and the differences of pairs."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any, Literal, get_args

import numpy as np

from gambeson.app.sweep_jobs import evaluation, is_done, out_of_distribution, state
from gambeson.app.sweep_plan import Job, Plan
from gambeson.core.errors import InputError, require_known
from gambeson.diagnosis.spread import spread, student
from gambeson.engine.run import Run
from gambeson.engine.sentinel import has_collapsed
from gambeson.evaluation import bootstrap, bootstrap_runs

IntervalKind = Literal["student", "bootstrap", "images"]
"""Over the seeds by Student's t or by bootstrap (BCa), or over seeds and test images by bootstrap."""


def collect(plan: Plan, interval: str = "student") -> dict[str, Any]:
    """The tables of a sweep, from the runs that are complete.

    Args:
        plan: The sweep.
        interval: A kind of interval, see `IntervalKind`.

    Returns:
        `rows` (label, seeds, runs, `accuracy` by column: `n`, `mean`, `std`, `min`, `max`, `low`, `high` and the
        `values` by seed, all as shares; `collapsed` of `watched` runs at the sentinel's last look, None where none was
        watched; `seconds`, the median of the trainings), `pairs` (`a`, `b`, seeds, `difference` by column), `jobs`
        (label, seed, run, state) and what they are of: `sweep`, `root`, `columns`, `interval`. Ends of intervals are
        None where there is one seed.

    Raises:
        InputError: Another kind of interval, or one over images where seeds were measured on different ones.
    """
    require_known("interval", interval, get_args(IntervalKind))
    complete = {label: [job for job in plan.of(label) if is_done(job, plan)] for label in plan.labels}
    rows = [_row(plan, label, jobs, interval) for label, jobs in complete.items() if jobs]
    pairs = []
    for a, b in plan.pairs:
        seeds = [seed for seed in plan.seeds if all(seed in {job.seed for job in complete[label]} for label in (a, b))]
        if seeds:
            one, other = ([job for job in complete[label] if job.seed in seeds] for label in (a, b))
            found = {column: _difference(plan, one, other, column, interval) for column in plan.columns}
            pairs.append({"a": a, "b": b, "seeds": seeds, "difference": found})
    return {
        "sweep": str(plan.file),
        "root": str(plan.root),
        "columns": plan.columns,
        "interval": interval,
        "rows": rows,
        "pairs": pairs,
        "jobs": [
            {"label": job.label, "seed": job.seed, "run": str(job.path), "state": state(job, plan)}
            for label in plan.labels
            for job in plan.of(label)
        ],
    }


def _row(plan: Plan, label: str, jobs: Sequence[Job], interval: str) -> dict[str, Any]:
    accuracy = {}
    for column in plan.columns:
        values = [_value(plan, job, column) for job in jobs]
        outcomes = [_outcomes(plan, job, column) for job in jobs] if interval == "images" else []
        low, high = _ends(values, outcomes, interval)
        accuracy[column] = {**vars(spread(values)), "low": low, "high": high, "values": values}
    looks = [_looks(job) for job in jobs]
    watched = [rows for rows in looks if rows]
    events = [_has_collapsed(rows) for rows in watched]
    return {
        "label": label,
        "seeds": [job.seed for job in jobs],
        "runs": [str(job.path) for job in jobs],
        "accuracy": accuracy,
        "collapsed": sum(events) if watched else None,
        "watched": len(watched),
        "seconds": statistics.median(_seconds(job) for job in jobs),
    }


def _difference(plan: Plan, one: Sequence[Job], other: Sequence[Job], column: str, interval: str) -> dict[str, Any]:
    """The mean of the first minus the second, seed by seed, and its interval."""
    a, b = ([_value(plan, job, column) for job in side] for side in (one, other))
    values = [first - second for first, second in zip(a, b, strict=True)]
    outcomes: list[np.ndarray] = []
    if interval == "images":
        sides = [[_outcomes(plan, job, column) for job in side] for side in (one, other)]
        _require_same([outcome for side in sides for outcome in side])
        outcomes = [first - second for first, second in zip(*sides, strict=True)]
    low, high = _ends(values, outcomes, interval)
    return {"mean": spread(values).mean, "low": low, "high": high, "values": values}


def _ends(values: Sequence[float], outcomes: Sequence[np.ndarray], interval: str) -> tuple[float | None, float | None]:
    """The ends of a mean's interval; none over one seed, or over seeds that all agree: it would have no width."""
    if len(values) < 2 or (interval != "images" and min(values) == max(values)):
        return None, None
    if interval == "student":
        return student(values)
    if interval == "bootstrap":
        found = bootstrap(values)
    else:
        _require_same(outcomes)
        found = bootstrap_runs(np.stack(outcomes))
    return found.low, found.high


def _require_same(outcomes: Sequence[np.ndarray]) -> None:
    sizes = sorted({len(outcome) for outcome in outcomes})
    if len(sizes) > 1:
        raise InputError(
            f"an interval over images needs the same ones for all seeds, got {' and '.join(map(str, sizes))} images",
            hint="--interval student is over the seeds alone",
        )


def _value(plan: Plan, job: Job, column: str) -> float:
    """A column of a complete run."""
    if column == "ood":
        return float((out_of_distribution(job, plan) or {})["ood"]["value"])
    found = evaluation(job, plan)
    assert found is not None  # the run is complete
    return float(found[1]["accuracy"][column]["value"])


def _outcomes(plan: Plan, job: Job, column: str) -> np.ndarray:
    """Per test image whether it was right; out of distribution, the share of its corruptions."""
    if column == "ood":
        file = (job.path / "diagnosis" / str(plan.ood_record)).with_suffix(".npz")
        with np.load(file, allow_pickle=False) as arrays:
            found = [arrays[name] for name in arrays.files if name not in ("y", "clean")]
        return np.mean(np.stack(found).astype(np.float64), axis=0)
    found_record = evaluation(job, plan)
    assert found_record is not None
    return Run(job.path, {}).outcomes(found_record[0])[column].astype(np.float64)


def _metrics(job: Job) -> list[dict[str, Any]]:
    """The metrics of the training; a fine-tuned run trained in a run of its own."""
    inner = job.path / "finetune"
    return Run(inner if inner.is_dir() else job.path, {}).rows()


def _looks(job: Job) -> list[dict[str, Any]]:
    """The looks of the sentinel."""
    return [row for row in _metrics(job) if "probe/pgd10_acc" in row]


def _has_collapsed(looks: Sequence[dict[str, Any]]) -> bool:
    """The sentinel's rule at its last look."""
    best = max(row["probe/pgd10_acc"] for row in looks)
    return bool(has_collapsed(looks[-1]["probe/fgsm_acc"], looks[-1]["probe/pgd10_acc"], best))


def _seconds(job: Job) -> float:
    return max((float(row["seconds"]) for row in _metrics(job) if "seconds" in row), default=0.0)
