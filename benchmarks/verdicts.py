"""What a record of `benchmarks.autoattack` says: accuracies, verdicts apart, tables in Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.pairs import Spread, spread
from benchmarks.report import CLOCKS, quartiles, where
from gambeson.evaluation import wilson
from gambeson.evaluation.ensembles import create_ensemble

STAGES = tuple(search.name for search in create_ensemble("standard"))
"""The attacks of the version `standard`, in the order of both."""

SIDES = ("gambeson", "pyautoattack")
"""Ours and the release, as records name them."""


def summary(found: dict[str, Any]) -> dict[str, Any]:
    """The accuracies of all parts together, and how many images have different verdicts."""
    parts = found["parts"]
    n = sum(part["n"] for part in parts)
    flags = {side: [flag for part in parts for flag in part["standing"][side]] for side in SIDES}
    return {
        "n": n,
        "clean": vars(wilson(sum(part["clean"] for part in parts), n)),
        "robust": {side: vars(wilson(sum(row), n)) for side, row in flags.items()},
        "differing": sum(a != b for a, b in zip(*flags.values(), strict=True)),
    }


def total(found: dict[str, Any], side: str, key: str, stages: Sequence[str] = STAGES) -> list[float]:
    """A number of some attacks together, part by part."""
    return [sum(stage[key] for stage in part["stages"][side] if stage["attack"] in stages) for part in found["parts"]]


def ratios(found: dict[str, Any], clock: str) -> dict[str, Spread]:
    """The release's time over ours, part by part; and our preview's over our whole."""
    own, other = total(found, "gambeson", clock), total(found, "pyautoattack", clock)
    few = total(found, "gambeson", clock, STAGES[:2])
    return {
        "pyautoattack / gambeson": spread([b / a for a, b in zip(own, other, strict=True)]),
        "preview / whole": spread([a / b for a, b in zip(few, own, strict=True)]),
    }


def text(found: dict[str, Any]) -> str:
    """The heading and the table of a run, in Markdown."""
    whole, clock = summary(found), found["clock"]
    norms = "BatchNorm folded" if found["fold"] else "BatchNorm not folded"
    layout = "both in the same memory layout" if found["same_layout"] else "the release's model contiguous"
    n, clean = whole["n"], whole["clean"]
    images = f"n = {n}" + (f" after the first {found['skip']}" if found["skip"] else "")
    interval = f"{100 * clean['low']:.1f} to {100 * clean['high']:.1f}"
    lines = [
        f"### {found['run']} ({found['method']}), {found['data']}, {found['norm']} eps {found['eps']:.4g}, {images}",
        "",
        f"Clean accuracy {100 * clean['value']:.1f} % ({interval}); verdicts differ for {whole['differing']} of {n}"
        f" images; parts: {len(found['parts'])}; {norms} in our search; {layout}.",
        "",
        "| after | accuracy, %: ours | release | seconds: ours | release | forwards: ours | release"
        " | backwards: ours | release |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for attack in (*STAGES, "all"):
        chosen = STAGES if attack == "all" else (attack,)
        last = STAGES[-1] if attack == "all" else attack
        row = [attack]
        for key, form in (("left", "{:.1f}"), (clock, "{:.0f}"), ("forwards", "{:,.0f}"), ("backwards", "{:,.0f}")):
            for side in SIDES:
                value = sum(total(found, side, key, (last,) if key == "left" else chosen))
                row.append(form.format(100 * value / n if key == "left" else value))
        lines.append(f"| {' | '.join(row)} |")
    robust = [whole["robust"][side] for side in SIDES]
    both = ", ".join(f"{100 * r['value']:.1f} % ({100 * r['low']:.1f} to {100 * r['high']:.1f})" for r in robust)
    lines += ["", f"Robust accuracy of ours and the release, with 95 % Wilson intervals: {both}.", ""]
    for name, value in ratios(found, clock).items():
        ends = f"{value.min:.2f} to {value.max:.2f}"
        lines.append(f"- {name}, part by part: {quartiles(value, 2)}, {ends}")
    return "\n".join(lines)


def section(content: dict[str, Any]) -> str:
    """A record in Markdown: every run, with where it was measured."""
    return "\n\n".join(
        f"{text(one)}\n\n{one['date'][:10]}: {where(one['machine'])}. Seconds are {CLOCKS[one['clock']]}."
        for one in content["runs"]
    )
