"""`gambeson doctor`: what would make the number of an evaluation wrong, before there is one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gambeson.app.options import DoctorOptions, ImportOptions
from gambeson.app.parsing import Parser, UsageError, options_of, require_positive, split_words
from gambeson.core.errors import DataError, FileError, require_known

if TYPE_CHECKING:
    from torch import Tensor, nn

    from gambeson.core.threat import Threat
    from gambeson.core.types import Task
    from gambeson.data import Splits

OF_A_FILE = ("model", "width", "key", "mean", "std", "size")
"""Options that a run has already answered."""


def doctor(args: list[str]) -> int:
    """`gambeson doctor RUN|FILE [options]`."""
    parser = Parser(
        "gambeson doctor RUN|FILE",
        "Check a model and its data for what makes the number of an evaluation wrong: a run, or a checkpoint that"
        " something else trained with --model and --data, as for `gambeson import`. Exit code 1 if there is an error.",
    )
    parser.add(DoctorOptions)
    if "-h" in args or "--help" in args:
        parser.parse(["--help"])
    words, rest = split_words(args, parser.flags)
    usage = "gambeson doctor runs/digits-n-lap-1, or gambeson doctor FILE --model wrn-34-10 --data cifar10"
    if len(words) != 1:
        raise UsageError(f"doctor needs one run directory or checkpoint file, got {len(words)}", hint=usage)
    path, options = Path(words[0]), options_of(DoctorOptions, parser.parse(rest))
    require_known("split", options.split, ("test", "val"))
    require_positive(options, "images")
    if path.is_file():
        missing = [f"--{name}" for name in ("model", "data") if getattr(options, name) is None]
        if missing:
            raise UsageError(f"a checkpoint file needs {' and '.join(missing)}: it does not say", hint=usage)
    else:
        given = [f"--{name}" for name in OF_A_FILE if getattr(options, name) is not None]
        if given and not path.exists():
            raise FileError(f"there is no file {path}", hint=usage)
        if given and not (given == ["--size"] and options.data):
            raise UsageError(f"{', '.join(given)} is for a checkpoint file: a run says it itself", hint=usage)

    from gambeson.app import build, show, verdicts
    from gambeson.engine.run import versions
    from gambeson.evaluation import examine

    with show.progress(options.json) as bar:
        bar.add_task("examining", total=None)
        described, model, task, data, threat = _of_file(path, options) if path.is_file() else _of_run(path, options)
        build.require_fit(task, data.facts)
        examples = data.test if options.split == "test" else data.val
        if len(examples) == 0:
            raise DataError(
                f"the {options.split} split is empty: nothing was held out", hint="examine with the test split"
            )
        found = examine(model, examples.x, examples.y, threat, num_classes=task.num_classes, images=options.images)
    record = {
        **described,
        "data": data.facts.name,
        "split": options.split,
        "n": len(examples),
        "norm": threat.norm,
        "eps": threat.eps,
        "normalisation": {
            "layers": _normalisers(model, task.channels),
            "data": {"mean": list(data.facts.mean), "std": list(data.facts.std)},
        },
        **found.to_dict(),
        "versions": versions(),
    }
    print(json.dumps(record, indent=2)) if options.json else verdicts.examination(record)
    return 1 if found.errors else 0


def _normalisers(model: nn.Module, channels: int) -> list[dict[str, Any]]:
    """The constants that the model normalises with, layer by layer, in as many digits as float32 has."""
    from gambeson.evaluation.normalisation import normalisers

    def digits(values: Tensor) -> list[float]:
        return [float(f"{value:.7g}") for value in values.tolist()]

    found = normalisers(model, channels)
    return [{"layer": name, "mean": digits(mean), "std": digits(std)} for name, (_, mean, std) in found.items()]


def _of_run(path: Path, options: DoctorOptions) -> tuple[dict[str, Any], nn.Module, Task, Splits, Threat]:
    from gambeson.app import build, states
    from gambeson.data import load

    run = build.open_run(path)
    build.use_threads(run.call)
    threat = build.threat_of(build.recipe(run.call).threat, options.norm, options.eps)
    model, task, name, step = build.load_model(run, options.checkpoint, build.device(options.device))
    open_end = states.unfinished(run)
    if options.data:
        size = options.size or (task.size if options.data.startswith("folder:") else None)
        fraction = 0 if options.split == "test" else 0.05
        data = load(options.data, options.data_dir, size=size, val_fraction=fraction, stream="auto")
    else:
        data = build.splits(run.call, options.data_dir)
    described = {"of": str(path), "checkpoint": name, "step": step, "unfinished": open_end}
    return described, model, task, data, threat


def _of_file(path: Path, options: DoctorOptions) -> tuple[dict[str, Any], nn.Module, Task, Splits, Threat]:
    from gambeson.app import build
    from gambeson.app.importing import read_foreign
    from gambeson.core.threat import create_threat

    assert options.model is not None
    assert options.data is not None
    where = build.device(options.device)
    norm = create_threat(options.norm or "Linf", 1.0).norm  # any case
    foreign = read_foreign(
        path,
        ImportOptions(
            model=options.model,
            data=options.data,
            eps=options.eps,
            norm="L2" if norm == "L2" else "Linf",
            width=options.width,
            key=options.key,
            mean=options.mean,
            std=options.std,
            data_dir=options.data_dir,
            size=options.size,
        ),
    )
    described = {"of": str(path), "checkpoint": foreign.key, "step": None, "unfinished": None}
    threat = build.recipe(foreign.call).threat
    return described, foreign.model.to(where).eval(), foreign.task, build.splits(foreign.call), threat
