"""Repeat `gambeson train` over seeds and print the table of a story: mean and spread over seeds, one row per command.

    python scripts/repeat.py docs/results/digits.yaml --runs runs/digits-story [--jobs 2] [--only LABEL]

A story is a YAML file with `seeds`, `threads`, `attack` (columns of the table), and `rows`: a label and the words after
`gambeson train` each. Finished runs are not repeated, interrupted ones are resumed; the table is printed from what is
there. With `pairs`, pairs of labels, a second table has the differences seed by seed.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import yaml

from gambeson.diagnosis.spread import difference
from gambeson.engine.sentinel import has_collapsed

# glibc otherwise gives large tensors back to the kernel and faults them in again at every pass: a tenth of the time.
GLIBC = {"MALLOC_MMAP_THRESHOLD_": str(2**30), "MALLOC_TRIM_THRESHOLD_": str(2**33)}


def main() -> int:
    """Run what is missing, then print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("story", type=Path)
    parser.add_argument("--runs", type=Path, required=True, help="folder for the runs")
    parser.add_argument("--jobs", type=int, default=1, help="commands at a time")
    parser.add_argument("--only", action="append", help="only rows with this label")
    parser.add_argument("--table", action="store_true", help="print the table without running anything")
    options = parser.parse_args()
    story = yaml.safe_load(options.story.read_text())
    rows = {label: words for label, words in story["rows"].items() if not options.only or label in options.only}
    jobs = [(label, words, seed) for seed in story["seeds"] for label, words in rows.items()]
    options.runs.mkdir(parents=True, exist_ok=True)
    if not options.table:
        with ThreadPoolExecutor(options.jobs) as pool:
            codes = list(pool.map(lambda job: run(options.runs, story, *job), jobs))
        if any(codes):
            print(f"{sum(map(bool, codes))} of {len(codes)} commands failed; see {options.runs}/*.log", file=sys.stderr)
    print(table(options.runs, story, rows))
    if story.get("pairs"):
        print()
        print(differences(options.runs, story))
    return 0


def folder(runs: Path, label: str, seed: int) -> Path:
    """The run directory of a row and a seed."""
    return runs / f"{label.replace(' ', '-').replace('/', '_')}-seed{seed}"


def run(runs: Path, story: dict[str, Any], label: str, words: str, seed: int) -> int:
    """Train, or resume, or do nothing where the run is complete; returns the exit code."""
    path = folder(runs, label, seed)
    if results(path):
        return 0
    command = [sys.executable, "-m", "gambeson"]
    if (path / "run.json").exists():
        command += ["resume", str(path)]
    else:
        command += ["train", *words.split(), "--seed", str(seed), "--attack", story["attack"], "--run", str(path)]
    with open(f"{path}.log", "a") as log:
        print("$", *command[2:], file=log, flush=True)
        environment = {**os.environ, "OMP_NUM_THREADS": str(story.get("threads", 1)), **GLIBC}
        return subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, env=environment, check=False).returncode


def results(path: Path) -> dict[str, Any] | None:
    """The evaluation of the last weights, or None."""
    files = sorted(path.glob("evaluations/final-test-*.json"))
    return json.loads(files[-1].read_text()) if files else None


def table(runs: Path, story: dict[str, Any], rows: dict[str, str]) -> str:
    """The Markdown table."""
    attacks = story["attack"].split(",")
    lines = [
        f"| row | seeds | {' | '.join(attacks)} | collapsed | seconds |",
        f"|---|---|{'---|' * len(attacks)}---|---|",
    ]
    for label in rows:
        found = [(seed, results(folder(runs, label, seed))) for seed in story["seeds"]]
        done = [(seed, record) for seed, record in found if record]
        if not done:
            continue
        cells = []
        for attack in attacks:
            values = [100 * record["accuracy"][attack]["value"] for _, record in done]
            spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.1f}{spread} ({min(values):.1f} to {max(values):.1f})")
        events, watched, seconds = 0, 0, []
        for seed, _ in done:
            metrics = (folder(runs, label, seed) / "metrics.jsonl").read_text().splitlines()
            rows_logged = [json.loads(line) for line in metrics]
            looks = [row for row in rows_logged if "probe/pgd10_acc" in row]
            if looks:
                best = max(row["probe/pgd10_acc"] for row in looks)
                events += has_collapsed(looks[-1]["probe/fgsm_acc"], looks[-1]["probe/pgd10_acc"], best)
            watched += bool(looks)
            seconds.append(max(row["seconds"] for row in rows_logged))
        shown = [
            label,
            str(len(done)),
            *cells,
            f"{events} of {watched}" if watched else "-",
            f"{statistics.median(seconds):.0f}",
        ]
        lines.append(f"| {' | '.join(shown)} |")
    return "\n".join(lines)


def differences(runs: Path, story: dict[str, Any]) -> str:
    """The Markdown table of mean differences in points, with Student's 95 % interval over the seeds of both rows."""
    attacks = story["attack"].split(",")
    lines = [f"| difference | seeds | {' | '.join(attacks)} |", f"|---|---|{'---|' * len(attacks)}"]
    for a, b in story["pairs"]:
        both = [(results(folder(runs, a, seed)), results(folder(runs, b, seed))) for seed in story["seeds"]]
        done = [(one, other) for one, other in both if one and other]
        if not done:
            continue
        cells = []
        for attack in attacks:
            sides = [[100 * record["accuracy"][attack]["value"] for record in side] for side in zip(*done, strict=True)]
            found = difference(*sides)
            interval = "" if found.low is None else f" ({found.low:+.1f} to {found.high:+.1f})"
            cells.append(f"{found.mean:+.1f}{interval}")
        lines.append(f"| {a} - {b} | {len(done)} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
