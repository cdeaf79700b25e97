"""Numbers and names as the page writes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

STAMP = "selected on test: its numbers are optimistic"


def percent(value: float | None) -> str:
    """A share in percent, one decimal."""
    return "–" if value is None else f"{100 * value:.1f} %"


def bracket(found: Mapping[str, Any], space: str = " ") -> str:
    """The ends of an interval, in percent."""
    return f"[{100 * found['low']:.1f},{space}{100 * found['high']:.1f}]"


def interval(found: Mapping[str, Any] | None) -> str:
    """A share in percent with its interval."""
    if found is None or found.get("value") is None:
        return "–"
    return f"{100 * found['value']:.1f} {bracket(found)}"


def said(found: Mapping[str, Any]) -> str:
    """A share with its interval, for a sentence: kept on one line."""
    return f"{100 * found['value']:.1f}\u00a0% {bracket(found, chr(0xA0))}"


def number(value: float | None) -> str:
    """A number with three digits."""
    return "–" if value is None else f"{value:.3g}"


def budget(norm: str, eps: float | None) -> str:
    """A budget, whole grey levels as a fraction of 255."""
    if eps is None:
        return norm
    grey = eps * 255
    whole = norm == "Linf" and 0 < grey <= 33 and abs(grey - round(grey)) < 1e-9
    return f"{norm} eps {f'{round(grey)}/255' if whole else f'{eps:.4g}'}"


def duration(seconds: float) -> str:
    """A time with its unit."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def sentence(text: str) -> str:
    """With a capital letter at the beginning."""
    return text[:1].upper() + text[1:]


def where(record: Mapping[str, Any]) -> str:
    """Which weights and images a record is of."""
    parts = []
    if "checkpoint" in record:
        parts.append(f"checkpoint {record['checkpoint']} (step {record['step']})")
    if "data" in record:
        parts.append(f"{record['data']} {record.get('split', 'test')}")
    if "n" in record:
        parts.append(f"n = {record['n']:,}")
    return ", ".join(parts)


def stamp(selection: Mapping[str, Any] | str | None) -> str:
    """What is to be said of a run selected on the test set; nothing of others."""
    split = selection.get("split") if isinstance(selection, Mapping) else selection
    return STAMP if split == "test" else ""


def ends(found: Mapping[str, Any]) -> tuple[float, float, float]:
    """A share and the ends of its interval, in percent."""
    return 100 * found["value"], 100 * found["low"], 100 * found["high"]


def courses(found: Sequence[Mapping[str, Any]]) -> tuple[list[float], list[float], list[float]]:
    """Shares, and the lower and upper ends of their intervals, in percent."""
    rows = [ends(one) for one in found]
    return [row[0] for row in rows], [row[1] for row in rows], [row[2] for row in rows]
