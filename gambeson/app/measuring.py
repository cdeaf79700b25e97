"""`gambeson evaluate`, and the evaluation at the end of a training."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gambeson.app.heartbeat import attack_pace
from gambeson.app.options import EvaluateOptions
from gambeson.app.parsing import parse_run
from gambeson.core.errors import DataError, InputError, require_known

if TYPE_CHECKING:
    from gambeson.engine.run import Run
    from gambeson.evaluation.evaluate import Report


def evaluate(args: list[str]) -> int:
    """`gambeson evaluate RUN [options]`."""
    description = "Measure clean and robust accuracy; outcomes per example are kept in the run."
    path, options = parse_run("evaluate", description, EvaluateOptions, args)
    check_attacks(options.attack, options.test_size)
    require_known("split", options.split, ("test", "val"))
    if options.search_dtype is not None:
        require_known("search dtype", options.search_dtype, DTYPES)
        from gambeson.evaluation import ensemble_of

        if not any(ensemble_of(name) for name in attack_names(options.attack)):
            raise InputError("--search-dtype is for ensembles, and --attack names none", hint="such as autoattack")
    from gambeson.app.processes import together

    try:
        with together(options.device) as (rank, where):
            return _evaluate(path, options, where, first=rank == 0)
    except KeyboardInterrupt:
        kept = path / "autoattack"
        if not kept.is_dir():
            raise
        words = f"interrupted; what was found is kept in {kept}: the same command goes on from there"
        raise KeyboardInterrupt(words) from None


DTYPES = {"bf16": "bfloat16", "fp16": "float16"}
"""Types in which ensembles may search."""


def _evaluate(path: Path, options: EvaluateOptions, device: str, *, first: bool) -> int:
    """Evaluate; of several processes the `first` one writes and prints."""
    from gambeson.app import build, show, states
    from gambeson.data import load

    run = build.open_run(path)
    build.use_threads(run.call)
    threat = build.threat_of(build.recipe(run.call).threat, options.norm, options.eps)
    model, task, name, step = build.load_model(run, options.checkpoint, build.device(device))
    open_end = states.unfinished(run)
    if options.data:
        size = task.size if options.data.startswith("folder:") else None
        fraction = 0 if options.split == "test" else 0.05
        splits = load(options.data, options.data_dir, size=size, val_fraction=fraction, stream="auto")
    else:
        splits = build.splits(run.call, options.data_dir)
    facts = splits.facts
    build.require_fit(task, facts)
    examples = splits.test if options.split == "test" else splits.val
    if len(examples) == 0:
        raise DataError(f"the {options.split} split is empty: the run held nothing out", hint="evaluate the test split")
    if options.test_size is not None:
        examples = examples.head(options.test_size)
    report = measure(
        model,
        examples.x,
        examples.y,
        options.attack,
        threat,
        facts.class_names,
        options.batch_size,
        options.seed,
        options.json or not first,
        ledger=run.path / "autoattack",
        search_dtype=options.search_dtype,
        fold=options.fold,
    )
    if not first:
        return 0
    described = {"checkpoint": name, "step": step, "data": facts.name, "split": options.split, "unfinished": open_end}
    record = save_report(run, report, described)
    if options.json:
        print(json.dumps(record, indent=2))
    else:
        show.report(
            report,
            f"{run.path.name}, checkpoint {name} (step {step}), {facts.name} {options.split}",
            per_class=options.per_class,
        )
        show.stamp(record["selection"])
    return 0


def measure(
    model: Any,
    x: Any,
    y: Any,
    attacks: str,
    threat: Any,
    class_names: Sequence[str],
    batch_size: int = 256,
    seed: int = 0,
    quiet: bool = False,
    *,
    ledger: Path | None = None,
    search_dtype: str | None = None,
    fold: bool = True,
) -> Report:
    """Evaluate with a progress bar, or lines off a terminal; ensembles keep what they find in `ledger`."""
    import torch

    from gambeson.app import show
    from gambeson.evaluation import evaluate as run_evaluation

    names = attack_names(attacks)
    with show.progress(quiet) as bar:
        total = len(y) * len({"clean", *names})
        task = bar.add_task("evaluating", total=total)
        return run_evaluation(
            model,
            x,
            y,
            names,
            threat,
            num_classes=len(class_names),
            class_names=class_names,
            batch_size=batch_size,
            seed=seed,
            progress=lambda done: bar.advance(task, done),
            ledger=ledger,
            stages=None if quiet else show.stage,
            pace=partial(attack_pace, bar, task),
            search_dtype=getattr(torch, DTYPES[search_dtype]) if search_dtype else None,
            fold=fold,
        )


def save_report(run: Run, report: Report, described: dict[str, Any]) -> dict[str, Any]:
    """Keep a report in the run: JSON, and the outcomes per example beside it. Nothing older is overwritten.

    The record says what the run was selected on (a number of one that was selected on test is optimistic), and where
    its training was that had not finished.
    """
    import numpy as np

    from gambeson.engine.run import versions, write_json
    from gambeson.evaluation.robustbench import model_info

    record = {"unfinished": None, **described, "selection": run.call.get("selection")}
    record |= {**report.to_dict(), "versions": versions()}
    stem = f"{described['checkpoint']}-{described['split']}-" + "-".join(report.outcomes).replace("clean-", "")
    folder, number = run.path / "evaluations", 1
    while (folder / f"{stem}-{number}.json").exists():
        number += 1
    arrays = {"y": report.y.numpy(), **{name: correct.numpy() for name, correct in report.outcomes.items()}}
    np.savez_compressed(folder / f"{stem}-{number}.npz", **arrays)  # type: ignore[arg-type]
    whole = report.settings.get("ensembles", {}).get("autoattack")
    if whole and described["split"] == "test":
        model = run.call["model"]
        architecture = model["name"] + (f"-width-{model['width']}" if model.get("width") else "")
        info = model_info(whole, name=run.path.name, dataset=described["data"], architecture=architecture)
        (run.path / "robustbench").mkdir(exist_ok=True)
        write_json(run.path / "robustbench" / f"{stem}-{number}.json", info)
    write_json(folder / f"{stem}-{number}.json", record)
    return record


def stored_record(run: Run, wanted: dict[str, Any]) -> tuple[str, dict[str, Any]] | None:
    """The newest evaluation of a run whose record says all that is `wanted`, by name; None where there is none."""
    for name, record in reversed(run.evaluations().items()):
        if all(record.get(key) == value for key, value in wanted.items()):
            return name, record
    return None


def check_attacks(attacks: str, size: int | None) -> None:
    """Refuse unknown attacks and an empty test set before any work.

    Raises:
        InputError: One of the two.
    """
    from gambeson.evaluation import require_attack

    if size is not None and size < 1:
        raise InputError(f"--test-size must be at least 1, got {size}")
    names = attack_names(attacks)
    if not names:
        raise InputError("--attack names no attack", hint="clean is the accuracy without one")
    for name in names:
        require_attack(name)


def attack_names(attacks: str) -> list[str]:
    """The names in a comma-separated list."""
    return [word.strip() for word in attacks.split(",") if word.strip()]
