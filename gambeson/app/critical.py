"""`gambeson diagnose criticality`: which layers robustness needs, and which it does not."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gambeson.app.options import CriticalityOptions
from gambeson.app.parsing import name_of, parse_run
from gambeson.core.errors import DataError, InputError, require_known

if TYPE_CHECKING:
    from torch import nn

    from gambeson.core.threat import Threat
    from gambeson.data import Examples, Splits
    from gambeson.diagnosis import Criticality


def criticality(args: list[str]) -> int:
    """`gambeson diagnose criticality RUN [options]`."""
    description = "Measure how much robust loss every layer's weights can cost inside a small ball (MRC, RiFT)."
    path, options = parse_run("diagnose criticality", description, CriticalityOptions, args)
    if not 0 < options.memory < 1e6:
        raise InputError(f"--memory must be gigabytes above 0, got {options.memory:g}")
    if options.rel_step_size == 0:
        raise InputError("--rel-step-size must be above 0: an attack that makes no step finds nothing")
    if options.modules is not None and not options.modules.replace(",", " ").strip():
        raise InputError(f"--modules names no layer, got {options.modules!r}", hint="leave it out for all layers")
    from gambeson.app import build, layered, states
    from gambeson.diagnosis import draw_criticality
    from gambeson.diagnosis.pictures import require_picture
    from gambeson.engine.run import versions, write_json

    protocol_of(options.protocol)
    require_known("strategy", options.strategy, ("cached", "wavefront", "naive"))
    if options.out:
        require_picture(Path(options.out))
    run = build.open_run(path)
    build.use_threads(run.call)
    model, _, name, step = build.load_model(run, options.checkpoint, build.device(options.device))
    open_end = states.unfinished(run)
    data = build.splits(run.call, options.data_dir)
    stem = f"criticality-{options.protocol}-{name}-{options.split}"
    stem = name_of(stem, options, "size", "modules", "rel_step_size", "argmin_only", "seed")
    out = Path(options.out) if options.out else run.path / "diagnosis" / f"{stem}.svg"
    out.parent.mkdir(exist_ok=True)
    found = search(
        model,
        choose_split(data, options.split, options.size),
        build.recipe(run.call).threat,
        options.protocol,
        modules=options.modules,
        strategy=options.strategy,
        argmin_only=options.argmin_only,
        rel_step_size=options.rel_step_size,
        seed=options.seed,
        memory=int(options.memory * 2**30),
        store=out.with_suffix(".partial.json"),
        quiet=options.json,
    )
    record = {
        "run": str(run.path),
        "method": run.call["method"]["name"],
        "checkpoint": name,
        "step": step,
        "data": data.facts.name,
        "split": options.split,
        "selection": run.call.get("selection"),
        "unfinished": open_end,
        "rel_step_size": options.rel_step_size,
        "seed": options.seed,
        **found.to_dict(),
        "versions": versions(),
    }
    draw_criticality(found, out, run.path.name)
    write_json(out.with_suffix(".json"), record)
    out.with_suffix(".partial.json").unlink()
    print(json.dumps(record, indent=2)) if options.json else layered.criticality(record)
    print(f"wrote {out} and {out.with_suffix('.json')}", file=sys.stderr)
    return 0


def protocol_of(name: str) -> Any:
    """The protocol called `name`.

    Raises:
        InputError: Unknown.
    """
    from gambeson.diagnosis import PROTOCOLS

    require_known("protocol", name, tuple(PROTOCOLS))
    return PROTOCOLS[name]


def choose_split(data: Splits, split: str, size: int | None, instead: str = "--split test") -> Examples:
    """The examples of a split, or the first `size` of them; `instead` are the options that take the test split.

    Raises:
        InputError: An unknown split, or a size that does not fit.
        DataError: The split is empty.
    """
    require_known("split", split, ("val", "test", "train"))
    examples: Examples = getattr(data, split)
    if len(examples) == 0:
        raise DataError(
            f"the {split} split is empty: the run held nothing out",
            hint=f"{instead}, which then selects on test, or train with --val-fraction 0.05",
        )
    if size is not None and not 1 <= size <= len(examples):
        raise InputError(f"between 1 and the {len(examples)} images of the {split} split can be taken, got {size}")
    return examples if size is None else examples.head(size)


def search(
    model: nn.Module,
    examples: Examples,
    threat: Threat,
    protocol: str,
    *,
    modules: str | None = None,
    strategy: Any = "cached",
    argmin_only: bool = False,
    rel_step_size: float = 0.25,
    seed: int = 0,
    memory: int = 4 * 2**30,
    store: Path | None = None,
    quiet: bool = False,
) -> Criticality:
    """Make the adversarial images and search every layer, with progress on the terminal; see `measure_criticality`."""
    from gambeson.app import show
    from gambeson.core.layout import preferred_layout
    from gambeson.diagnosis import adversarial_set, measure_criticality
    from gambeson.diagnosis.suffix import critical_layers

    settings = protocol_of(protocol)
    names = [word.strip() for word in modules.split(",") if word.strip()] if modules else None
    wanted = list(critical_layers(model, names))  # unknown names are said before any attack
    device = next(model.parameters()).device
    with show.progress(quiet) as bar:
        task = bar.add_task("attacking", total=len(examples))
        advance: Callable[[int], None] = lambda done: bar.advance(task, done)  # noqa: E731
        x = adversarial_set(
            model, examples.pixels, examples.y, threat, rel_step_size=rel_step_size, seed=seed, progress=advance
        )
        x = x.contiguous(memory_format=preferred_layout(model, device))
        bar.update(task, description="criticality", total=len(wanted) * settings.epochs, completed=0)

        def one_epoch(layer: str) -> None:
            bar.update(task, description=f"criticality of {layer}", advance=1)

        return measure_criticality(
            model,
            x,
            examples.y.to(device),
            settings,
            layers=names,
            strategy=strategy,
            argmin_only=argmin_only,
            seed=seed,
            memory=memory,
            store=store,
            progress=one_epoch,
        )
