"""One run: the result in a sentence, a few numbers at the top, and all sections that have something to say."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from gambeson.app.compare import is_own
from gambeson.app.report import looked, measured, training
from gambeson.app.report.blocks import Command, Part, Section, Tile, Words
from gambeson.app.report.records import Record, Records
from gambeson.app.report.words import STAMP, bracket, budget, duration, percent, said

SECTIONS: tuple[Callable[[Records], Section | None], ...] = (
    measured.accuracy,
    measured.autoattack,
    looked.masking,
    measured.classes,
    measured.budgets,
    measured.corruptions,
    training.curves,
    training.overfitting,
    looked.cam,
    looked.criticality,
    looked.line,
    looked.landscape,
    looked.response,
    looked.shortcuts,
    looked.spectra,
)


def part(records: Records, more: Sequence[Section] = ()) -> Part:
    """All that the page says of a run.

    Args:
        records: The run.
        more: Sections made elsewhere, which come after the accuracies.
    """
    sections = [made for section in SECTIONS if (made := section(records)) is not None]
    after = next((place for place, one in enumerate(sections) if one.key not in EARLY), len(sections))
    sections[after:after] = more
    advice = measured.advice(records)
    if advice:
        told = [one.text for one in advice if isinstance(one, (Words, Command))]
        sections.insert(0, Section("next", "Not measured yet", advice, told))
    sections.insert(1 if advice else 0, training.what_was_run(records))  # last, when all problems are known
    clean, robust = _main(records)
    return Part(
        records.name,
        _about(records),
        _headline(records, clean, robust),
        _tiles(records, clean, robust),
        sections,
        {
            "name": records.name,
            "path": str(records.run.path),
            "method": records.method,
            "state": records.state,
            "selected_on": records.selection,
            "clean": clean,
            "robust": robust,
            "sections": {section.key: section.data for section in sections},
        },
    )


EARLY = ("accuracy", "autoattack", "masking", "classes")


def _main(records: Records) -> tuple[Record | None, Record | None]:
    """Clean accuracy, and the robust accuracy to be stated: of AutoAttack if it ran, else of the strongest attack.

    Both are of the main weights, at the run's own budget, of the most images.
    """
    name = records.call["data"]["name"]
    rows = [row for row in measured.accuracy_rows(records) if row["checkpoint"] == records.checkpoint]
    rows = [row for row in rows if row["data"] == name]
    clean = next((row for row in rows if row["attack"] == "clean"), None)
    attacked = [row for row in rows if row["attack"] != "clean" and is_own(records.run, row)]
    whole = [row for row in attacked if row["attack"] == "autoattack"]
    most = max((row["n"] for row in attacked), default=0)
    strongest = min(  # of equals the later one: lists of attacks ascend
        (r for r in reversed(attacked) if r["n"] == most), key=lambda row: float(row["value"]), default=None
    )
    return clean, whole[0] if whole else strongest


def _called(robust: Record) -> str:
    return "AutoAttack" if robust["attack"] == "autoattack" else str(robust["attack"])


def _about(records: Records) -> str:
    model = records.call["model"]
    width = f", width {model['width']}" if model.get("width") else ""
    args = records.call["method"].get("args", {})
    ball = budget(args.get("norm", "Linf"), records.eps)
    return f"{records.method} · {model['name']}{width} · {records.call['data']['name']} · {ball}"


def _headline(records: Records, clean: Record | None, robust: Record | None) -> str:
    if clean is None:
        return f"Nothing has been measured on the test set yet; the training is at: {records.state}."
    text = f"{said(clean)} of {clean['n']:,} test images are classified correctly"
    if robust is None:
        return f"{text}; no attack has been run."
    which = "" if robust["n"] == clean["n"] else f" (of {robust['n']:,} of them)"
    text += f", {said(robust)} under {_called(robust)} at {budget(robust['norm'], robust['eps'])}{which}"
    return f"{text}." if robust["attack"] == "autoattack" else f"{text}, which is an upper bound."


def _tiles(records: Records, clean: Record | None, robust: Record | None) -> list[Tile]:
    tiles = []
    if clean:
        tiles.append(Tile("clean accuracy", percent(clean["value"]), f"{bracket(clean)}, n = {clean['n']:,}"))
    if robust:
        bound = "" if robust["attack"] == "autoattack" else ", an upper bound"
        note = f"{bracket(robust)}, n = {robust['n']:,}{bound}"
        tiles.append(Tile(f"under {_called(robust)}", percent(robust["value"]), note))
    verdicts = [record["verdict"] for _, record in records.found.get("masking", []) if "verdict" in record]
    if verdicts:
        tone: Any = {"PASS": "good", "WARN": "warning", "FAIL": "bad"}.get(verdicts[0], "plain")
        tiles.append(Tile("gradient masking", verdicts[0], "verdict of diagnose masking", tone))
    collapse = training.collapse_of(records)
    if collapse:
        note = f"catastrophic overfitting at step {collapse['step']:,}"
        tiles.append(Tile("collapse", f"epoch {collapse['epoch']:.1f}", note, "bad"))
    elif sum("probe/gap" in row for row in records.rows) > 1:  # one look before the first step says nothing
        so_far = "" if records.state == "done" else " so far"
        tiles.append(Tile("collapse", f"none{so_far}", "FGSM and PGD accuracy stay together", "good"))
    if records.state != "done" and records.state != "imported":
        tiles.append(Tile("state", records.state, "the training has not ended", "warning"))
    if records.selection == "test":
        tiles.append(Tile("selection", "on test", STAMP.partition(": ")[2], "bad"))
    cost = training.cost_of(records)
    if cost:
        tiles.append(Tile("training", duration(cost["seconds"]), f"{cost['steps']:,} steps"))
    return tiles
