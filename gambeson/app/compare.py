"""Runs side by side: an overview of a folder, and two or more runs with paired tests."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from gambeson.app.build import is_bare, open_run, selected_on
from gambeson.app.families import Side, distinct
from gambeson.app.gaps import gaps
from gambeson.app.states import state, unfinished
from gambeson.core.errors import CheckpointError, RunError
from gambeson.core.tables import flat
from gambeson.engine.checkpoint import read_header
from gambeson.engine.run import Run
from gambeson.evaluation import holm, mcnemar, paired_difference


def overview(root: Path) -> list[dict[str, Any]]:
    """One row per run below `root`, by name. Directories that cannot be read are shown as damaged, not skipped."""
    rows = []
    for file in sorted(root.glob("*/run.json")):
        row: dict[str, Any] = dict.fromkeys(("run", "method", "data", "model", "state", *SCORES, "selection"))
        row["run"] = str(file.parent)
        rows.append(row)
        try:
            if is_bare(Run.open(file.parent)):
                row["state"] = "made in Python"
                continue
            run = open_run(file.parent)
            row |= {
                "method": method_name(run.call),
                "data": run.call["data"]["name"],
                "model": run.call["model"]["name"],
                "selection": selected_on(run.call),
            }
            row["state"] = state(run)
            row |= _scores(run)
        except (RunError, CheckpointError, KeyError, TypeError, ValueError):
            row["state"] = "damaged"
    return rows


NAMES = ("best", "final", "last")
"""Checkpoints whose evaluations are compared."""
SCORES = ("val clean", "val pgd-10", "test clean", "test worst")


ALPHA = 0.05
"""Level of the tests between runs."""


def compare(runs: Sequence[Run]) -> dict[str, Any]:
    """What differs between runs: settings, accuracies on the test set, and exact McNemar tests on the same examples.

    Returns:
        `runs` (names), `selection` (the split that each was selected on), `main` (the checkpoint that each is reported
        by; where they differ, `accuracy` has rows `"main pgd-50"` too), `settings` (differing ones, a value per run; of
        a fine-tuning its options and where it started too), `accuracy` (`"best pgd-50"` and so on, an interval or None
        per run), `paired` (one entry per pair and attack that both have on the same examples: counts, the difference of
        the accuracies with its interval, p, p after Holm's correction, and whether that is below `alpha`), `alpha`,
        `tests` (how many different ones the entries are: the family that is corrected for, see
        `gambeson.app.families`), `correction`, None where there is a single test, `gaps` (why cells are empty or not
        tested, and the commands that help, see `gambeson.app.gaps`), and `unfinished` (per run how far its training is,
        with the step of every checkpoint that was measured; None where it has come to its end).
    """
    tables = [flat(_settings(run.call)) for run in runs]
    keys = list(dict.fromkeys(key for one in tables for key in one))
    known = [key for key in keys if not key.startswith("data.sizes.") or all(key in one for one in tables)]
    settings = {key: [one.get(key) for one in tables] for key in known}  # older records lack the sizes of the splits
    main = [main_checkpoint(run) for run in runs]
    measured = [_outcomes(run) for run in runs]
    outcomes = measured
    if len(set(main)) > 1:  # such as a run and its fine-tuning: what each is reported by stands side by side too
        outcomes = [_with_main(found, name) for found, name in zip(measured, main, strict=True)]
    attacks = list(dict.fromkeys(key for one in outcomes for key in one))
    paired: list[dict[str, Any]] = []
    sides: list[tuple[Side, Side]] = []
    for key in attacks:
        for a, b in combinations(range(len(runs)), 2):
            if key.startswith("main ") and main[a] == main[b]:
                continue  # tested under the checkpoint's name
            one, two = outcomes[a].get(key), outcomes[b].get(key)
            if one is None or two is None or not np.array_equal(one["y"], two["y"]):
                continue
            only_a, only_b = (
                int((one["correct"] & ~two["correct"]).sum()),
                int((~one["correct"] & two["correct"]).sum()),
            )
            names = {"a": str(runs[a].path), "b": str(runs[b].path)}
            counts = {"n": len(one["y"]), "only_a": only_a, "only_b": only_b}
            difference = vars(paired_difference(only_a, only_b, len(one["y"])))
            paired.append({"key": key, **names, **counts, "difference": difference, "p": mcnemar(only_a, only_b)})
            sides.append(((runs[a], one), (runs[b], two)))
    same = distinct(sides)
    family = sorted(set(same))
    corrected = dict(zip(family, holm([paired[place]["p"] for place in family]), strict=True))
    for line, place in zip(paired, same, strict=True):
        line |= {"p_holm": corrected[place], "significant": corrected[place] < ALPHA}
    return {
        "runs": [str(run.path) for run in runs],
        "selection": [selected_on(run.call) for run in runs],
        "main": main,
        "settings": {key: values for key, values in settings.items() if any(v != values[0] for v in values)},
        "accuracy": {key: [one[key]["accuracy"] if key in one else None for one in outcomes] for key in attacks},
        "paired": paired,
        "alpha": ALPHA,
        "tests": len(family),
        "correction": "holm" if len(family) > 1 else None,
        "gaps": gaps(runs, measured),
        "unfinished": [_open_end(run) for run in runs],
    }


def main_checkpoint(run: Run) -> str:
    """The weights that a run is reported by: `best` where something was selected, else `final`."""
    return "best" if run.checkpoint("best").is_file() else "final"


def _open_end(run: Run) -> dict[str, Any] | None:
    found = unfinished(run)
    measured = {record["checkpoint"]: record["step"] for record in current_evaluations(run).values()}
    return None if found is None else {**found, "checkpoints": measured}


def method_name(call: dict[str, Any]) -> str:
    """What the weights were trained with, and then fine-tuned."""
    tuned = f" + {call['finetune']['name']}" if "finetune" in call else ""
    return f"{call['method']['name']}{tuned}"


def _scores(run: Run) -> dict[str, float | None]:
    best = (read_header(run.checkpoint("best"))["best"] or {}) if run.checkpoint("best").is_file() else {}
    name = "best" if best else "final"
    tests = [
        e
        for e in current_evaluations(run).values()
        if e["data"] == run.call["data"]["name"] and e["checkpoint"] == name
    ]
    clean = max(tests, key=lambda e: e["n"], default=None)
    attacked = [e for e in tests if is_own(run, e) and len(e["accuracy"]) > 1]
    most = max((e["n"] for e in attacked), default=0)
    worst = min((e["worst"]["value"] for e in attacked if e["n"] == most), default=None)
    values = (
        best.get("val/clean_acc"),
        best.get("val/pgd10_acc"),
        clean["accuracy"]["clean"]["value"] if clean else None,
        worst,
    )
    return dict(zip(SCORES, values, strict=True))


def current_evaluations(run: Run) -> dict[str, dict[str, Any]]:
    """The evaluations on test sets that speak of the weights that the run has now.

    A run that was evaluated, resumed and evaluated again keeps both; the first one measured other weights.
    """
    tests = {name: record for name, record in run.evaluations().items() if record["split"] == "test"}
    names = {record["checkpoint"] for record in tests.values()}
    files = {name: run.checkpoint(name) for name in names if name in NAMES or name.startswith("snapshot-")}
    steps = {name: read_header(file)["step"] for name, file in files.items() if file.is_file()}
    return {name: record for name, record in tests.items() if record["step"] == steps.get(record["checkpoint"])}


def _with_main(outcomes: dict[str, dict[str, Any]], checkpoint: str) -> dict[str, dict[str, Any]]:
    """Outcomes with those of one checkpoint once more, under `main`."""
    own = {key: row for key, row in outcomes.items() if key.startswith(f"{checkpoint} ")}
    return {**outcomes, **{f"main{key.removeprefix(checkpoint)}": row for key, row in own.items()}}


def is_own(run: Run, record: dict[str, Any]) -> bool:
    """Whether an evaluation is of the run's own data and budget."""
    args = run.call["method"].get("args", {})
    budget = args.get("eps") in (None, record["eps"]) and args.get("norm", "Linf") == record["norm"]
    return bool(budget and record["data"] == run.call["data"]["name"])


def _settings(call: dict[str, Any]) -> dict[str, Any]:
    """What runs may differ in, their names and the measurements of their final tables aside."""
    found = {key: call.get(key) for key in ("method", "data", "model", "ema", "settings", "versions")}
    if "finetune" in call:
        base = {key: value for key, value in call["finetune"]["base"].items() if key != "sha256"}
        found["finetune"] = {**call["finetune"], "base": base}
    return {**found, "selection": {"split": selected_on(call)}}


def _outcomes(run: Run) -> dict[str, dict[str, Any]]:
    """Outcomes per checkpoint, attack and budget: of the most examples, and then the newest."""
    found: dict[str, dict[str, Any]] = {}
    for name, record in current_evaluations(run).items():
        arrays = run.outcomes(name)
        for attack, accuracy in record["accuracy"].items():
            budget = "" if attack == "clean" else f" {record['norm']} {record['eps']:.4g}"
            where = "" if record["data"] == run.call["data"]["name"] else f" on {record['data']}"
            key = f"{record['checkpoint']} {attack}{budget}{where}"
            if key not in found or record["n"] >= found[key]["accuracy"]["n"]:
                of = {name: record[name] for name in ("checkpoint", "norm", "eps", "data")}
                found[key] = {"accuracy": accuracy, "y": arrays["y"], "correct": arrays[attack]}
                found[key]["of"] = {"attack": attack, **of}
    return found
