"""Several runs beside one another: settings, accuracies with McNemar's test, curves in one chart."""

from __future__ import annotations

from collections.abc import Sequence

from gambeson.app import compare
from gambeson.app.report.blocks import Block, Command, Part, Section, Table, Words
from gambeson.app.report.charts import SERIES
from gambeson.app.report.records import Records
from gambeson.app.report.training import overlaid
from gambeson.app.report.words import interval, stamp
from gambeson.core.errors import GambesonError


def against(runs: Sequence[Records]) -> list[Section]:
    """The sections of a comparison of at least two runs."""
    names = labels(runs)
    try:
        found = compare.compare([records.run for records in runs])
    except (GambesonError, KeyError, TypeError) as error:
        text = error.message if isinstance(error, GambesonError) else f"{type(error).__name__}: {error}"
        return [Section("comparison", "Side by side", [Words(f"The runs cannot be compared: {text}", "warning")], None)]
    marks = _marks(found, [str(records.run.path) for records in runs])
    head = ("test accuracy, % [95 %]", "n", *names)
    rows = []
    for key, values in found["accuracy"].items():
        sizes = ", ".join(f"{size:,}" for size in dict.fromkeys(value["n"] for value in values if value))
        cells = [interval(value) + marks.get((key, place), "") for place, value in enumerate(values)]
        rows.append((key, sizes, *cells))
    main = [row for row in rows if row[0].startswith("main ")]
    blocks: list[Block] = []
    if main:
        said = ", ".join(f"{checkpoint} of {name}" for name, checkpoint in zip(names, found["main"], strict=True))
        blocks.append(Words(f"What each run is reported by (main): {said}."))
        blocks.append(Table("Accuracies of the main weights", head, main))
        rows = [row for row in rows if row not in main]
    blocks.append(Table("Accuracies by checkpoint" if main else "Accuracies", head, rows, folded=bool(main)))
    if found["paired"]:
        corrected = f" after Holm's correction for the {found['tests']} tests here" if found["correction"] else ""
        blocks.append(
            Words(
                f"Stars: the difference to the first run on the same images is significant (McNemar's exact test, p <"
                f" {found['alpha']:g}{corrected}). No star: not significant, or not the same images.",
                "note",
            )
        )
        blocks.append(_paired(found, dict(zip([str(records.run.path) for records in runs], names, strict=True))))
    missing = dict.fromkeys(gap["command"] for gap in found["gaps"] if gap["command"])
    if missing:
        blocks.append(Words("More of the table can be compared after:", "note"))
        blocks += [Command(command) for command in missing]
    for name, one in zip(names, runs, strict=True):
        if said := stamp(one.selection):
            blocks.append(Words(f"{name}: {said}", "warning"))
    settings = [(key, *["–" if v is None else str(v) for v in values]) for key, values in found["settings"].items()]
    what: Block = Words("All settings are equal.")
    if settings:
        what = Table("Settings that differ", ("setting", *names), settings, left=1 + len(names))
    sections = [
        Section("comparison", "Side by side", blocks, found),
        Section("differences", "What differs", [what], found["settings"]),
    ]
    drawn = [records for records in runs if records.rows]
    if drawn and len(runs) <= len(SERIES):
        named = dict(zip([id(records) for records in runs], names, strict=True))
        sections.append(
            Section("curves", "Training curves", overlaid(drawn, [named[id(records)] for records in drawn]), None)
        )
    return sections


def overview(parts: Sequence[Part], names: Sequence[str]) -> Section:
    """What each run is, and its result."""
    rows = [(name, part.about, str(part.data["state"]), part.headline) for name, part in zip(names, parts, strict=True)]
    data = [{key: part.data[key] for key in ("name", "method", "state", "clean", "robust")} for part in parts]
    return Section(
        "overview",
        "The runs",
        [Table("What each run is, and its result", ("run", "what", "state", "result"), rows, left=4)],
        data,
    )


def labels(runs: Sequence[Records]) -> list[str]:
    """Names of the runs' folders; whole paths where names repeat."""
    names = [records.name for records in runs]
    return names if len(set(names)) == len(names) else [str(records.run.path) for records in runs]


def _marks(found: dict[str, object], paths: Sequence[str]) -> dict[tuple[str, int], str]:
    """A star for every run and accuracy that differs from the first run's."""
    marks = {}
    for line in found["paired"]:  # type: ignore[attr-defined]
        if line["a"] == paths[0] and line["significant"] and line["b"] in paths:
            marks[line["key"], paths.index(line["b"])] = " *"
    return marks


def _paired(found: dict[str, object], names: dict[str, str]) -> Table:
    """The tests between runs on the same images."""
    rows = []
    for line in found["paired"]:  # type: ignore[attr-defined]
        by = line["difference"]
        points = f"{100 * by['value']:+.1f} [{100 * by['low']:+.1f}, {100 * by['high']:+.1f}]"
        p = line["p_holm"]
        verdict = "significant" if line["significant"] else "not significant"
        counts = [f"{line[key]:,}" for key in ("n", "only_a", "only_b")]
        shown = f"{p:.3f}" if p >= 0.001 else "< 0.001"
        rows.append((line["key"], names[line["a"]], names[line["b"]], *counts, points, shown, verdict))
    p_name = "p (Holm)" if found["correction"] else "p"
    head = ("accuracy", "first", "second", "n", "only first", "only second", "difference, points [95 %]", p_name, "")
    return Table("Differences on the same images", head, rows, left=3, folded=len(rows) > 6)
