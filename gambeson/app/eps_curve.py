"""`gambeson diagnose eps`: accuracy against the budget, and how far images must be moved."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gambeson.app.critical import choose_split
from gambeson.app.options import EpsOptions
from gambeson.app.parsing import name_of, parse_run, require_positive
from gambeson.core.errors import InputError, require_known

if TYPE_CHECKING:
    from torch import Tensor

    from gambeson.core.threat import Threat
    from gambeson.evaluation import Curve


def eps(args: list[str]) -> int:
    """`gambeson diagnose eps RUN [options]`."""
    description = "Measure accuracy against the budget; images that fell at a smaller one are not attacked again."
    path, options = parse_run("diagnose eps", description, EpsOptions, args)
    require_known("split", options.split, ("test", "val"))
    require_positive(options, "test_size", "batch_size")
    import numpy as np

    from gambeson.app import build, findings, show, states
    from gambeson.core.threat import create_threat
    from gambeson.diagnosis import draw_curve
    from gambeson.diagnosis.pictures import require_picture
    from gambeson.engine.run import versions, write_json
    from gambeson.evaluation import minimal_norms, parse_attack, parse_budgets, robust_curve

    if parse_attack(options.attack) is None:
        raise InputError("--attack clean is no attack", hint="accuracy without attack is measured always, as eps 0")
    given = None if options.eps_grid is None else parse_budgets(options.eps_grid)
    if options.out:
        require_picture(Path(options.out))
    run = build.open_run(path)
    build.use_threads(run.call)
    threat = build.recipe(run.call).threat
    norm = create_threat(options.norm or threat.norm, 1.0).norm
    grid = given or default_grid(threat, norm)
    for one in grid[1:]:
        create_threat(norm, one)  # refuses what is out of range before any work
    model, task, checkpoint, step = build.load_model(run, options.checkpoint, build.device(options.device))
    open_end = states.unfinished(run)
    data = build.splits(run.call, options.data_dir)
    examples = choose_split(data, options.split, None)
    if options.test_size is not None:
        examples = examples.head(options.test_size)
    x, n, norms = examples.pixels, len(examples), None
    settings: dict[str, Any] = {"num_classes": task.num_classes, "norm": norm, "batch_size": options.batch_size}
    with show.progress(options.json) as bar:
        shown = bar.add_task("attacking", total=n * len(grid))
        settings["progress"] = lambda done: bar.advance(shown, done)
        found = robust_curve(model, x, examples.y, options.attack, grid, seed=options.seed, **settings)
        if options.minimal:
            bar.update(shown, description="DeepFool", total=n, completed=0)
            norms = minimal_norms(model, x, examples.y, **settings)
    budget = float(threat.eps) if norm == threat.norm else None
    record: dict[str, Any] = {
        "run": str(run.path),
        "method": run.call["method"]["name"],
        "checkpoint": checkpoint,
        "step": step,
        "data": data.facts.name,
        "split": options.split,
        "selection": run.call.get("selection"),
        "unfinished": open_end,
        "budget": {"norm": threat.norm, "eps": float(threat.eps)},
        **found.to_dict(),
        "minimal": None if norms is None else described(norms, found),
        "versions": versions(),
    }
    stem = f"eps-{options.attack}-{norm}-{checkpoint}-{options.split}".lower()
    stem = name_of(stem, options, "eps_grid", "minimal", "test_size", "seed")
    out = Path(options.out) if options.out else run.path / "diagnosis" / f"{stem}.png"
    out.parent.mkdir(exist_ok=True)
    draw_curve(found, out, f"{run.path.name}, {data.facts.name} {options.split}", budget=budget, norms=norms)
    arrays = {"y": found.y.numpy(), "fell": found.fell.numpy()}
    arrays |= {} if norms is None else {"norms": norms.numpy()}
    np.savez_compressed(out.with_suffix(".npz"), **arrays)  # type: ignore[arg-type]
    write_json(out.with_suffix(".json"), record)
    print(json.dumps(record, indent=2)) if options.json else findings.eps(record)
    print(f"wrote {out}, {out.with_suffix('.json')} and {out.with_suffix('.npz')}", file=sys.stderr)
    return 0


def default_grid(threat: Threat, norm: str) -> tuple[float, ...]:
    """Nine budgets from 0 to twice the run's, in quarters of it.

    Raises:
        InputError: The norm is not the run's, of whose budget nothing follows for it.
    """
    if norm != threat.norm:
        raise InputError(
            f"the run's budget is one of {threat.norm}, a grid of {norm} must be given",
            hint="such as --eps-grid 0:1:0.125" if norm == "L2" else "such as --eps-grid 0:16/255:2/255",
        )
    largest = 1.0 if norm == "Linf" else float("inf")
    return (0.0, *sorted({min(largest, float(threat.eps) * k / 4) for k in range(1, 9)}))


def described(norms: Tensor, found: Curve) -> dict[str, Any]:
    """Minimal norms in short, for the record."""
    from gambeson.evaluation.curve import surviving

    moved = norms[(norms > 0) & norms.isfinite()]
    quartiles = [float(moved.quantile(q)) for q in (0.25, 0.5, 0.75)] if len(moved) else [None] * 3
    return {
        "method": "deepfool",
        "moved": len(moved),
        "wrong": int((norms == 0).sum()),
        "not_found": int(norms.isinf().sum()),
        **dict(zip(("lower_quartile", "median", "upper_quartile"), quartiles, strict=True)),
        "points": [{"eps": one, **vars(surviving(norms, one))} for one in found.grid],
        "only_deepfool": [int(((norms <= one) & (found.fell > one)).sum()) for one in found.grid],
    }
