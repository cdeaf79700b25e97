"""`gambeson diagnose landscape`: the loss around the weights of some layers, at any checkpoints of a run."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from gambeson.app.critical import choose_split
from gambeson.app.options import LandscapeOptions
from gambeson.app.parsing import name_of, parse_run, require_positive
from gambeson.core.errors import InputError, require_known


def landscape(args: list[str]) -> int:
    """`gambeson diagnose landscape RUN [options]`."""
    description = "Draw the loss around the weights of single layers, of groups of layers, or around the images."
    path, options = parse_run("diagnose landscape", description, LandscapeOptions, args)
    require_known("split", options.split, ("test", "val", "train"))
    require_positive(options, "size", "batch_size")
    if not 0 < options.memory < 1e6:
        raise InputError(f"--memory must be gigabytes above 0, got {options.memory:g}")
    if options.dims not in (1, 2):
        raise InputError(f"--dims is 1 or 2, got {options.dims}")
    from gambeson.app import build, layered, show, states
    from gambeson.diagnosis import draw_landscapes
    from gambeson.diagnosis.groups import parse_groups
    from gambeson.diagnosis.landscape import grid_axis, input_landscape, weight_landscape
    from gambeson.diagnosis.pictures import require_picture
    from gambeson.diagnosis.probes import attacked_images
    from gambeson.engine.run import versions, write_json
    from gambeson.evaluation import parse_attack

    axis = grid_axis(options.points, options.span)
    parse_attack(options.inputs)
    if options.out:
        require_picture(Path(options.out))
    run = build.open_run(path)
    build.use_threads(run.call)
    threat, where = build.recipe(run.call).threat, build.device(options.device)
    checkpoints = build.listed_checkpoints(run, options.checkpoint, "best, or best,final, or snapshots")
    words = [word for word in options.groups.split(",") if word.strip() != "input"]
    with_input = len(words) < len(options.groups.split(","))
    if with_input and options.dims == 1:
        raise InputError("the landscape of the input has two directions", hint="leave out --dims 1 or the group input")
    models = [build.load_model(run, name, where) for name in checkpoints]
    groups = parse_groups(models[0][0], ",".join(words)) if words or not with_input else {}
    data = build.splits(run.call, options.data_dir)
    examples = choose_split(data, options.split, None).head(options.size)
    n, points = len(examples), options.points**options.dims
    total = len(models) * points * n * (len(groups) + with_input)
    if total > options.budget:
        raise InputError(
            f"this takes {total:,} images through the model, more than --budget {options.budget:,}",
            hint="fewer --points, --groups or --size, or a larger --budget",
        )
    found: dict[str, list[Any]] = {}
    with show.progress(options.json) as bar:
        task = bar.add_task("walking", total=points * (len(groups) + with_input) * len(models))
        common: dict[str, Any] = {
            "axis": axis,
            "batch_size": options.batch_size,
            "seed": options.seed,
            "progress": lambda: bar.advance(task),
        }
        moving: dict[str, Any] = {"dims": options.dims, "memory": int(options.memory * 2**30)}
        x = examples.pixels
        for model, _, name, step in models:
            images = attacked_images(
                model,
                x,
                examples.y,
                options.inputs,
                threat,
                batch_size=options.batch_size,
                seed=options.seed,
            )
            rows = [
                weight_landscape(model, images, examples.y, layers, title=group, **moving, **common)
                for group, layers in groups.items()
            ]
            if with_input:
                rows.append(input_landscape(model, x, examples.y, threat, **common))
            found[f"{name} (step {step})"] = rows
    record = {
        "run": str(run.path),
        "method": run.call["method"]["name"],
        "data": data.facts.name,
        "split": options.split,
        "n": n,
        "inputs": options.inputs,
        "norm": threat.norm,
        "eps": float(threat.eps),
        "selection": run.call.get("selection"),
        "unfinished": states.unfinished(run),
        "landscapes": {name: [one.to_dict() for one in rows] for name, rows in found.items()},
        "versions": versions(),
    }
    shaping = ("groups", "points", "span", "dims", "checkpoint", "size", "seed")
    stem = name_of(f"landscape-{options.inputs}-{options.split}", options, *shaping)
    out = Path(options.out) if options.out else run.path / "diagnosis" / f"{stem}.png"
    out.parent.mkdir(exist_ok=True)
    draw_landscapes(found, out, f"{run.path.name}, {data.facts.name} {options.split}, {options.inputs} images, n = {n}")
    write_json(out.with_suffix(".json"), record)
    print(json.dumps(record, indent=2)) if options.json else layered.landscapes(record)
    print(f"wrote {out} and {out.with_suffix('.json')}", file=sys.stderr)
    return 0
