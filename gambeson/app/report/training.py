"""What was run, what it cost, and how the training went."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Any

from gambeson.app.report.blocks import Block, Command, Pairs, Section, Table, Words
from gambeson.app.report.charts import Line, Mark, line_chart
from gambeson.app.report.intervals import accuracy_ends, caption, images_of
from gambeson.app.report.records import Records
from gambeson.app.report.words import budget, duration, percent, stamp
from gambeson.core.errors import GambesonError, RunError
from gambeson.core.tables import flat
from gambeson.engine.history import epoch_means
from gambeson.engine.run import read_json
from gambeson.engine.sentinel import EVENT

WHILE_TRAINING = "Accuracy while training"
CURVES = (
    ("Accuracy on the validation images", {"val/clean_acc": "clean", "val/pgd10_acc": "PGD-10"}),
    ("Accuracy on the probe batch (training images)", {"probe/fgsm_acc": "FGSM", "probe/pgd10_acc": "PGD-10"}),
    (WHILE_TRAINING, {"train/adv_acc": "on adversarial images", "train/clean_acc": "on clean images"}),
    (
        "Signs of overfitting to one step",
        {"probe/aae": "abnormal examples", "probe/alignment": "gradient alignment, × 100"},
    ),
)
"""Titles and metrics; those in percent first."""


def what_was_run(records: Records) -> Section:
    """Command, method, data, settings, versions, hardware and cost."""
    call = records.call
    method, model = call["method"], call["model"]
    rows: list[tuple[str, str]] = [
        ("method", records.method),
        ("model", model["name"] + (f", width {model['width']}" if model.get("width") else "")),
        ("data", _data(call)),
        ("state", records.state),
        ("selected by", _selection(records)),
    ]
    if "finetune" in call:
        base = call["finetune"]["base"]
        rows.insert(1, ("fine-tuned from", f"{base['run']}, checkpoint {base['checkpoint']}"))
        rows[2:2] = _tuned(records)
    cost = cost_of(records)
    if cost:
        rows.append(("cost", cost["words"]))
    versions = call.get("versions", {})
    rows.append(("versions", ", ".join(f"{name} {value}" for name, value in versions.items() if name in PACKAGES)))
    rows.append(("hardware", _hardware(call)))
    rows.append(("begun", str(call.get("created", "unknown"))))
    blocks: list[Block] = []
    if call.get("command"):
        blocks.append(Command(shlex.join(map(str, call["command"]))))
    blocks.append(Pairs(rows))
    arguments = {key: value for key, value in flat({"method": method.get("args", {})}).items() if value is not None}
    chosen = {**arguments, **flat({"settings": call["settings"]})}
    cells = [(name.split(".", 1)[1], _value(value)) for name, value in chosen.items()]
    blocks.append(Table("All settings", ("setting", "value"), cells, left=2, folded=True))
    blocks += [Words(f"could not be read: {problem}", "warning") for problem in records.problems]
    keep = ("command", "method", "data", "model", "ema", "settings", "finetune", "selection", "device", "threads")
    data_of = {key: call[key] for key in (*keep, "versions", "created") if key in call}
    return Section(
        "run", "What was run", blocks, {**data_of, "state": records.state, "cost": cost, "problems": records.problems}
    )


PACKAGES = ("gambeson", "torch", "numpy", "python")


def curves(records: Records) -> Section | None:
    """The training, epoch by epoch."""
    blocks = overlaid([records], [""])
    if not blocks:
        return None
    events = [row for row in records.rows if "event" in row]
    if events:
        head = ("epoch", "step", "what", "FGSM", "PGD-10")
        rows = [
            (
                f"{row['epoch']:.2f}",
                f"{row['step']:,}",
                str(row["event"]),
                percent(row.get("probe/fgsm_acc")),
                percent(row.get("probe/pgd10_acc")),
            )
            for row in events
        ]
        blocks.append(Table("Events", head, rows, left=3, folded=len(rows) > 8))
    elif any("probe/gap" in row for row in records.rows):
        looks = sum("probe/gap" in row for row in records.rows)
        blocks.append(Words(f"The sentinel looked {looks} time{'s' * (looks != 1)} and saw no collapse.", "note"))
    keys = sorted({key for row in records.rows for key in row if "/" in key})
    series = {key: [[row["epoch"], row[key]] for row in records.rows if key in row] for key in keys}
    what = "of the fine-tuning" if "finetune" in records.call else "by epoch"
    lead = Words(f"The metrics {what}; validation images are held out from training, the test set is not looked at.")
    return Section(
        "training", "Training", [lead, *blocks], {"series": series, "events": events}, stamp(records.selection)
    )


def overfitting(records: Records) -> Section | None:
    """When the training collapsed, which signs say so, and what was lost since its best weights."""
    from gambeson.app.overfit import stored_reports
    from gambeson.diagnosis import diagnose_overfitting

    if not records.rows or "finetune" in records.call:
        return None
    try:
        reports, _ = stored_reports(records.run)
    except (GambesonError, KeyError, TypeError, AttributeError):
        reports = {}  # what cannot be read is named already
    try:
        found = diagnose_overfitting(records.rows, reports=reports, complete="final" in records.steps)
    except RunError:
        return None
    data = found.to_dict()
    blocks: list[Block] = [Words(data["sentence"])]
    if found.paired and found.paired.difference.high < 0:
        text = (
            "The final weights are better than the selected ones by more than chance: the selection did not help here."
        )
        blocks.append(Words(text, "warning"))
    if found.looks:
        head = ("sign", "fires at", "first seen", "source")
        rows = [
            (
                one["detector"],
                one["rule"],
                "never"
                if one["step"] is None and one["judged"]
                else "not measured"
                if one["step"] is None
                else f"step {one['step']:,}, epoch {one['epoch']:.3g}",
                one["source"],
            )
            for one in data["detections"]
        ]
        blocks.append(Table("Signs of a collapse", head, rows, left=4, folded=found.collapse is None))
    return Section("overfitting", "Did the training overfit?", blocks, data, stamp(records.selection))


def overlaid(runs: Sequence[Records], names: Sequence[str]) -> list[Block]:
    """The curves of runs with their names, one colour per run; of one run a colour per metric."""
    several = len(runs) > 1
    blocks: list[Block] = []
    for title, metrics in CURVES:
        lines, sizes = [], set()
        for number, records in enumerate(runs):
            rows = epoch_means(records.rows) if title == WHILE_TRAINING else records.rows
            for place, (key, label) in enumerate(metrics.items()):
                points = [(row["epoch"], row[key]) for row in rows if row.get(key) is not None]
                points = [point for point in points if point[1] == point[1]]
                if points:
                    name = f"{names[number]}, {label}" if several else label
                    x, shares = zip(*points, strict=True)
                    n = images_of(records, key)
                    low, high = accuracy_ends(shares, n)
                    heights = [100 * share for share in shares]
                    lines.append(Line(name, x, heights, low, high, colour=number if several else place, style=place))
                    sizes |= {n} if low is not None and n else set()
        if lines:
            marks = _collapses(runs[0]) if not several and "probe/gap" in {k for r in runs[0].rows for k in r} else ()
            limits = (min(-2.0, *(min(line.y) for line in lines)), 102.0)
            said = caption(lines, sizes)
            blocks.append(line_chart(lines, title, x="epoch", y="%", limits=limits, marks=marks, note=said))
    losses = []
    for number, records in enumerate(runs):
        points = [(row["epoch"], row["train/loss"]) for row in epoch_means(records.rows)]
        if points:
            x, y = zip(*points, strict=True)
            losses.append(Line(names[number] if several else "", x, y, colour=number, style=number if several else 0))
    if losses:
        blocks.append(line_chart(losses, "Training loss", x="epoch", y="loss"))
    return blocks


def cost_of(records: Records) -> dict[str, Any] | None:
    """Time and steps of the training; None where nothing was measured."""
    if not records.rows:
        return None
    last = records.rows[-1]
    seconds, steps = float(last.get("seconds", 0.0)), int(last["step"])
    if not seconds or not steps:
        return None
    images = steps * int(records.call["settings"]["batch_size"])
    words = f"{duration(seconds)} for {steps:,} steps, {images / seconds:,.0f} images/s, validation and looks included"
    return {"seconds": seconds, "steps": steps, "images_per_second": images / seconds, "words": words}


def collapse_of(records: Records) -> dict[str, Any] | None:
    """The first look of the sentinel that saw a collapse."""
    return next((row for row in records.rows if row.get("event") == EVENT), None)


def _collapses(records: Records) -> tuple[Mark, ...]:
    found = collapse_of(records)
    return (Mark(found["epoch"], "collapse"),) if found else ()


def _data(call: dict[str, Any]) -> str:
    data = call["data"]
    some = f", {data['train_size']:,} training images" if data.get("train_size") else ""
    if data.get("sizes"):
        some = ", " + ", ".join(f"{size:,} {split}" for split, size in data["sizes"].items()) + " images"
    if data.get("measured_on"):
        some += f", normalised by {data['measured_on']:,} of the training images"
    args = call["method"].get("args", {})
    eps = args.get("eps")
    return f"{data['name']}{some}, {budget(args.get('norm', 'Linf'), eps)}"


def _selection(records: Records) -> str:
    selection = records.call.get("selection") or {}
    if not selection:
        return "nothing: no validation images"
    by = str(selection.get("by", "unknown"))
    by = {"val/pgd10_acc": "PGD-10 accuracy", "val/clean_acc": "clean accuracy"}.get(by, by)
    text = f"{by} on the {selection['split']} split"
    if records.best and "step" in records.best:
        text += f": step {records.best['step']:,}"
    return text


def _tuned(records: Records) -> list[tuple[str, str]]:
    """Which layers a fine-tuning changed, and how far from the base on the line to them it ends."""
    found = []
    for name, key, label in (("layers", "layers", "fine-tuned layers"), ("line", "chosen", "alpha")):
        file = records.run.path / f"{name}.json"
        if file.is_file():
            try:
                value = read_json(file)[key]
            except (GambesonError, KeyError, TypeError) as error:
                records.problems.append(f"{file}: {error}")
                continue
            found.append((label, ", ".join(map(str, value)) if isinstance(value, list) else f"{value:g}"))
    return found


def _hardware(call: dict[str, Any]) -> str:
    found = call.get("versions", {})
    name = found.get("gpu") if str(call.get("device", "")).startswith("cuda") else found.get("processor")
    threads = f", {call['threads']} thread{'s' * (call['threads'] > 1)}" if call.get("threads") else ""
    return f"{name or 'unknown'} ({call.get('device', 'unknown device')}, {found.get('platform', 'unknown')}){threads}"


def _value(value: Any) -> str:
    return "–" if value is None else str(value)
