"""What diagnoses found: masking, criticality, the line of an interpolation, landscapes, shortcuts, spectra, maps."""

from __future__ import annotations

from gambeson.app.report.blocks import Block, Picture, Section, Table, Words, png_uri
from gambeson.app.report.charts import Bar, Line, Mark, bar_chart, line_chart, map_chart
from gambeson.app.report.intervals import caption, rises
from gambeson.app.report.records import Record, Records
from gambeson.app.report.topic import section
from gambeson.app.report.words import budget, courses, ends, number, percent, where

LARGEST_MAP = 6
"""Landscapes of one record that are drawn; the table has all."""


def masking(records: Records) -> Section | None:
    """The verdict on gradient masking, with its evidence."""

    def blocks(record: Record) -> list[Block]:
        transfer = f", transfer from {record['transfer_from']}" if record.get("transfer_from") else ""
        lead = f"{record['verdict']}: {MEANING[record['verdict']]} {where(record)}, {_budget(record)}{transfer}."
        cells = [(row["verdict"], row["check"], row["message"]) for row in record["evidence"]]
        order = {"FAIL": 0, "WARN": 1, "PASS": 2}
        table = Table(
            "Evidence", ("verdict", "check", "what was seen"), sorted(cells, key=lambda row: order[row[0]]), left=3
        )
        tone = "plain" if record["verdict"] == "PASS" else "warning"
        bars = [
            Bar(name, *ends(found))
            for name, found in sorted(record["accuracy"].items(), key=lambda item: -item[1]["value"])
        ]
        title = "Accuracy under the verdict's attacks"
        said = caption(bars, [found["n"] for found in record["accuracy"].values()])
        chart = bar_chart(bars, title, x="accuracy, %", limits=(0, 100), dots=True, note=said)
        return [Words(lead, tone), table, chart]  # type: ignore[arg-type]

    return section(records, "masking", "Can the gradient be trusted?", blocks)


MEANING = {
    "PASS": "no sign that gradient attacks miss what is there.",
    "WARN": "some signs that gradient attacks may overstate robustness.",
    "FAIL": "gradient attacks overstate the robustness of this model.",
}


def criticality(records: Records) -> Section | None:
    """Module robust criticality, layer by layer."""

    def blocks(record: Record) -> list[Block]:
        rows = record["layers"]
        bars = [Bar(row["layer"], row["mrc"]) for row in rows]
        drops = [Bar(row["layer"], 100 * row["drop"], colour=1) for row in rows]
        least, most = record["ranking"][0], record["ranking"][-1]
        lead = f"Robustness depends least on {least} and most on {most}; {where(record)}."
        pruned = " Layers that cannot be the least critical were stopped early: theirs are lower bounds." * any(
            row.get("pruned") for row in rows
        )
        return [
            Words(lead + pruned),
            bar_chart(bars, "Module robust criticality, front to back", x="increase of the cross-entropy"),
            bar_chart(drops, "Drop of robust accuracy, front to back", x="points"),
        ]

    return section(records, "criticality", "Which layers does robustness need?", blocks)


def line(records: Records) -> Section | None:
    """Accuracy on the line between two checkpoints."""

    def blocks(record: Record) -> list[Block]:
        points = record["points"]
        alphas = [point["alpha"] for point in points]
        lines = [
            Line(label, alphas, *courses([point[key] for point in points]))
            for label, key in (("clean", "clean"), ("PGD-10", "robust"))
        ]
        chosen = record.get("chosen")
        marks = [] if chosen is None else [Mark(chosen, f"chosen: {chosen:g}")]
        two = record.get("runs")
        words = f"From {two[0]} (0) to {two[1]} (1), " if two else "From the base (0) to the fine-tuned one (1), "
        chart = line_chart(
            lines,
            "Accuracy along the line",
            x="alpha",
            y="accuracy, %",
            marks=marks,
            note=f"{words}{record['split']} split, n = {points[0]['clean']['n']:,}. Shaded: Wilson 95 % intervals.",
        )
        return [chart]

    return section(records, "line", "Between two checkpoints", blocks)


def landscape(records: Records) -> Section | None:
    """The loss around weights or images."""

    def blocks(record: Record) -> list[Block]:
        made: list[Block] = []
        cells = []
        drawn = 0
        for checkpoint, rows in record["landscapes"].items():
            flat = [row for row in rows if row["dims"] == 1]
            if flat:
                lines = [Line(row["title"], row["axis"], row["loss"]) for row in flat]
                title = f"Loss along a random direction, {checkpoint}"
                made.append(line_chart(lines, title, x="distance, in norms of the filters", y="loss", points=False))
            for row in rows:
                if row["dims"] == 2 and drawn < LARGEST_MAP:
                    drawn += 1
                    made.append(_map(row, checkpoint))
                cells.append((checkpoint, row["title"], *[number(row[key]) for key in ("centre", "rise", "roughness")]))
        head = ("checkpoint", "moved", "loss at the centre", "rise to the maximum", "roughness")
        lead = f"{record['inputs'].capitalize()} images, {where(record)}. Rise: largest loss less that at the centre;"
        made.insert(0, Words(f"{lead} roughness: mean absolute Laplacian."))
        return [*made, Table("Landscapes", head, cells, left=2)]

    return section(records, "landscape", "The loss landscape", blocks)


def response(records: Records) -> Section | None:
    """What loss does when single layers move."""

    def blocks(record: Record) -> list[Block]:
        made: list[Block] = []
        for checkpoint, found in record["responses"].items():
            made.append(Words(f"{checkpoint}, {where(record)}: {found['sentence']}."))
            moves = found["moves"]
            single = [name for name, weights in found["groups"].items() if weights == [f"{name}.weight"]]
            layers = single or list(found["groups"])
            largest = max(row["rho"] for row in moves)
            for images in dict.fromkeys(row["inputs"] for row in moves):
                lines = []
                for kind, rho in dict.fromkeys((row["kind"], row["rho"]) for row in moves):
                    if kind == "random" and rho != largest:
                        continue  # a control: the largest says enough
                    rows = {
                        row["group"]: row["rise"]
                        for row in moves
                        if (row["kind"], row["rho"], row["inputs"]) == (kind, rho, images)
                    }
                    places = list(map(float, range(len(layers))))
                    lines.append(Line(f"{kind}, {100 * rho:g} %", places, *rises([rows.get(name) for name in layers])))
                made.append(
                    line_chart(
                        lines,
                        f"Rise of the loss on {images} images, {checkpoint}",
                        x="what moves, front to back",
                        y="rise of the cross-entropy",
                        ticks=layers,
                        note=caption(lines, [record["n"]], "Student's"),
                    )
                )
        return made

    return section(records, "response", "What single layers do to the loss", blocks)


def shortcuts(records: Records) -> Section | None:
    """What removing weights does."""

    def blocks(record: Record) -> list[Block]:
        made: list[Block] = [Words(f"{record['sentence'][0].upper()}{record['sentence'][1:]}; {where(record)}.")]
        attacks = list(record["whole"])
        groups = list(dict.fromkeys(row["group"] for row in record["removals"]))
        for mode in dict.fromkeys(row["mode"] for row in record["removals"]):
            for attack in attacks[1:] or attacks:
                lines = []
                for name in groups:
                    rows = [row for row in record["removals"] if (row["group"], row["mode"]) == (name, mode)]
                    found = [record["whole"][attack], *[row["accuracy"][attack] for row in rows]]
                    x = [0.0, *[100 * row["share"] for row in rows]]
                    lines.append(Line(name, x, *courses(found)))
                title = f"{attack} accuracy, {mode} weights removed"
                said = caption(lines, [record["whole"][attack]["n"]])
                removed, limits = "weights removed, %", (-2, 102)
                made.append(line_chart(lines, title, x=removed, y="accuracy, %", limits=limits, points=True, note=said))
        return made

    return section(records, "shortcuts", "Does robustness rest on a few weights?", blocks)


def spectra(records: Records) -> Section | None:
    """Singular values and drift of the layers."""

    def blocks(record: Record) -> list[Block]:
        names = [row["layer"] for row in next(iter(record["layers"].values()))]
        places = [float(place) for place in range(len(names))]
        lead = "Weights as matrices of their filters. Stable rank: squared norm over squared largest singular value."
        made: list[Block] = [Words(lead, "note")]
        order = list(record["layers"])
        for key, title in (("largest", "Largest singular value"), ("stable_rank", "Stable rank")):
            lines = [Line(name, places, [row[key] for row in rows]) for name, rows in record["layers"].items()]
            made.append(line_chart(lines, f"{title} by layer", x="layer, front to back", y=title.lower(), ticks=names))
        moved = {name: rows for name, rows in record["layers"].items() if any(row["drift"] is not None for row in rows)}
        if moved:
            lines = [
                Line(
                    name,
                    places,
                    [_known(row["drift"]) for row in rows],
                    colour=order.index(name),
                    style=order.index(name),
                )
                for name, rows in moved.items()
            ]
            title = "Drift since the checkpoint before, relative to the norm"
            made.append(line_chart(lines, title, x="layer, front to back", y="drift", ticks=names))
        return made

    return section(records, "spectra", "Singular values of the layers", blocks)


def cam(records: Records) -> Section | None:
    """Which pixels class-activation maps point at."""

    def blocks(record: Record) -> list[Block]:
        share = record["groups"]["all"]["full"]["mean"]
        lead = (
            f"The maps ({record['cam']} of {record['layer']}) give {percent(share)} of the pixels the full budget"
            f" (mask {record['mask']}); {where(record)}."
        )
        return [Words(lead), *_drawn(records, "cam", record, "Class-activation maps over test images")]

    return section(records, "cam", "Where does the model look?", blocks)


def _drawn(records: Records, topic: str, record: Record, title: str) -> list[Block]:
    """The picture beside a record, where there is one."""
    name = next(name for name, one in records.found[topic] if one is record)
    file = (records.run.path / "diagnosis" / name).with_suffix(".png")
    if not file.is_file():
        return []
    return [
        Picture(title, f"{title}: a grid of images with their maps, as the table says.", png_uri(file.read_bytes()))
    ]


def _known(value: float | None) -> float:
    return float("nan") if value is None else value


def _map(row: Record, checkpoint: str) -> Block:
    moved = {"whole": "the whole model", "input": "the images"}.get(row["title"], row["title"])
    title = f"Loss around {moved}, {checkpoint}"
    if row["kind"] == "weights":
        return map_chart(row["loss"], row["axis"], title, x="first direction", y="second direction", unit="loss")
    return map_chart(row["loss"], row["axis"], title, x="gradient's sign", y="random sign", unit="loss", note="in eps")


def _budget(record: Record) -> str:
    return budget(record["norm"], record["eps"])
