"""What is printed and what is written: a record in JSON, tables in Markdown from it, and the machine they belong to."""

from __future__ import annotations

import os
from typing import Any

import torch

from benchmarks.case import Result
from benchmarks.pairs import Clock, Spread, spread
from benchmarks.roofline import best, described, read_rates
from gambeson.engine.run import processor, versions

CLOCKS: dict[Clock, str] = {"cpu": "process CPU time", "wall": "wall clock"}


def text(result: Result, clock: Clock, rate: float | None = None) -> str:
    """The guard's findings and, if they allow it, the tables, with shares of a rate (GFLOP/s) if there is one."""
    found = record("", result)
    lines = [f"## {found['title']}", ""]
    for check in found["checks"]:
        note = f"; {check['note']}" if check["note"] else ""
        verdict = "passed" if check["passed"] else "FAILED"
        lines.append(f"- guard, {check['label']}: {check['value']:.6g} (needed: {check['bound']}) {verdict}{note}")
    if not result.valid:
        return "\n".join([*lines, "", "No times and no ratios: the variants do not compute the same."])
    return "\n\n".join(["\n".join(lines), *tables(found, clock, rate)])


def tables(found: dict[str, Any], clock: Clock, rate: float | None = None) -> list[str]:
    """The tables of a case whose guard passed, from its record: times and costs, then growth or ratios."""
    (ratios,) = (table["rows"] for table in found["ratios"] if table["clock"] == clock)
    tables = [_times(found, clock, rate)]
    if found["growth"] is not None:
        tables.append(_growth(found["factor"]["name"], found["growth"][clock]))
    if ratios:
        tables.append(_ratio_table(ratios))
    return tables


def head(content: dict[str, Any]) -> str:
    """The command, where it ran, and how fast that machine is at best."""
    where, clock = content["machine"], content["clock"]
    packages = ", ".join(f"{name} {number}" for name, number in where["versions"].items())
    return (
        f"$ {content['command']}\n"
        f"{content['date']}; {where['processor']}, {where['cores']} cores, {where['instructions']}, "
        f"device {where['device']}, torch threads {where['threads']}\n{packages}\n"
        f"best rates, GFLOP/s by {CLOCKS[clock]}: {described(read_rates(content), clock)}"
    )


def roof(content: dict[str, Any]) -> float:
    """The best float32 rate of a record, GFLOP/s, by the clock of its tables."""
    return best(read_rates(content), content["clock"]).gflops[content["clock"]]


def record(name: str, result: Result) -> dict[str, Any]:
    """Everything about a case: findings, every sample, ratios and growth by both clocks, costs."""
    case = result.case
    growth = {clock: result.growth(clock) for clock in CLOCKS} if case.factor and result.valid else None
    return {
        "workload": name,
        "title": case.title,
        "unit": case.unit,
        "images": {variant: case.images_of(variant) for variant in case.variants},
        "factor": None if case.factor is None else case.factor._asdict(),
        "checks": [{**check._asdict(), "bound": str(check.bound), "passed": check.passed} for check in result.checks],
        "costs": {variant: {**cost._asdict(), "peak": cost.peak} for variant, cost in result.costs.items()},
        "samples": None if result.samples is None else {clock: result.samples.by(clock) for clock in CLOCKS},
        "ratios": [_ratios(result, clock) for clock in CLOCKS] if result.valid else None,
        "growth": growth and {c: {**g._asdict(), "seconds": g.seconds._asdict()} for c, g in growth.items()},
    }


def machine(device: torch.device) -> dict[str, Any]:
    """The hardware, and the settings of the environment that the times depend on."""
    return {
        "processor": processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "threads": torch.get_num_threads(),
        "environment": {k: v for k, v in os.environ.items() if k.startswith(("MALLOC_", "OMP_", "MKL_", "KMP_"))},
        "versions": versions(),
    }


def where(found: dict[str, Any]) -> str:
    """A machine in one line of a document."""
    packages = ", ".join(f"{name} {found['versions'][name]}" for name in ("torch", "numpy", "python"))
    settings = "".join(f", `{key}={value}`" for key, value in sorted(found["environment"].items()))
    return (
        f"{found['processor']}, {found['cores']} cores, {found['instructions']}, device {found['device']},"
        f" torch threads {found['threads']}{settings}; {packages}"
    )


def quartiles(values: Spread, digits: int) -> str:
    """Median, and the quartiles in parentheses."""
    return f"{values.median:.{digits}f} ({values.lower:.{digits}f} to {values.upper:.{digits}f})"


def _times(found: dict[str, Any], clock: Clock, rate: float | None) -> str:
    seconds, costs, images, unit = found["samples"][clock], found["costs"], found["images"], found["unit"]
    columns = ["variant", f"ms, {CLOCKS[clock]}: median (quartiles)", "min to max"]
    columns += ["forwards"] * (unit is not None) + ["images/s"] * any(images.values())
    counted = any(cost["flops"] for cost in costs.values())
    columns += ["GFLOP"] * counted + ["share of the best rate"] * (counted and rate is not None)
    columns += ["peak MB"] * bool(costs)
    rows = []
    for name, values in seconds.items():
        ms = spread([1000 * value for value in values])
        row = {columns[0]: name, columns[1]: quartiles(ms, 1), columns[2]: f"{ms.min:.1f} to {ms.max:.1f}"}
        if unit is not None:
            row["forwards"] = f"{spread([a / b for a, b in zip(values, seconds[unit], strict=True)]).median:.2f}"
        if images.get(name):
            row["images/s"] = _number(1000 * images[name] / ms.median)
        if costs.get(name):
            row["peak MB"] = _number(costs[name]["peak"] / 1e6)
            if flops := costs[name]["flops"]:
                row["GFLOP"] = _number(flops / 1e9)
                row["share of the best rate"] = f"{100 * flops / (1e6 * ms.median) / rate:.0f} %" if rate else "-"
        rows.append([row.get(column, "-") for column in columns])
    return _markdown(columns, rows)


def _growth(name: str, growth: dict[str, Any]) -> str:
    columns = [f"exponent of the growth with {name}", "median (quartiles)", "min to max"]
    time = Spread(**growth["seconds"])
    rows = [["time", quartiles(time, 2), f"{time.min:.2f} to {time.max:.2f}"]]
    for label, key in (("operations", "flops"), ("peak memory", "peak")):
        if growth[key] is not None:
            rows.append([label, f"{growth[key]:.2f}", "-"])
    return _markdown(columns, rows)


def _ratio_table(ratios: list[dict[str, Any]]) -> str:
    rows = []
    for row in ratios:
        values = Spread(*(row[key] for key in Spread._fields))
        verdict = {True: "met", False: "missed", None: "-"}[row["met"]]
        ends = f"{values.min:.2f} to {values.max:.2f}"
        rows.append([row["label"], quartiles(values, 2), ends, row["bound"] or "-", verdict])
    return _markdown(["ratio, round by round", "median (quartiles)", "min to max", "goal", ""], rows)


def _markdown(columns: list[str], rows: list[list[str]]) -> str:
    lines = [f"| {' | '.join(columns)} |".replace("|  |", "| |"), "|" + "---|" * len(columns)]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def _number(value: float) -> str:
    """Three significant digits, without an exponent."""
    digits = max(0, 2 - len(str(int(abs(value)))) + 1) if value >= 1 else 3
    return f"{value:,.{digits}f}"


def _ratios(result: Result, clock: Clock) -> dict[str, Any]:
    rows = []
    for ratio in result.case.ratios:
        found = result.ratio(ratio.of, ratio.to, clock)
        row = {**ratio._asdict(), "bound": None if ratio.bound is None else str(ratio.bound)}
        rows.append({**row, **found._asdict(), "met": ratio.met(found)})
    return {"clock": clock, "rows": rows}
