"""Repeat `gambeson train` over seeds and print the table of a story: mean and spread over seeds, one row per command.

    python scripts/repeat.py docs/results/digits.yaml --runs runs/digits-story [--jobs 2] [--only LABEL]

A story is a YAML file with `seeds`, `threads`, `attack` (columns of the table), and `rows`: a label and the words after
`gambeson train` each. Finished runs are not repeated, interrupted ones are resumed; the table is printed from what is
there. With `pairs`, pairs of labels, a second table has the differences seed by seed. A row may also be
`{base: LABEL, finetune: WORDS}`: the words after `gambeson finetune`, on the row LABEL of the same seed. With `ood`,
the words after `gambeson corruptions RUN`, the table has a column of the accuracy out of distribution.
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
    trained = [label for label, words in rows.items() if isinstance(words, str)]
    first, second = (
        [(label, rows[label], seed) for seed in story["seeds"] for label in labels]
        for labels in (trained, [label for label in rows if label not in trained])
    )
    options.runs.mkdir(parents=True, exist_ok=True)
    if not options.table:
        with ThreadPoolExecutor(options.jobs) as pool:
            codes = [
                code for jobs in (first, second) for code in pool.map(lambda job: run(options.runs, story, *job), jobs)
            ]
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


def run(runs: Path, story: dict[str, Any], label: str, words: str | dict[str, str], seed: int) -> int:
    """Train or fine-tune, resume, or do nothing where the run is complete; then the corruptions; the exit code."""
    path = folder(runs, label, seed)
    if not results(path):
        common = ["--seed", str(seed), "--attack", story["attack"], "--run", str(path)]
        if (path / "run.json").exists():
            command = ["resume", str(path)]
        elif isinstance(words, str):
            command = ["train", *words.split(), *common]
        else:
            how, *rest = words["finetune"].split()
            command = ["finetune", how, str(folder(runs, words["base"], seed)), *rest, *common]
        if code := call(path, story, command):
            return code
    if story.get("ood") and out_of_distribution(path) is None:
        return call(path, story, ["corruptions", str(path), "--checkpoint", "final", *story["ood"].split()])
    return 0


def call(path: Path, story: dict[str, Any], words: list[str]) -> int:
    """Run a command, its output in the log beside the run; the exit code."""
    command = [sys.executable, "-m", "gambeson", *words]
    with open(f"{path}.log", "a") as log:
        print("$", *command[2:], file=log, flush=True)
        environment = {**os.environ, "OMP_NUM_THREADS": str(story.get("threads", 1)), **GLIBC}
        return subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, env=environment, check=False).returncode


def results(path: Path) -> dict[str, Any] | None:
    """The evaluation of the last weights, or None."""
    files = sorted(path.glob("evaluations/final-test-*.json"))
    return json.loads(files[-1].read_text()) if files else None


def out_of_distribution(path: Path) -> float | None:
    """The accuracy under corruptions, or None."""
    files = sorted(path.glob("diagnosis/corruptions-final-*.json"))
    return json.loads(files[-1].read_text())["ood"]["value"] if files else None


def complete(path: Path, story: dict[str, Any]) -> bool:
    """Whether every column of the story was measured."""
    return results(path) is not None and (not story.get("ood") or out_of_distribution(path) is not None)


def value(path: Path, column: str) -> float:
    """A column of a complete run, in percent."""
    if column == "ood":
        return 100 * out_of_distribution(path)  # type: ignore[operator]
    return 100 * results(path)["accuracy"][column]["value"]  # type: ignore[index]


def columns(story: dict[str, Any]) -> list[str]:
    """The columns of accuracies."""
    return [*story["attack"].split(","), *(["ood"] if story.get("ood") else [])]


def table(runs: Path, story: dict[str, Any], rows: dict[str, str]) -> str:
    """The Markdown table."""
    attacks = columns(story)
    lines = [
        f"| row | seeds | {' | '.join(attacks)} | collapsed | seconds |",
        f"|---|---|{'---|' * len(attacks)}---|---|",
    ]
    for label in rows:
        done = [seed for seed in story["seeds"] if complete(folder(runs, label, seed), story)]
        if not done:
            continue
        cells = []
        for attack in attacks:
            values = [value(folder(runs, label, seed), attack) for seed in done]
            spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.1f}{spread} ({min(values):.1f} to {max(values):.1f})")
        events, watched, seconds = 0, 0, []
        for seed in done:
            path = folder(runs, label, seed)
            inner = path / "finetune"  # a fine-tuned run trained there
            metrics = ((inner if inner.is_dir() else path) / "metrics.jsonl").read_text().splitlines()
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
    attacks = columns(story)
    lines = [f"| difference | seeds | {' | '.join(attacks)} |", f"|---|---|{'---|' * len(attacks)}"]
    for a, b in story["pairs"]:
        both = [(folder(runs, a, seed), folder(runs, b, seed)) for seed in story["seeds"]]
        done = [pair for pair in both if all(complete(path, story) for path in pair)]
        if not done:
            continue
        cells = []
        for attack in attacks:
            sides = [[value(path, attack) for path in side] for side in zip(*done, strict=True)]
            found = difference(*sides)
            interval = "" if found.low is None else f" ({found.low:+.1f} to {found.high:+.1f})"
            cells.append(f"{found.mean:+.1f}{interval}")
        lines.append(f"| {a} - {b} | {len(done)} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
