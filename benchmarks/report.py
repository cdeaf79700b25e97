"""What is printed and what is written: tables in Markdown, a record in JSON, and the machine they belong to."""

from __future__ import annotations

import os
from typing import Any

import torch

from benchmarks.case import Result
from benchmarks.pairs import Clock, Spread, spread
from gambeson.engine.run import processor, versions

CLOCKS: dict[Clock, str] = {"cpu": "process CPU time", "wall": "wall clock"}


def text(result: Result, clock: Clock) -> str:
    """The guard's findings and, if they allow it, the table of times and the table of ratios."""
    lines = [f"## {result.case.title}", ""]
    for check in result.checks:
        note = f"; {check.note}" if check.note else ""
        verdict = "passed" if check.passed else "FAILED"
        lines.append(f"- guard, {check.label}: {check.value:.6g} (needed: {check.bound}) {verdict}{note}")
    if not result.valid:
        return "\n".join([*lines, "", "No times and no ratios: the variants do not compute the same."])
    seconds = result.seconds(clock)
    lines += ["", f"| variant | ms, {CLOCKS[clock]}: median (quartiles) | min to max | forwards |", "|---|---|---|---|"]
    for name, values in seconds.items():
        ms = spread([1000 * value for value in values])
        forwards = result.ratio(name, result.case.unit, clock)
        lines.append(f"| {name} | {quartiles(ms, 1)} | {ms.min:.1f} to {ms.max:.1f} | {forwards.median:.2f} |")
    lines += ["", "| ratio, round by round | median (quartiles) | min to max | goal | |", "|---|---|---|---|---|"]
    for ratio in result.case.ratios:
        found = result.ratio(ratio.of, ratio.to, clock)
        verdict = {True: "met", False: "missed", None: "-"}[ratio.met(found)]
        goal = "-" if ratio.bound is None else str(ratio.bound)
        lines.append(
            f"| {ratio.label} | {quartiles(found, 2)} | {found.min:.2f} to {found.max:.2f} | {goal} | {verdict} |"
        )
    return "\n".join(lines)


def record(name: str, result: Result) -> dict[str, Any]:
    """Everything about a case: findings, every sample by both clocks, ratios by both clocks."""
    return {
        "workload": name,
        "title": result.case.title,
        "unit": result.case.unit,
        "checks": [{**check._asdict(), "bound": str(check.bound), "passed": check.passed} for check in result.checks],
        "samples": None if result.samples is None else {clock: result.samples.by(clock) for clock in CLOCKS},
        "ratios": [_ratios(result, clock) for clock in CLOCKS] if result.valid else None,
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


def quartiles(values: Spread, digits: int) -> str:
    """Median, and the quartiles in parentheses."""
    return f"{values.median:.{digits}f} ({values.lower:.{digits}f} to {values.upper:.{digits}f})"


def _ratios(result: Result, clock: Clock) -> dict[str, Any]:
    rows = []
    for ratio in result.case.ratios:
        found = result.ratio(ratio.of, ratio.to, clock)
        row = {**ratio._asdict(), "bound": None if ratio.bound is None else str(ratio.bound)}
        rows.append({**row, **found._asdict(), "met": ratio.met(found)})
    return {"clock": clock, "rows": rows}
