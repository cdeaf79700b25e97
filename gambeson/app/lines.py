"""`gambeson interpolate`: the models on the straight line between two runs."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from gambeson.app.critical import choose_split
from gambeson.app.options import InterpolateOptions
from gambeson.app.parsing import Parser, UsageError, name_of, options_of, split_words
from gambeson.core.errors import CheckpointError, InputError, require_known


def interpolate(args: list[str]) -> int:
    """`gambeson interpolate RUN RUN [options]`."""
    parser = Parser(
        "gambeson interpolate RUN RUN", "Measure the models on the straight line between the weights of two runs."
    )
    parser.add(InterpolateOptions)
    if "-h" in args or "--help" in args:
        parser.parse(["--help"])
    words, rest = split_words(args, parser.flags)
    if len(words) != 2:
        raise UsageError(
            f"interpolate needs two run directories, got {len(words)}",
            hint="gambeson interpolate runs/digits-pgd-at-1 runs/digits-pgd-at-1-rift-1",
        )
    options = options_of(InterpolateOptions, parser.parse(rest))
    require_known("split", options.split, ("val", "test"))
    if options.reestimate_bn is not None and options.reestimate_bn < 1:
        raise InputError(f"--reestimate-bn must be at least 1 image, got {options.reestimate_bn}")
    if options.tolerance < 0:
        raise InputError(f"--tolerance must be at least 0 points, got {options.tolerance:g}")
    names = chosen_checkpoints(options.checkpoint)
    from gambeson.app import build, findings, show, states
    from gambeson.attacks.pgd import PGD
    from gambeson.diagnosis.pictures import require_picture
    from gambeson.engine.run import versions, write_json
    from gambeson.finetuning import draw_line, parse_alphas, walk

    alphas = parse_alphas(options.alphas)
    if options.out:
        require_picture(Path(options.out))
    first, second = (build.open_run(Path(word)) for word in words)
    build.use_threads(first.call)
    where = build.device(options.device)
    model, task, name, step = build.load_model(first, names[0], where)
    other, other_task, other_name, other_step = build.load_model(second, names[1], where)
    open_ends = [states.unfinished(run) for run in (first, second)]
    if task != other_task:
        shapes = [f"{t.channels}x{t.size}x{t.size} images of {t.num_classes} classes" for t in (task, other_task)]
        what = " and ".join(shapes) if shapes[0] != shapes[1] else f"both {shapes[0]}, normalised differently"
        raise CheckpointError(f"{first.path} and {second.path} are models of different data: {what}")
    data = build.splits(first.call, options.data_dir)
    examples = choose_split(data, options.split, options.size)
    if options.reestimate_bn is not None and options.reestimate_bn > len(data.train):
        raise InputError(
            f"--reestimate-bn can take the {len(data.train):,} training images at most, got {options.reestimate_bn}"
        )
    with show.progress(options.json) as bar:
        progress = bar.add_task("interpolating", total=len(examples) * len(alphas))
        found = walk(
            model,
            model.state_dict(),
            other.state_dict(),
            examples.pixels,
            examples.y,
            build.recipe(first.call).threat,
            num_classes=data.facts.num_classes,
            alphas=alphas,
            entries=options.entries,  # type: ignore[arg-type]  # checked there
            statistics_from=data.train.x[: options.reestimate_bn] if options.reestimate_bn else None,
            tolerance=options.tolerance / 100,
            attack=PGD(steps=10, rel_step_size=options.rel_step_size),
            runs=options.pgd_runs,
            seed=options.seed,
            progress=lambda done: bar.advance(progress, done),
        )
    record = {
        "runs": [str(first.path), str(second.path)],
        "checkpoints": [name, other_name],
        "steps": [step, other_step],
        "data": data.facts.name,
        "split": options.split,
        "selection": [run.call.get("selection") for run in (first, second)],
        "unfinished": open_ends,
        "entries": options.entries,
        "reestimate_bn": options.reestimate_bn,
        "pgd_runs": options.pgd_runs,
        "rel_step_size": options.rel_step_size,
        "seed": options.seed,
        **found.to_dict(),
        "versions": versions(),
    }
    named = f"line-from-{first.path.name}-{name}{f'-to-{other_name}' * (other_name != name)}-{options.split}"
    named += "" if options.entries == "full-state" else f"-{options.entries}"
    shaping = ("alphas", "size", "reestimate_bn", "tolerance", "pgd_runs", "rel_step_size", "seed")
    named = name_of(named, options, *shaping)
    out = Path(options.out) if options.out else second.path / "diagnosis" / f"{named}.svg"
    out.parent.mkdir(exist_ok=True)
    draw_line(found, out, f"{first.path.name} to {second.path.name}")
    write_json(out.with_suffix(".json"), record)
    print(json.dumps(record, indent=2)) if options.json else findings.line(record)
    print(f"wrote {out} and {out.with_suffix('.json')}", file=sys.stderr)
    return 0


def chosen_checkpoints(text: str) -> tuple[str, str]:
    """The checkpoints of the first and the second run: one name for both, or two, comma-separated.

    Raises:
        InputError: None, or more than two.

    Examples:
        >>> chosen_checkpoints("base, finetuned")
        ('base', 'finetuned')
    """
    words = [word.strip() for word in text.split(",")]
    if len(words) > 2 or not all(words):
        raise InputError(
            f"--checkpoint names one checkpoint of both runs or one of each, got {text!r}",
            hint="such as --checkpoint best,finetuned",
        )
    return words[0], words[-1]
