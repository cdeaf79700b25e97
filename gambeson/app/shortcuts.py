"""`gambeson diagnose shortcuts`: accuracy without some of the weights of former, middle and latter layers."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from gambeson.app.critical import choose_split
from gambeson.app.options import ShortcutsOptions
from gambeson.app.parsing import name_of, parse_run, require_positive
from gambeson.core.errors import InputError, require_known


def shortcuts(args: list[str]) -> int:
    """`gambeson diagnose shortcuts RUN [options]`."""
    description = (
        "Remove weights of some layers and measure: where accuracy under one step falls and under many steps rises,"
        " robustness to one step was a shortcut (LAP)."
    )
    path, options = parse_run("diagnose shortcuts", description, ShortcutsOptions, args)
    require_known("split", options.split, ("test", "val"))
    require_positive(options, "size", "batch_size")
    modes = [word.strip() for word in options.modes.split(",") if word.strip()]
    for mode in modes:
        require_known("mode", mode, ("largest", "smallest", "random"))
    shares, attacks = _shares(options.shares), _attacks(options.attack)
    from gambeson.app import build, layered, show, states
    from gambeson.diagnosis import draw_shortcuts, find_shortcuts
    from gambeson.diagnosis.groups import parse_groups
    from gambeson.diagnosis.pictures import require_picture
    from gambeson.engine.run import versions, write_json
    from gambeson.evaluation import parse_attack

    for attack in attacks:
        parse_attack(attack)
    if options.out:
        require_picture(Path(options.out))
    run = build.open_run(path)
    build.use_threads(run.call)
    threat = build.recipe(run.call).threat
    model, task, checkpoint, step = build.load_model(run, options.checkpoint, build.device(options.device))
    groups = parse_groups(model, options.groups)
    data = build.splits(run.call, options.data_dir)
    examples = choose_split(data, options.split, None).head(options.size)
    with show.progress(options.json) as bar:
        shown = bar.add_task("removing", total=1 + len(groups) * len(modes) * len(shares))
        found = find_shortcuts(
            model,
            examples.pixels,
            examples.y,
            threat,
            groups,
            num_classes=task.num_classes,
            modes=modes,  # type: ignore[arg-type]  # checked above
            shares=shares,
            attacks=attacks,
            pooled=options.pooled,
            batch_size=options.batch_size,
            seed=options.seed,
            progress=lambda: bar.advance(shown),
        )
    record: dict[str, Any] = {
        "run": str(run.path),
        "method": run.call["method"]["name"],
        "checkpoint": checkpoint,
        "step": step,
        "data": data.facts.name,
        "split": options.split,
        "selection": run.call.get("selection"),
        "unfinished": states.unfinished(run),
        **found.to_dict(),
        "versions": versions(),
    }
    shaping = ("groups", "modes", "shares", "attack", "pooled", "size", "seed")
    stem = name_of(f"shortcuts-{checkpoint}-{options.split}", options, *shaping)
    out = Path(options.out) if options.out else run.path / "diagnosis" / f"{stem}.png"
    out.parent.mkdir(exist_ok=True)
    heading = f"{run.path.name}, checkpoint {checkpoint} (step {step}), {data.facts.name} {options.split}"
    draw_shortcuts(found, out, f"{heading}, n = {len(examples)}")
    write_json(out.with_suffix(".json"), record)
    print(json.dumps(record, indent=2)) if options.json else layered.shortcuts(record)
    print(f"wrote {out} and {out.with_suffix('.json')}", file=sys.stderr)
    return 0


def _shares(text: str) -> list[float]:
    """Shares from percentages."""
    try:
        return [float(word) / 100 for word in text.split(",") if word.strip()]
    except ValueError:
        raise InputError(f"--shares are percentages, got {text!r}", hint="such as 1,5,10") from None


def _attacks(text: str) -> tuple[str, str]:
    """The two attacks."""
    words = [word.strip() for word in text.split(",") if word.strip()]
    if len(words) != 2:
        raise InputError(f"--attack names two attacks, got {text!r}", hint="one step and many: fgsm,pgd-10")
    return words[0], words[1]
