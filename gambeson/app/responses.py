"""`gambeson diagnose response`: loss and accuracy when single layers' weights move, at any checkpoints of a run."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from gambeson.app.critical import choose_split
from gambeson.app.options import ResponseOptions
from gambeson.app.parsing import name_of, parse_run, require_positive
from gambeson.core.errors import InputError, require_known


def response(args: list[str]) -> int:
    """`gambeson diagnose response RUN [options]`."""
    description = (
        "Move the weights of single layers and of groups a little, up the gradient or at random, and measure what loss"
        " and accuracy do, on clean and on attacked images."
    )
    path, options = parse_run("diagnose response", description, ResponseOptions, args)
    require_known("split", options.split, ("test", "val", "train"))
    require_positive(options, "size", "batch_size")
    if not 0 < options.memory < 1e6:
        raise InputError(f"--memory must be gigabytes above 0, got {options.memory:g}")
    kinds = _words(options.kinds, "--kinds", "adversarial,random")
    for kind in kinds:
        require_known("kind", kind, ("adversarial", "random"))
    inputs = _words(options.inputs, "--inputs", "clean,fgsm,pgd-10")
    rhos = _shares(options.rho)
    from gambeson.app import build, layered, show, states
    from gambeson.diagnosis import draw_responses, measure_response
    from gambeson.diagnosis.groups import parse_groups
    from gambeson.diagnosis.pictures import require_picture
    from gambeson.engine.run import versions, write_json
    from gambeson.evaluation import parse_attack

    for name in inputs:
        parse_attack(name)
    if options.out:
        require_picture(Path(options.out))
    run = build.open_run(path)
    build.use_threads(run.call)
    threat, where = build.recipe(run.call).threat, build.device(options.device)
    checkpoints = build.listed_checkpoints(run, options.checkpoint, "best, or best,final, or snapshots")
    models = [build.load_model(run, name, where) for name in checkpoints]
    groups = parse_groups(models[0][0], options.groups)
    data = build.splits(run.call, options.data_dir)
    examples = choose_split(data, options.split, None).head(options.size)
    x, found = examples.pixels, {}
    with show.progress(options.json) as bar:
        total = len(models) * len(inputs) * len(groups) * len(kinds) * len(rhos)
        shown = bar.add_task("moving", total=total)
        for model, task, name, step in models:
            found[f"{name} (step {step})"] = measure_response(
                model,
                x,
                examples.y,
                threat,
                groups,
                num_classes=task.num_classes,
                inputs=inputs,
                kinds=kinds,  # type: ignore[arg-type]  # checked above
                rhos=rhos,
                remake=options.remake,
                batch_size=options.batch_size,
                seed=options.seed,
                memory=int(options.memory * 2**30),
                progress=lambda: bar.advance(shown),
            )
    record: dict[str, Any] = {
        "run": str(run.path),
        "method": run.call["method"]["name"],
        "data": data.facts.name,
        "split": options.split,
        "n": len(examples),
        "norm": threat.norm,
        "eps": float(threat.eps),
        "selection": run.call.get("selection"),
        "unfinished": states.unfinished(run),
        "responses": {name: one.to_dict() for name, one in found.items()},
        "versions": versions(),
    }
    shaping = ("groups", "rho", "kinds", "inputs", "remake", "checkpoint", "size", "seed")
    stem = name_of(f"response-{options.split}", options, *shaping)
    out = Path(options.out) if options.out else run.path / "diagnosis" / f"{stem}.png"
    out.parent.mkdir(exist_ok=True)
    draw_responses(found, out, f"{run.path.name}, {data.facts.name} {options.split}, n = {len(examples)}")
    write_json(out.with_suffix(".json"), record)
    print(json.dumps(record, indent=2)) if options.json else layered.responses(record)
    print(f"wrote {out} and {out.with_suffix('.json')}", file=sys.stderr)
    return 0


def _words(text: str, option: str, example: str) -> list[str]:
    """The words of a list, each once.

    Raises:
        InputError: There are none.
    """
    words = list(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))
    if not words:
        raise InputError(f"{option} names nothing, got {text!r}", hint=f"such as {example}")
    return words


def _shares(text: str) -> list[float]:
    """Shares from percentages, ascending.

    Raises:
        InputError: Not numbers, or not above 0.
    """
    words = _words(text, "--rho", "0.5,1,2,5")
    try:
        shares = sorted(float(word) / 100 for word in words)
    except ValueError:
        raise InputError(f"--rho needs percentages, got {text!r}", hint="such as 0.5,1,2,5") from None
    if not all(0 < share < float("inf") for share in shares):
        raise InputError(f"--rho needs percentages above 0, got {text!r}", hint="such as 0.5,1,2,5")
    return shares
