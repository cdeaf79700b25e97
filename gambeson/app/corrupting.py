"""`gambeson corruptions`: a run under common corruptions, generated or published."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gambeson.app.options import CorruptionOptions
from gambeson.app.parsing import name_of, parse_run, require_positive
from gambeson.core.errors import InputError, nearest, require_known

if TYPE_CHECKING:
    from gambeson.data import Examples

FROST_NOTE = "frost: the textures are generated, not the published photographs; its numbers are not comparable"
GENERATED_NOTE = "images generated from the published parameters: equal to the published files in distribution only"


def corruptions(args: list[str]) -> int:
    """`gambeson corruptions RUN [options]`."""
    description = "Measure accuracy under common corruptions; outcomes per image are kept in the run."
    path, options = parse_run("corruptions", description, CorruptionOptions, args)
    names, levels = check(options)
    import numpy as np

    from gambeson.app import build, show, states
    from gambeson.app.corruption_picture import draw_corruptions, print_corruptions
    from gambeson.data.corrupted import require_published
    from gambeson.data.corruptions import table_name
    from gambeson.diagnosis.pictures import require_picture
    from gambeson.engine.run import versions, write_json
    from gambeson.evaluation import evaluate_corruptions

    if options.out:
        require_picture(Path(options.out))
    run = build.open_run(path)
    build.use_threads(run.call)
    root = options.data_dir or run.call["data"]["dir"]
    if options.published:
        require_published(run.call["data"]["name"], root, names, levels)
    model, task, checkpoint, step = build.load_model(run, options.checkpoint, build.device(options.device))
    data = build.splits(run.call, options.data_dir)
    clean: Examples | None = data.test.head(options.test_size)
    if options.published:
        source, clean = published(data.facts.name, root, options.test_size, clean)
    else:
        source = _generated(data.test.head(options.test_size), names, options)
    generated_frost = "frost" in names and not options.published and options.frost_textures is None
    described = {
        "run": str(run.path),
        "method": run.call["method"]["name"],
        "checkpoint": checkpoint,
        "step": step,
        "data": data.facts.name,
        "selection": run.call.get("selection"),
        "unfinished": states.unfinished(run),
        "set": options.set if options.corruptions is None else None,
        "source": "published" if options.published else "generated",
        "parameters": None if options.published else table_name(task.size),
        "seed": None if options.published else options.seed,
        "frost_textures": "generated" if generated_frost else options.frost_textures,
    }
    with show.progress(options.json) as bar:
        shown = bar.add_task("corrupting", total=len(names) * len(levels))
        report = evaluate_corruptions(
            model,
            source,
            names,
            num_classes=task.num_classes,
            severities=levels,
            clean=clean,
            batch_size=options.batch_size,
            settings=described,
            progress=lambda name, level: bar.update(shown, advance=1, description=f"{name} {level}"),
        )
    notes = [] if options.published else [GENERATED_NOTE]
    notes += [FROST_NOTE] if generated_frost else []
    record: dict[str, Any] = {**report.to_dict(), "notes": notes, "versions": versions()}
    out = Path(options.out) if options.out else run.path / "diagnosis" / f"{record_name(checkpoint, options)}.png"
    out.parent.mkdir(exist_ok=True)
    draw_corruptions(report, out, f"{run.path.name}, {data.facts.name}")
    arrays = {"y": report.y.numpy(), **({"clean": report.clean.numpy()} if report.clean is not None else {})}
    arrays |= {f"{name}-{level}": correct.numpy() for (name, level), correct in report.outcomes.items()}
    np.savez_compressed(out.with_suffix(".npz"), **arrays)  # type: ignore[arg-type]
    write_json(out.with_suffix(".json"), record)
    if options.json:
        print(json.dumps(record, indent=2))
    else:
        print_corruptions(report, notes)
        show.stamp(record["selection"])
    print(f"wrote {out}, {out.with_suffix('.json')} and {out.with_suffix('.npz')}", file=sys.stderr)
    return 0


def check(options: CorruptionOptions) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """The corruptions and severities of the options, which are refused where that needs no data.

    Raises:
        InputError: Unknown corruptions or severities, or options that contradict each other.
    """
    names, levels = chosen_corruptions(options), chosen_severities(options.severities)
    require_positive(options, "test_size", "batch_size")
    if options.published and options.frost_textures:
        raise InputError("--frost-textures is for generated images, --published reads finished ones")
    return names, levels


def record_name(checkpoint: str, options: CorruptionOptions) -> str:
    """The name of the record in RUN/diagnosis, without its ending.

    Examples:
        >>> record_name("final", CorruptionOptions(set="rift18", test_size=100))
        'corruptions-final-rift18-test-size-100'
    """
    stem = f"corruptions-{Path(checkpoint).stem}-{options.set}" if options.corruptions is None else ""
    stem = stem or name_of(f"corruptions-{Path(checkpoint).stem}", options, "corruptions")
    stem += "-published" if options.published else ""
    return name_of(stem, options, "severities", "test_size", "frost_textures", "seed")


def chosen_corruptions(options: CorruptionOptions) -> tuple[str, ...]:
    """The corruptions of the options: those named, else those of the set.

    Raises:
        InputError: Unknown names, or none.
    """
    from gambeson.data.corruptions.names import CORRUPTIONS, SETS

    require_known("set", options.set, tuple(SETS))
    if options.corruptions is None:
        return SETS[options.set]
    words = [word.strip().lower().replace("-", "_") for word in options.corruptions.split(",") if word.strip()]
    if not words:
        raise InputError("--corruptions names none", hint="gambeson list corruptions")
    for word in words:
        if word not in CORRUPTIONS:
            raise InputError(f"unknown corruption {word!r}", hint=nearest(word, CORRUPTIONS))
    return tuple(dict.fromkeys(words))


def chosen_severities(text: str) -> tuple[int, ...]:
    """The severities in a comma-separated list, ascending.

    Raises:
        InputError: Anything but numbers from 1 to 5, or none.

    Examples:
        >>> chosen_severities("5,1")
        (1, 5)
    """
    words = [word.strip() for word in text.split(",") if word.strip()]
    if not words or any(word not in ("1", "2", "3", "4", "5") for word in words):
        raise InputError(f"--severities must be numbers from 1 to 5, got {text!r}", hint="such as --severities 1,3,5")
    return tuple(sorted({int(word) for word in words}))


def _generated(
    examples: Examples, names: tuple[str, ...], options: CorruptionOptions
) -> Callable[[str, int], Examples]:
    from gambeson.data import corrupt
    from gambeson.data.corruptions import read_textures

    textures = read_textures(Path(options.frost_textures)) if options.frost_textures else None
    for name in names:  # whatever cannot be done is said before the work
        corrupt(examples.x[:1], name, 1, textures=textures)

    pixels = examples.pixels

    def source(name: str, level: int) -> Examples:
        return replace(examples, x=corrupt(pixels, name, level, seed=options.seed, textures=textures))

    return source


def published(
    name: str, root: str | None, limit: int | None, test: Examples | None
) -> tuple[Callable[[str, int], Examples], Examples | None]:
    """The reader of published files for `evaluate_corruptions`, and the clean images of the same.

    Args:
        name: The data set.
        root: Folder of the data sets.
        limit: Only that many images.
        test: The test set's images.

    Returns:
        The reader; and `test`, or None for Tiny-ImageNet-C, whose images are not those of the test set.
    """
    from gambeson.data import read_corrupted

    def source(corruption: str, level: int) -> Examples:
        return read_corrupted(name, root, corruption, level, limit)

    return source, None if name == "tiny-imagenet" else test
