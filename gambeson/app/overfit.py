"""`gambeson diagnose overfitting`: from the metrics of a run, whether, when and how its training overfitted."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gambeson.app.options import OverfittingOptions
from gambeson.app.parsing import parse_run
from gambeson.core.errors import RunError

if TYPE_CHECKING:
    from gambeson.diagnosis.overfitting import Overfitting
    from gambeson.engine.run import Run
    from gambeson.evaluation import Report


def overfitting(args: list[str]) -> int:
    """`gambeson diagnose overfitting RUN [options]`."""
    description = (
        "Read from a run's metrics when its training collapsed (catastrophic overfitting), which signs say so, and how"
        " far its last weights are below its best ones (robust overfitting). No model is run."
    )
    path, options = parse_run("diagnose overfitting", description, OverfittingOptions, args)
    from gambeson.app import build, histories
    from gambeson.diagnosis import diagnose_overfitting, draw_overfitting
    from gambeson.diagnosis.pictures import require_picture
    from gambeson.engine.run import versions, write_json

    if options.out:
        require_picture(Path(options.out))
    run = build.open_run(path)
    rows = run.rows()
    if not rows:
        why = "imported and fine-tuned runs have none" if run.call.keys() & {"imported", "finetune"} else None
        raise RunError(f"{run.path} has no metrics: no training was begun in it", hint=why)
    reports, budget = stored_reports(run)
    found = diagnose_overfitting(rows, reports=reports, complete=run.checkpoint("final").is_file())
    record: dict[str, Any] = {
        "run": str(run.path),
        "method": run.call["method"]["name"],
        "data": run.call["data"]["name"],
        "selection": run.call.get("selection"),
        **found.to_dict(),
        "test": budget,
        "snapshots": _snapshots(run, found),
        "versions": versions(),
    }
    out = Path(options.out) if options.out else run.path / "diagnosis" / "overfitting.png"
    out.parent.mkdir(exist_ok=True)
    draw_overfitting(found, out, f"{run.path.name}: {record['method']} on {record['data']}")
    write_json(out.with_suffix(".json"), record)
    print(json.dumps(record, indent=2)) if options.json else histories.overfitting(record)
    print(f"wrote {out} and {out.with_suffix('.json')}", file=sys.stderr)
    return 0


def stored_reports(run: Run) -> tuple[dict[str, Report], dict[str, Any] | None]:
    """The evaluations of `best` and `final` on the run's own test images and budget, and what they have in common.

    Of all evaluations of the two those are taken that share the strongest attack; of one checkpoint's those of the most
    images, and then the newest.

    Returns:
        Reports by checkpoint, and norm, eps and n; None where there are no attacked images.

    Raises:
        RunError: An evaluation cannot be read.
    """
    from gambeson.app.compare import current_evaluations, is_own
    from gambeson.evaluation import Report

    own = {name: record for name, record in current_evaluations(run).items() if is_own(run, record)}
    kept = {at: {n: r for n, r in own.items() if r["checkpoint"] == at} for at in ("best", "final")}
    kept = {at: records for at, records in kept.items() if records}
    attacks = [{attack for record in records.values() for attack in record["attacks"]} for records in kept.values()]
    common = set.intersection(*attacks) - {"clean"} if attacks else set()
    if not common:
        return {}, None

    def chosen(records: dict[str, dict[str, Any]], attack: str) -> tuple[str, dict[str, Any]]:
        having = [(name, record) for name, record in records.items() if attack in record["attacks"]]
        return max(reversed(having), key=lambda pair: pair[1]["n"])

    last = list(kept.values())[-1]
    attack = min(sorted(common), key=lambda name: chosen(last, name)[1]["accuracy"][name]["value"])
    picked = {at: chosen(records, attack) for at, records in kept.items()}
    reports = {
        at: Report.from_record(record, run.outcomes(name), list(record["per_class"]["clean"]))
        for at, (name, record) in picked.items()
    }
    record = next(reversed(picked.values()))[1]
    return reports, {"attack": attack, "norm": record["norm"], "eps": record["eps"], "n": record["n"]}


def _snapshots(run: Run, found: Overfitting) -> list[dict[str, Any]]:
    """The snapshots of a run, and which of them are the two sides of the collapse."""
    sides: dict[int, str] = {}
    if found.collapse:
        sides[found.collapse.look.step] = "collapsed"
        if found.collapse.healthy:
            sides[found.collapse.healthy.step] = "healthy"
    return [{"name": name, "step": step, "look": sides.get(step)} for name, step in run.snapshots().items()]
