"""What `gambeson runs compare` shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.markup import escape

from gambeson.app.gaps import REASONS
from gambeson.app.show import interval, new_table, out, print_table, short, stamp
from gambeson.app.states import sentence
from gambeson.evaluation import Interval


def comparison(found: Mapping[str, Any]) -> None:
    """The tables of `runs compare`."""
    names = found["runs"]
    if found["settings"]:
        table = new_table("setting", *names, left=1 + len(names))
        for key, values in found["settings"].items():
            table.add_row(key, *["-" if value is None else escape(short(value)) for value in values])
        print_table(table)
    else:
        out.print("all settings are equal")
    table = new_table("test accuracy, % [95 %]", *names)
    for key, values in found["accuracy"].items():
        sizes = list(dict.fromkeys(f"{value['n']:,}" for value in values if value))
        table.add_row(
            f"{key}, n = {' and '.join(sizes)}", *[interval(Interval(**value)) if value else "-" for value in values]
        )
    print_table(table)
    if len(set(found["main"])) > 1:
        said = ", ".join(f"{checkpoint} of {name}" for name, checkpoint in zip(names, found["main"], strict=True))
        out.print(escape(f"main: {said}"), style="dim", soft_wrap=True)
    if found["paired"]:
        _paired(found)
    _gaps(found["gaps"])
    for name, split in zip(names, found["selection"], strict=True):
        stamp({"split": split}, name)
    for name, open_end in zip(names, found["unfinished"], strict=True):
        if open_end:
            out.print(escape(f"{name}: {sentence(open_end, open_end['checkpoints'])}"), style="bold", soft_wrap=True)


def _gaps(gaps: Sequence[Mapping[str, Any]]) -> None:
    """Why cells are empty or not tested, run by run, and the commands that help."""
    by: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for gap in gaps:
        by.setdefault((gap["run"], gap["reason"]), []).append(gap)
    for (run, reason), some in by.items():
        lines = ", ".join(_line(gap) for gap in some)
        has = list(dict.fromkeys(line for gap in some for line in gap["has"]))
        there = f"; it has {', '.join(has)}" if reason == "missing" and has else ""
        out.print(escape(f"{run} {REASONS[reason]} {lines}{there}"), soft_wrap=True)
    commands = list(dict.fromkeys(gap["command"] for gap in gaps if gap["command"]))
    if commands:
        out.print("to compare on the same images, run")
    for command in commands:
        out.print(f"  {escape(command)}", soft_wrap=True)


def _line(gap: Mapping[str, Any]) -> str:
    differs = gap["n"] is not None and gap["n"] != gap["wanted"]
    return f"{gap['key']} (n = {gap['n']:,}, not {gap['wanted']:,})" if differs else str(gap["key"])


def _paired(found: Mapping[str, Any]) -> None:
    """The table of the tests between runs on the same examples."""
    lines, corrected = found["paired"], found["correction"] is not None
    several = len(found["runs"]) > 2
    table = new_table(
        "same examples",
        *(("first", "second") if several else ()),
        "n",
        "only first",
        "only second",
        "first - second, points [95 %]",
        "p",
        *(("p (Holm)",) if corrected else ()),
        "",
        left=3 if several else 1,
    )
    for line in lines:
        by = line["difference"]
        points = f"{100 * by['value']:+.1f} [{100 * by['low']:+.1f}, {100 * by['high']:+.1f}]"
        table.add_row(
            escape(line["key"]),
            *((escape(line["a"]), escape(line["b"])) if several else ()),
            *[str(line[key]) for key in ("n", "only_a", "only_b")],
            escape(points),
            f"{line['p']:.2g}",
            *((f"{line['p_holm']:.2g}",) if corrected else ()),
            "significant" if line["significant"] else "not significant",
        )
    print_table(table)
    if not several:
        out.print(f"first: {escape(found['runs'][0])}, second: {escape(found['runs'][1])}", style="dim", soft_wrap=True)
    note = f"p: exact McNemar test; significant: {'p (Holm)' if corrected else 'p'} < {found['alpha']:g}"
    if corrected:
        note += f", Holm's correction for the {found['tests']} tests of this table"
    if found["tests"] < len(lines):
        note += f" ({len(lines)} lines: of the same weights under two names the test counts once)"
    out.print(
        f"{note}; [..]: Tango's score interval of each difference alone", style="dim", markup=False, soft_wrap=True
    )
