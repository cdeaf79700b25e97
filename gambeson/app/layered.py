"""What the terminal shows of a diagnosis of layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.markup import escape

from gambeson.app.show import interval, new_table, out, print_table, short, stamp


def criticality(record: Mapping[str, Any]) -> None:
    """The table of `diagnose criticality`, from its record: the least critical layer first."""
    where = f"checkpoint {record['checkpoint']} (step {record['step']}), {record['data']} {record['split']}"
    out.print(
        f"{escape(record['run'])}, {where}, n = {record['n']} adversarial images: robust accuracy"
        f" {100 * record['accuracy']:.1f} %, cross-entropy {record['loss']:.3f}",
        soft_wrap=True,
    )
    rows = {row["layer"]: row for row in record["layers"]}
    table = new_table("layer", "MRC", "drop, points", "|V| / |W|", "epochs", "weights")
    for name in record["ranking"]:
        row = rows[name]
        at_least = ">= " if row["pruned"] else ""
        weights = 1
        for size in row["shape"]:
            weights *= size
        table.add_row(
            escape(name),
            f"{at_least}{row['mrc']:.4f}",
            f"{at_least}{100 * row['drop']:.2f}",
            f"{row['distance']:.3f}",
            str(row["epochs"]),
            f"{weights:,}",
        )
    print_table(table)
    out.print(
        "MRC: increase of the mean cross-entropy that this layer's weight alone can cause, at most a tenth of its norm"
        " away; drop: of the accuracy on the same images",
        style="dim",
        soft_wrap=True,
    )
    stamp(record.get("selection"))
    if any(row["mrc"] < 0 for row in rows.values()):
        why = " (this protocol keeps the last weights)" if record["protocol"]["reduce"] == "last" else ""
        out.print(
            "[bold]note[/bold]: a negative MRC is one whose search ended below the loss that it began with"
            f"{why}; the maximum over the ball, to which no change at all belongs, is never"
            " negative",
            soft_wrap=True,
        )
    if record["split"] == "test":
        out.print("[bold]measured on test[/bold]: what is chosen by it is selected on test", soft_wrap=True)
    if record["untraced"]:
        out.print(f"the model could not be traced, every pass was a whole one: {escape(record['untraced'])}")


def landscapes(record: Mapping[str, Any]) -> None:
    """The table of `diagnose landscape`, from its record."""
    out.print(
        escape(f"{record['run']}, {record['data']} {record['split']}, {record['inputs']} images, n = {record['n']}"),
        soft_wrap=True,
    )
    table = new_table("checkpoint", "moved", "loss at the centre", "rise to the maximum", "roughness", left=2)
    for name, rows in record["landscapes"].items():
        for row in rows:
            cells = ["infinite" if row[key] is None else f"{row[key]:.3g}" for key in ("centre", "rise", "roughness")]
            table.add_row(escape(name), escape(row["title"]), *cells)
    print_table(table)
    out.print("roughness: mean absolute Laplacian over the inner points of the grid", style="dim", soft_wrap=True)
    stamp(record["selection"])


def responses(record: Mapping[str, Any]) -> None:
    """The tables of `diagnose response`, from its record: what the largest perturbation does, by checkpoint."""
    budget = f"{record['norm']} eps {short(record['eps'])}, n = {record['n']}"
    first = next(iter(record["responses"].values()))
    for name, found in record["responses"].items():
        rho = max(found["rhos"])
        where = f"{record['run']}, checkpoint {name}, {record['data']} {record['split']}, {budget}"
        out.print(escape(f"{where}; weights moved by {100 * rho:g} % of their norm"), soft_wrap=True)
        way, *others = found["kinds"]
        table = new_table(
            "moved", *[f"{inputs}\n{head}" for inputs in found["inputs"] for head in ("loss", "points", *others)]
        )
        table.add_row(
            "-",
            *[
                cell
                for one in found["whole"].values()
                for cell in (f"{one['loss']:.3f}", f"{100 * one['accuracy']['value']:.1f} %", *["-"] * len(others))
            ],
        )
        rows = {(row["group"], row["inputs"], row["kind"]): row for row in found["moves"] if row["rho"] == rho}
        for group in found["groups"]:
            cells = []
            for inputs in found["inputs"]:
                row = rows[group, inputs, way]
                cells += [_rise(row["rise"]), f"{100 * row['change']['value']:+.1f}"]
                cells += [_rise(rows[group, inputs, other]["rise"]) for other in others]
            table.add_row(escape(group), *cells)
        print_table(table)
        for sentence in found["sentences"].values():
            out.print(escape(sentence), soft_wrap=True)
        if found["untraced"]:
            reason = escape(found["untraced"])
            out.print(f"the model could not be traced, every pass was a whole one: {reason}", soft_wrap=True)
    ways = {"adversarial": "up the gradient of the loss on the same images", "random": "at random, filter-normalised"}
    others = "".join(f"; {kind}: the loss, moved {ways[kind]}" for kind in first["kinds"][1:])
    out.print(
        "first row: the model as it is, below it differences to that, ±: half the 95 % interval; loss, points of"
        f" accuracy: moved {ways[first['kinds'][0]]}{others}; attacked images were made"
        f" {'again for every move' if first['remake'] else 'once, of the model as it is'}",
        style="dim",
        soft_wrap=True,
    )
    stamp(record["selection"])


def _rise(found: Mapping[str, Any]) -> str:
    """A difference of losses with its interval, from a record."""
    if found["value"] is None:
        return "infinite"
    half = "" if found["low"] is None else f" ± {(found['high'] - found['low']) / 2:.3f}"
    return f"{found['value']:+.3f}{half}"


def shortcuts(record: Mapping[str, Any]) -> None:
    """The table of `diagnose shortcuts`, from its record."""
    from gambeson.evaluation import Interval

    out.print(
        escape(
            f"{record['run']}, checkpoint {record['checkpoint']} (step {record['step']}), {record['data']}"
            f" {record['split']}, {record['norm']} eps {short(record['eps'])}, n = {record['n']}"
        ),
        soft_wrap=True,
    )
    attacks = list(record["whole"])
    table = new_table("layers", "weights", "removed, %", *[f"{name}, % [95 %]" for name in attacks], "", left=2)
    table.add_row("-", "-", "0", *[interval(Interval(**record["whole"][name])) for name in attacks], "")
    for row in record["removals"]:
        cells = [interval(Interval(**row["accuracy"][name])) for name in attacks]
        mark = "shortcut" if row["signature"] else ""
        table.add_row(escape(row["group"]), row["mode"], f"{100 * row['share']:g}", *cells, mark)
    print_table(table)
    out.print(escape(record["sentence"]), soft_wrap=True)
    stamp(record["selection"])


def spectra(record: Mapping[str, Any]) -> None:
    """The table of `diagnose spectra`, from its record."""
    out.print(escape(record["run"]), soft_wrap=True)
    table = new_table("checkpoint", "layer", "shape", "norm", "largest", "stable rank", "drift", left=3)
    for name, rows in record["layers"].items():
        for row in rows:
            drift = "-" if row["drift"] is None else f"{row['drift']:.3g}"
            cells = [f"{row[key]:.3g}" for key in ("norm", "largest", "stable_rank")]
            table.add_row(escape(name), escape(row["layer"]), "x".join(map(str, row["shape"])), *cells, drift)
    print_table(table)
    out.print(
        "largest: singular value of the weight as a matrix of its filters; stable rank: norm²/largest²; drift: distance"
        " to the checkpoint before, relative to its norm",
        style="dim",
        soft_wrap=True,
    )
