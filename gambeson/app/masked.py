"""`gambeson diagnose masking`: the verdict on a run's gradients, with the evidence."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from gambeson.app.critical import choose_split
from gambeson.app.options import MaskingOptions
from gambeson.app.parsing import name_of, parse_run, require_positive
from gambeson.core.errors import InputError, require_known


def masking(args: list[str]) -> int:
    """`gambeson diagnose masking RUN [options]`."""
    description = (
        "Judge whether gradient attacks measure a run's model or its gradients are masked. Exit code 1 where it fails."
    )
    path, options = parse_run("diagnose masking", description, MaskingOptions, args)
    require_known("split", options.split, ("test", "val"))
    require_positive(options, "test_size", "batch_size", "queries")
    if options.out and not options.out.endswith(".json"):
        raise InputError(f"--out is a record and ends in .json, got {options.out}")
    import numpy as np

    from gambeson.app import build, show, states, verdicts
    from gambeson.diagnosis import diagnose_masking
    from gambeson.diagnosis.masking import CHECKS
    from gambeson.engine.run import versions, write_json

    run = build.open_run(path)
    build.use_threads(run.call)
    threat = build.threat_of(build.recipe(run.call).threat, options.norm, options.eps)
    where = build.device(options.device)
    model, task, checkpoint, step = build.load_model(run, options.checkpoint, where)
    open_end = states.unfinished(run)
    data = build.splits(run.call, options.data_dir)
    examples = choose_split(data, options.split, None)
    if options.test_size is not None:
        examples = examples.head(options.test_size)
    second = None
    if options.transfer is not None:
        other = build.open_run(Path(options.transfer))
        second, its_task, *_ = build.load_model(other, options.checkpoint, where)
        build.require_fit(its_task, data.facts)
    with show.progress(options.json) as bar:
        shown = bar.add_task("attacking", total=len(CHECKS))
        found = diagnose_masking(
            model,
            examples.pixels,
            examples.y,
            threat,
            num_classes=task.num_classes,
            transfer=second,
            queries=options.queries,
            batch_size=options.batch_size,
            seed=options.seed,
            listen=lambda evidence: bar.advance(shown),
        )
    record: dict[str, Any] = {
        "run": str(run.path),
        "method": run.call["method"]["name"],
        "checkpoint": checkpoint,
        "step": step,
        "data": data.facts.name,
        "split": options.split,
        "selection": run.call.get("selection"),
        "unfinished": open_end,
        "transfer_from": options.transfer,
        **found.to_dict(),
        "versions": versions(),
    }
    stem = f"masking-{threat.norm}-{float(threat.eps):.4g}-{checkpoint}-{options.split}".lower()
    stem = name_of(stem, options, "transfer", "queries", "test_size", "seed")
    out = Path(options.out) if options.out else run.path / "diagnosis" / f"{stem}.json"
    out.parent.mkdir(exist_ok=True)
    arrays = {"y": found.y.numpy(), **{name: correct.numpy() for name, correct in found.outcomes.items()}}
    np.savez_compressed(out.with_suffix(".npz"), **arrays)  # type: ignore[arg-type]
    write_json(out, record)
    print(json.dumps(record, indent=2)) if options.json else verdicts.masking(record)
    print(f"wrote {out} and {out.with_suffix('.npz')}", file=sys.stderr)
    return 1 if found.verdict == "FAIL" else 0
