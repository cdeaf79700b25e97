"""A training's lines of metrics, put together by epoch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any


def epoch_means(rows: Iterable[Mapping[str, Any]], start: int = 0) -> list[dict[str, Any]]:
    """The training's own lines as means over whole epochs; an epoch that has only begun gives the last one.

    A line of `metrics.jsonl` is the mean over the steps since the line before it. Lines come every `log_every` steps
    and at the ends of epochs, so that one can be of two batches. Here every line weighs as many as it has steps.

    Args:
        rows: Metrics, in order; those without `train/loss` are passed over.
        start: The step before the first of them.

    Returns:
        The last row of every epoch, its `train/` values but the learning rate replaced by the means.

    Examples:
        >>> rows = [{"step": 3, "epoch": 0.75, "train/loss": 2.0}, {"step": 4, "epoch": 1.0, "train/loss": 6.0}]
        >>> epoch_means(rows)[0]["train/loss"]
        3.0
    """
    found: list[dict[str, Any]] = []
    pending: list[tuple[int, Mapping[str, Any]]] = []
    for row in rows:
        if "train/loss" not in row:
            continue
        pending.append((row["step"] - start, row))
        start = row["step"]
        if float(row["epoch"]).is_integer():
            found.append(_mean(pending))
            pending = []
    return [*found, _mean(pending)] if pending else found


def _mean(lines: list[tuple[int, Mapping[str, Any]]]) -> dict[str, Any]:
    last = dict(lines[-1][1])
    weight = sum(steps for steps, _ in lines)
    for key in [key for key in last if key.startswith("train/") and key != "train/lr"]:
        if weight > 0 and all(key in row for _, row in lines):
            last[key] = sum(steps * row[key] for steps, row in lines) / weight
    return last
