"""What the terminal shows of the history of a training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.markup import escape

from gambeson.app.show import interval, new_table, out, print_table, short, stamp


def overfitting(record: Mapping[str, Any]) -> None:
    """The tables of `diagnose overfitting`, from its record."""
    out.print(escape(f"{record['run']}: {record['method']} on {record['data']}"), soft_wrap=True)
    if record["looks"]["step"]:
        _looks(record)
        _detections(record)
    if record["classes"]:
        _classes(record)
    out.print(escape(record["sentence"]), soft_wrap=True)
    snapshots = [one["name"] + (f" ({one['look']})" if one["look"] else "") for one in record["snapshots"]]
    if snapshots:
        out.print(f"snapshots: {', '.join(snapshots)}", soft_wrap=True)
    if record["damaged_rows"]:
        out.print(f"[bold]{record['damaged_rows']} damaged rows of metrics were left out[/bold]", soft_wrap=True)
    stamp(record["selection"])


def _looks(record: Mapping[str, Any]) -> None:
    """The looks that matter: the first, those around the collapse and the recovery, the widest gap, the last."""
    looks = record["looks"]
    rows = [dict(zip(looks, values, strict=True)) for values in zip(*looks.values(), strict=True)]
    names = {max(rows, key=lambda row: row["gap"])["step"]: "widest gap"}
    names |= {rows[-1]["step"]: "last look"} | {rows[0]["step"]: "first look"}  # of two names the later one holds
    if record["collapse"]:
        sides = (("healthy", "last healthy"), ("look", "collapsed"), ("recovered", "healthy again"))
        names |= {at["step"]: said for key, said in sides if (at := record["collapse"][key])}
    heads = ("FGSM, %", "PGD-10, %", "gap, points", "abnormal, %", "alignment")
    table = new_table("probe batch", "step", "epoch", *heads)
    for row in rows:
        if row["step"] in names:
            percents = [100 * row[key] for key in ("fgsm", "pgd", "gap")]
            cells = [f"{value:.1f}" for value in percents]
            cells.append("-" if row["aae"] is None else f"{100 * row['aae']:.1f}")
            cells.append("-" if row["alignment"] is None else f"{row['alignment']:.2f}")
            table.add_row(names[row["step"]], str(row["step"]), f"{row['epoch']:.3g}", *cells)
    print_table(table)


def _detections(record: Mapping[str, Any]) -> None:
    """The detectors, each with its first step."""
    table = new_table("detector", "fires at", "first step", "epoch", left=2)
    for row in record["detections"]:
        place = ("-", "-") if row["step"] is None else (str(row["step"]), f"{row['epoch']:.3g}")
        place = place if row["judged"] else ("not measured", "-")
        table.add_row(row["detector"], escape(row["rule"]), *place)
    print_table(table)


def _classes(record: Mapping[str, Any]) -> None:
    """Clean and robust accuracy by class."""
    from gambeson.evaluation import Interval

    name, found = list(record["classes"].items())[-1]
    test = record["test"]
    out.print(f"{name} weights on the test images, {test['norm']} eps {short(test['eps'])}, n = {test['n']}")
    table = new_table("class", "clean, % [95 %]", f"{found['attack']}, % [95 %]", "gap, points [95 %]")
    for label, row in found["classes"].items():
        marks = [word for key, word in (("worst", "lowest"), ("widest", "largest gap")) if found[key] == label]
        said = f"{label} ({', '.join(marks)})" if marks else label
        table.add_row(escape(said), *[interval(Interval(**row[key])) for key in ("clean", "robust", "gap")])
    print_table(table)
