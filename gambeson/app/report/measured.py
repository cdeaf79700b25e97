"""What was measured on the test set: accuracies, AutoAttack by stage, classes, budgets, corruptions."""

from __future__ import annotations

import shlex
from typing import Any

from gambeson.app.report.blocks import Block, Command, Section, Table, Words
from gambeson.app.report.charts import Bar, Line, Mark, bar_chart, line_chart
from gambeson.app.report.intervals import caption
from gambeson.app.report.records import Record, Records
from gambeson.app.report.topic import section
from gambeson.app.report.words import budget, courses, duration, ends, interval, said, sentence, stamp, where
from gambeson.app.states import sentence as sentence_of
from gambeson.app.states import unfinished
from gambeson.evaluation import wilson

MANY = 20
"""Classes that a chart shows; of more the weakest."""


def accuracy_rows(records: Records) -> list[Record]:
    """One row per checkpoint, attack, budget and data set: of the most images, then the newest. Main weights first."""
    found: dict[tuple[Any, ...], Record] = {}
    for name, record in records.evaluations.items():
        for attack, accuracy in record["accuracy"].items():
            eps = None if attack == "clean" else record["eps"]
            norm = None if attack == "clean" else record["norm"]
            key = (record["checkpoint"], attack, norm, eps, record["data"])
            if key not in found or record["n"] >= found[key]["n"]:
                of = dict(zip(("checkpoint", "attack", "norm", "eps", "data"), key, strict=True))
                found[key] = {**of, "step": record["step"], **accuracy, "evaluation": name}
    order = [records.checkpoint, "final", "finetuned", "base", "last"]
    return sorted(found.values(), key=lambda row: (_place(order, row["checkpoint"]), row["attack"] != "clean"))


def accuracy(records: Records) -> Section | None:
    """Accuracy under every attack."""
    rows = accuracy_rows(records)
    if not rows:
        return None
    cells = [(row["checkpoint"], _attack(row, records), f"{row['n']:,}", interval(row)) for row in rows]
    head = ("weights", "attack", "n", "accuracy, % [95 %]")
    shown = [row for row in rows if row["checkpoint"] == records.checkpoint] or rows
    bars = [Bar(_attack(row, records), *ends(row), int(row["attack"] != "clean")) for row in shown]
    said = caption(bars, [row["n"] for row in shown])
    title = f"Test accuracy of {shown[0]['checkpoint']}"
    chart = bar_chart(bars, title, x="accuracy, %", limits=(0, 100), dots=True, note=said)
    lead = Words("Accuracy on test images, Wilson 95 % intervals. An attack gives an upper bound of robust accuracy.")
    table = Table("Accuracy under every attack", head, cells, left=2)
    blocks: list[Block] = [lead, table, chart]
    failed = {
        attack: count for record in records.evaluations.values() for attack, count in record.get("failed", {}).items()
    }
    blocks += [
        Words(f"{name} returned NaN or infinite pixels for {count} images: the gradient is broken.", "warning")
        for name, count in failed.items()
    ]
    return Section("accuracy", "Accuracy", blocks, rows, stamp(records.selection))


def autoattack(records: Records) -> Section | None:
    """What every attack of AutoAttack took."""
    blocks: list[Block] = []
    data: list[Record] = []
    for name, record in reversed(records.evaluations.items()):
        for ensemble, found in record.get("ensembles", {}).items():
            if any((one["checkpoint"], one["ensemble"], one["eps"]) == _key(record, ensemble) for one in data):
                continue  # a newer one of the same weights stands above
            n = found["n"]
            bars = [Bar("clean", *ends(found["clean"]))]
            bars += [Bar(stage["attack"], *ends(vars(wilson(stage["left"], n)))) for stage in found["stages"]]
            title = f"{ensemble}: standing after every attack, {record['checkpoint']}"
            blocks.append(bar_chart(bars, title, x="accuracy, %", limits=(0, 100), note=caption(bars, [n])))
            head = ("attack", "attacked", "fell", "accuracy after, %", "forwards", "backwards", "time")
            rows = [
                (
                    stage["attack"],
                    f"{stage['standing']:,}",
                    f"{stage['fell']:,}",
                    f"{100 * stage['left'] / n:.1f}",
                    f"{stage['forwards']:,}",
                    f"{stage['backwards']:,}",
                    duration(stage["seconds"]),
                )
                for stage in found["stages"]
            ]
            blocks.append(Table(f"{ensemble}, {budget(found['norm'], found['eps'])}, n = {n:,}", head, rows))
            blocks.append(Words(_ensemble(found), "note"))
            of = dict(zip(("checkpoint", "ensemble", "eps"), _key(record, ensemble), strict=True))
            data.append({**found, **of, "evaluation": name})
    return (
        Section("autoattack", "AutoAttack, attack by attack", blocks, data, stamp(records.selection)) if data else None
    )


def classes(records: Records) -> Section | None:
    """Accuracies by class, the weakest first."""
    tests = [
        record
        for record in records.evaluations.values()
        if record["checkpoint"] == records.checkpoint and len(record.get("per_class", {})) > 1
    ]
    if not tests:
        return None
    record = max(tests, key=lambda one: (one["n"], -one["worst"]["value"]))
    attacks = [name for name in record["accuracy"] if name != "clean"]
    attack = min(reversed(attacks), key=lambda name: float(record["accuracy"][name]["value"]))
    table = record["per_class"]
    rows = [(name, table["clean"][name], table[attack][name]) for name in table["clean"]]
    rows = sorted((row for row in rows if row[1] and row[2]), key=lambda row: row[2]["value"])
    if not rows:
        return None
    bars = [
        Bar(name if place == 0 else "", *ends(one), place)
        for name, clean, attacked in rows[:MANY]
        for place, one in enumerate((clean, attacked))
    ]
    some = f", the weakest {MANY} of {len(rows)}" if len(rows) > MANY else ""
    chart = bar_chart(
        bars,
        f"Accuracy by class{some}",
        x="accuracy, %",
        limits=(0, 100),
        dots=True,
        note=caption(bars, [clean["n"] for _, clean, _ in rows[:MANY]]),
        labels=("clean", attack),
    )
    worst, best = rows[0], rows[-1]
    lead = Words(
        f"Under {attack} ({budget(record['norm'], record['eps'])}) the weakest class is {worst[0]} with"
        f" {said(worst[2])}, the strongest {best[0]} with {said(best[2])}; {where(record)}."
    )
    head = ("class", "n", "clean, % [95 %]", f"{attack}, % [95 %]")
    cells = [(name, f"{clean['n']:,}", interval(clean), interval(attacked)) for name, clean, attacked in rows]
    data = [{"class": name, "clean": clean, attack: attacked} for name, clean, attacked in rows]
    blocks: list[Block] = [lead, chart, Table("Accuracy by class, the weakest first", head, cells, folded=True)]
    return Section("classes", "By class", blocks, {"attack": attack, "classes": data}, stamp(records.selection))


def budgets(records: Records) -> Section | None:
    """Accuracy against the budget."""

    def blocks(record: Record) -> list[Block]:
        lines = [_points(record["attack"], record["points"])]
        minimal = record.get("minimal")
        if minimal:
            known = [point for point in minimal["points"] if point["value"] is not None]
            lines.append(_points(minimal["method"], known))
        own = record.get("budget")
        marks = [Mark(own["eps"], "budget")] if own and own["norm"] == record["norm"] and own["eps"] else []
        chart = line_chart(
            lines,
            "Accuracy against the budget",
            x=f"eps, {record['norm']}",
            y="accuracy, %",
            limits=(0, 102),
            marks=marks,
            note=f"{sentence(where(record))}. Shaded: Wilson 95 % intervals.",
        )
        return [chart, *([Words(str(record["warning"]), "warning")] if record.get("warning") else [])]

    return section(records, "eps", "Accuracy against the budget", blocks)


def corruptions(records: Records) -> Section | None:
    """Accuracy under common corruptions."""

    def blocks(record: Record) -> list[Block]:
        rows = sorted(record["corruptions"].items(), key=lambda item: item[1]["mean"]["value"])
        bars = [Bar("none (clean)", *ends(record["clean"]), 1)]
        bars += [Bar(name.replace("_", " "), *ends(row["mean"])) for name, row in rows]
        severities = [str(one) for one in record["severities"]]
        cells = [
            (name.replace("_", " "), *[f"{100 * row['severities'][key]['value']:.1f}" for key in severities])
            for name, row in rows
        ]
        head = ("corruption", *[f"severity {key}, %" for key in severities])
        note = f"{sentence(where(record))}; mean over severities {', '.join(severities)}. Lines: 95 % intervals,"
        note += " bootstrap over the images; Wilson's for the clean ones."
        return [
            Words(f"Mean accuracy over the corruptions of {record['set']}: {said(record['ood'])}."),
            bar_chart(bars, "Accuracy under corruptions", x="accuracy, %", limits=(0, 100), note=note),
            Table("By severity", head, cells, folded=True),
            *[Words(sentence(text), "note") for text in record.get("notes", [])],
        ]

    return section(records, "corruptions", "Corruptions", blocks)


def advice(records: Records) -> list[Block]:
    """What to run where nothing was measured."""
    path = shlex.quote(str(records.run.path))
    open_end = unfinished(records.run)
    if open_end and not open_end["running"]:
        return [Words(f"The {sentence_of(open_end, {})}.", "warning"), Command(f"gambeson resume {path}")]
    if open_end:
        return [Words(f"The {sentence_of(open_end, {})}.", "warning")]
    command = Command(f"gambeson evaluate {path} --attack autoattack")
    whole = [one["n"] for one in records.evaluations.values() if "autoattack" in one.get("ensembles", {})]
    most = max((one["n"] for one in records.evaluations.values()), default=0)
    if not records.evaluations:
        return [Words("Nothing has been measured on the test set yet.", "warning"), command]
    if not whole:
        text = "AutoAttack has not been run: the robust accuracies here are upper bounds by weaker attacks."
        return [Words(text, "warning"), command]
    if max(whole) < most:
        return [Words(f"AutoAttack was run on {max(whole):,} of {most:,} test images only.", "warning"), command]
    return []


def _key(record: Record, ensemble: str) -> tuple[Any, ...]:
    return record["checkpoint"], ensemble, record["eps"]


def _ensemble(found: Record) -> str:
    text = f"Searches: {'; '.join(found['searches'])}."
    if found.get("search_dtype"):
        text += f" Searched in {found['search_dtype']}, every fall confirmed in float32."
    if found.get("version") == "preview":
        text += " A preview is an upper bound and not AutoAttack."
    return text


def _attack(row: Record, records: Records) -> str:
    """An attack's name, with the budget or the data set where they are not the run's own."""
    name = str(row["attack"])
    args = records.call["method"].get("args", {})
    if row["eps"] is not None and (records.eps != row["eps"] or args.get("norm", "Linf") != row["norm"]):
        name += f", {budget(row['norm'], row['eps'])}"
    return name if row["data"] == records.call["data"]["name"] else f"{name}, {row['data']}"


def _place(order: list[str], name: str) -> int:
    return order.index(name) if name in order else len(order)


def _points(label: str, points: list[Record]) -> Line:
    x = [point["eps"] for point in points]
    return Line(label, x, *courses(points))
