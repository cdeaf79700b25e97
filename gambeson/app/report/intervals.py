"""The intervals of charts: of accuracies that the metrics keep without any, and the words that say what is drawn."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from gambeson.app.report.charts import Bar, Line
from gambeson.app.report.records import Records
from gambeson.app.report.words import courses
from gambeson.engine.sentinel import PROBE
from gambeson.evaluation import wilson

Ends = tuple[list[float], list[float]] | tuple[None, None]
"""Lower and upper ends of a line's intervals."""


def images_of(records: Records, metric: str) -> int | None:
    """How many images a metric is an accuracy of, by the sizes of the splits in the run's record.

    None where it is no accuracy of one model (`train/` is a mean over steps, `probe/alignment` one of cosines), and for
    records that are older than the sizes.
    """
    sizes = records.call["data"].get("sizes")
    if sizes is None or not metric.endswith("_acc"):
        return None
    kind = metric.partition("/")[0]
    split = records.call["finetune"]["select"] if "finetune" in records.call else "val"
    known: dict[str, int] = {"val": sizes[split], "probe": min(PROBE, sizes["train"])}
    return known.get(kind)


def accuracy_ends(values: Sequence[float], n: int | None) -> Ends:
    """The ends of Wilson's 95 % intervals, in percent.

    None where n is not known, or is not the number of images that the values are of: then n times one of them is no
    whole number.

    Args:
        values: Accuracies over n images each, in [0, 1].
        n: How many images.
    """
    if not n:
        return None, None
    counts = [round(value * n) for value in values]
    if any(not 0 <= k <= n or abs(value * n - k) > 0.01 for value, k in zip(values, counts, strict=True)):
        return None, None
    _, low, high = courses([vars(wilson(k, n)) for k in counts])
    return low, high


def rises(found: Sequence[Mapping[str, Any] | None]) -> tuple[list[float], list[float] | None, list[float] | None]:
    """Values and the ends of their intervals as a record has them: NaN for one that is not there, None for no ends."""
    y, low, high = (
        [float("nan") if one is None or one.get(key) is None else one[key] for one in found]
        for key in ("value", "low", "high")
    )
    known = any(end == end for end in low)
    return y, low if known else None, high if known else None


def caption(drawn: Sequence[Line | Bar], sizes: Iterable[int], method: str = "Wilson") -> str:
    """What the intervals of a chart are; nothing where it has none.

    Args:
        drawn: What the chart shows.
        sizes: The numbers of images that the values are of.
        method: Whose intervals.
    """
    if all(one.low is None for one in drawn):
        return ""
    known = sorted(set(sizes))
    n = f"{known[0]:,}" if len(known) == 1 else f"{known[0]:,} to {known[-1]:,}"
    what = "Shaded" if isinstance(drawn[0], Line) else "Lines"
    return f"{what}: {method} 95 % intervals, n = {n}."
