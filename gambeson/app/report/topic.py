"""Sections made of a run's records on one topic."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gambeson.app.report.blocks import Block, Section, Words
from gambeson.app.report.records import Record, Records
from gambeson.app.report.words import stamp

CHOOSING = ("criticality", "line")
"""Topics by which something is chosen: on the test split that is a selection on test."""


def section(records: Records, topic: str, title: str, blocks: Callable[[Record], list[Block]]) -> Section | None:
    """A section of all records of a topic, the newest first.

    Args:
        records: The run.
        topic: Of `TOPICS`.
        title: The heading.
        blocks: What one record shows. A record that it cannot show joins the run's problems.

    Returns:
        The section; None where there is nothing to show.
    """
    shown: list[Block] = []
    data: list[Any] = []
    for name, record in records.found.get(topic, []):
        try:
            made = blocks(record)
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            records.problems.append(f"{name} is not what this version writes: {type(error).__name__}: {error}")
            continue
        shown += made
        if stale := _stale(records, record):
            shown.append(Words(stale, "warning"))
        data.append({"file": name, **record})
    if not data:
        return None
    on_test = topic in CHOOSING and any(record.get("split") == "test" for record in data)
    return Section(topic, title, shown, data, stamp(records.selection) or ("measured on test" if on_test else ""))


def _stale(records: Records, record: Record) -> str:
    """That a record speaks of weights that the run no longer has."""
    name, step = record.get("checkpoint"), record.get("step")
    now = records.steps.get(name) if isinstance(name, str) else None
    if step is None or now is None or now == step:
        return ""
    return f"Of step {step:,}: the checkpoint {name} is of step {now:,} now. Run the diagnosis again."
