"""Tables of a document from records: `python -m benchmarks document docs/performance/*.json`.

Between the markers `<!-- record: NAME -->` and `<!-- end of NAME -->` stands what the record `NAME.json` says; all
other text is written by hand and stays as it is. Records of `benchmarks.autoattack` are written in the same way:
`python -m benchmarks document docs/results/autoattack.json --into docs/results.md`.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import verdicts
from benchmarks.report import CLOCKS, roof, tables, where
from benchmarks.roofline import described, read_rates

DOCUMENT = Path("docs/performance.md")
_SECTION = re.compile(r"(<!-- record: (?P<name>[\w-]+) -->\n).*?(<!-- end of (?P=name) -->)", re.DOTALL)


class MarkerError(Exception):
    """A record and the markers of the document do not fit together."""


def main(argv: Sequence[str]) -> int:
    """Write the sections of the records that are given; with `--check`, 1 if that would change the document."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks document", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("records", nargs="+", type=Path, metavar="FILE", help="what --json wrote")
    parser.add_argument("--into", type=Path, default=DOCUMENT, metavar="DOCUMENT", help="%(default)s")
    parser.add_argument("--check", action="store_true", help="change nothing; 1 if something would change")
    options = parser.parse_args(argv)
    old = options.into.read_text()
    try:
        new = document(old, {path.stem: json.loads(path.read_text()) for path in options.records})
    except MarkerError as error:
        parser.error(str(error))
    if options.check:
        print(f"{options.into}: {'as the records say' if new == old else 'not what the records say'}")
        return int(new != old)
    options.into.write_text(new)
    return 0


def document(text: str, records: dict[str, dict[str, Any]]) -> str:
    """The text with the sections of the records renewed.

    Raises:
        MarkerError: A record has no markers, or more than one pair of them.
    """
    places = [match["name"] for match in _SECTION.finditer(text)]
    for name in records:
        if places.count(name) != 1:
            raise MarkerError(
                f"the document needs the lines <!-- record: {name} --> and <!-- end of {name} --> once each, in this"
                f" order; there are {places.count(name)} pairs"
            )

    def renewed(match: re.Match[str]) -> str:
        name = match["name"]
        return f"{match[1]}\n{section(records[name])}\n\n{match[3]}" if name in records else match[0]

    return _SECTION.sub(renewed, text)


def section(content: dict[str, Any]) -> str:
    """One record in Markdown: where and how it was measured, then the tables of its cases."""
    if "runs" in content:
        return verdicts.section(content)
    clock = content["clock"]
    before, after = (_load(content[key]) for key in ("load_before", "load_after"))
    blocks = [
        f"`{content['command']}`, {content['date'][:10]}, {content['rounds']} rounds: {where(content['machine'])}."
        f" Load average before and after: {before} and {after}. Best rates in this run, GFLOP/s by {CLOCKS[clock]}:"
        f" {described(read_rates(content), clock)}."
    ]
    for case in content["cases"]:
        passed, count = sum(check["passed"] for check in case["checks"]), len(case["checks"])
        blocks.append(f"### {case['title']}")
        if case["samples"] is None:
            failed = "; ".join(check["label"] for check in case["checks"] if not check["passed"])
            blocks.append(
                f"Guard: {passed} of {count} checks passed, so that there are no times and no ratios ({failed})."
            )
            continue
        blocks += [f"Guard: {passed} of {count} checks passed.", *tables(case, clock, roof(content))]
    return "\n\n".join(blocks)


def _load(averages: list[float] | None) -> str:
    return "unknown" if averages is None else f"{averages[0]:.1f}"
