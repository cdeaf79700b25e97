"""`gambeson import`: a run directory around a checkpoint that something else trained."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gambeson.app.options import ImportOptions, TrainOptions
from gambeson.app.parsing import Parser, UsageError, options_of, split_words
from gambeson.core.errors import CheckpointError, InputError
from gambeson.engine.settings import Settings

if TYPE_CHECKING:
    from torch import Tensor, nn

    from gambeson.core.types import Task
    from gambeson.engine.run import Run
    from gambeson.models.foreign import Fitted

TOLERANCE = 1e-6
"""Constants of the normalisation that differ by less are the same number in float32."""


@dataclass(frozen=True)
class Foreign:
    """A checkpoint that something else trained, understood.

    Attributes:
        call: The record of a run of it.
        task: The data, with the normalisation of the options.
        key: Where in the file the state dict was found, None for the file as a whole.
        fitted: Its weights under our names.
        model: The network with these weights.
    """

    call: dict[str, Any]
    task: Task
    key: str | None
    fitted: Fitted
    model: nn.Module


def import_(args: list[str]) -> int:
    """`gambeson import FILE --model NAME --data NAME [options]`."""
    parser = Parser(
        "gambeson import FILE",
        "Make a run of a checkpoint that something else trained (.safetensors, or torch.save's .pt, .pth, .pt.tar, .bin"
        " that hold tensors only), for evaluate, diagnose and the other commands.",
    )
    parser.add(ImportOptions)
    if "-h" in args or "--help" in args:
        parser.parse(["--help"])
    words, rest = split_words(args, parser.flags)
    usage = "gambeson import FILE --model wrn-34-10 --data cifar10"
    if len(words) != 1:
        raise UsageError(f"import needs one file, got {len(words)}", hint=usage)
    missing = [f"--{name}" for name in ("model", "data") if not any(a.split("=")[0] == f"--{name}" for a in rest)]
    if missing:
        raise UsageError(f"import needs {' and '.join(missing)}: the file does not say", hint=usage)
    options = options_of(ImportOptions, parser.parse(rest))

    from rich.markup import escape

    from gambeson.app import show

    run = import_weights(Path(words[0]), options, command=["gambeson", "import", *args])
    where = f" under {run.call['imported']['key']}" if run.call["imported"]["key"] else ""
    dropped = run.call["imported"]["dropped"]
    show.out.print(
        escape(f"imported {words[0]}{where}: {options.model} for {options.data}, {_told(run)}"), soft_wrap=True
    )
    if dropped:
        listed = ", ".join(dropped[:4]) + (f" and {len(dropped) - 4} more" if len(dropped) > 4 else "")
        show.out.print(escape(f"left out, as this network has no use for it: {listed}"), soft_wrap=True)
    show.out.print(f"run directory: {escape(str(run.path))}", soft_wrap=True)
    show.err.print(
        "[bold]note[/bold]: what the weights were selected on is not known, nor whether they were trained on the images"
        " that are held out here as val",
        soft_wrap=True,
    )
    show.out.print("Next, against the published accuracy:", style="dim")
    show.out.print(f"  {escape(f'gambeson evaluate {shlex.quote(str(run.path))} --attack clean')}", soft_wrap=True)
    return 0


def import_weights(file: Path, options: ImportOptions, *, command: Sequence[str] | None = None) -> Run:
    """Make a run directory of a foreign checkpoint.

    The run's method is `external`: a threat, and nothing known of the training. Its only checkpoint is `final`. For the
    data sets of `FACTS` the images are not read.

    Args:
        file: As in `gambeson.models.foreign.read_weights`.
        options: What the weights are of, and where the run goes.
        command: The command line, for the record.

    Returns:
        The run.

    Raises:
        CheckpointError: The file cannot be read, does not fit the model, or normalises otherwise than the task.
        InputError: An option does not fit.
        RunError: The run directory exists or cannot be written.

    Warns:
        GambesonWarning: The weights also fit a network that computes something else; or several state dicts are in the
            file.
    """
    from gambeson.app import build
    from gambeson.engine.checkpoint import save_checkpoint
    from gambeson.engine.run import Run

    stem = f"{build.data_stem(options.data)}-{build.EXTERNAL}"
    folder = Path(options.run) if options.run else Run.free_path(Path("runs"), stem)
    Run.require_new(folder, hint="choose another directory with --run")
    foreign = read_foreign(file, options)
    call, fitted = foreign.call, foreign.fitted
    imported = {
        "file": str(file),
        "sha256": _digest(file),
        "key": foreign.key,
        "renamed": fitted.renamed,
        "dropped": list(fitted.dropped),
    }
    words = {} if command is None else {"command": list(command)}
    run = Run.create(folder, {**words, **call, "imported": imported})
    header = {
        "method": call["method"]["name"],
        "model": call["model"],
        "recipe": repr(build.recipe(call)),
        "task": asdict(foreign.task),
        "settings": Settings().to_dict(),
        "step": 0,
        "best": None,
    }
    save_checkpoint(run.checkpoint("final"), {f"model/{name}": t for name, t in fitted.weights.items()}, header)
    return run


def read_foreign(file: Path, options: ImportOptions) -> Foreign:
    """The network of a foreign checkpoint, in memory.

    Args:
        file: As in `gambeson.models.foreign.read_weights`.
        options: What the weights are of.

    Raises:
        CheckpointError: The file cannot be read, does not fit the model, or normalises otherwise than the task.
        InputError: An option does not fit.

    Warns:
        GambesonWarning: As `import_weights`.
    """
    from gambeson.app import build
    from gambeson.data import FACTS
    from gambeson.models import create
    from gambeson.models.foreign import find_weights, fit_names, fitting_models, read_content

    call = _call(options)
    key, weights = find_weights(read_content(file), file, key=options.key)
    facts = FACTS[options.data] if options.data in FACTS and options.size is None else build.splits(call).facts
    task = _normalised(facts.task, options)
    call["method"]["args"]["eps"] = _eps(options, facts.eps)
    build.recipe(call)  # refuses the budget before any work
    model = create(call["model"]["name"], task, width=options.width, seed=0)
    try:
        fitted = fit_names(weights, model, file)
    except CheckpointError as error:
        fit = [name if width is None else f"{name} --width {width}" for name, width in fitting_models(weights, task)]
        if not fit:
            raise
        raise CheckpointError(error.message, hint=f"the names and shapes fit --model {' or '.join(fit)}") from None
    _check_normalisation(fitted, task, file)
    _warn_of_twins(call["model"]["name"], weights, fitted, task, options)
    model.load_state_dict(fitted.weights)
    return Foreign(call, task, key, fitted, model)


def _call(options: ImportOptions) -> dict[str, Any]:
    """The record of the run, as a training would write it."""
    from gambeson.app import build

    data = TrainOptions(
        data=options.data,
        data_dir=options.data_dir,
        val_fraction=options.val_fraction,
        size=options.size,
        model=options.model,
        width=options.width,
    )
    call = build.make_call(build.EXTERNAL, {"eps": options.eps, "norm": options.norm}, data, Settings())
    return {**call, "selection": {"split": "unknown"}}


def _told(run: Run) -> str:
    from gambeson.app import show

    threat = run.call["method"]["args"]
    renamed = len(run.call["imported"]["renamed"])
    return f"{threat['norm']} eps {show.short(threat['eps'])}; {renamed} tensors renamed"


def _eps(options: ImportOptions, customary: float) -> float:
    if options.eps is not None:
        return options.eps
    if options.norm != "Linf":
        raise InputError(
            f"--norm {options.norm} needs --eps: the data set's customary budget is of Linf", hint="on CIFAR L2: 0.5"
        )
    return customary


def _normalised(task: Task, options: ImportOptions) -> Task:
    for name, values in (("mean", options.mean), ("std", options.std)):
        if values is not None and len(values) != task.channels:
            raise InputError(f"--{name} needs {task.channels} numbers, one per channel, got {len(values)}")
        if values is not None and not all(0 <= value <= 1 for value in values):
            raise InputError(
                f"--{name} is on the scale of pixels in [0, 1], got {list(values)}", hint="divide grey levels by 255"
            )
    return replace(
        task,
        mean=task.mean if options.mean is None else tuple(options.mean),
        std=task.std if options.std is None else tuple(options.std),
    )


def _check_normalisation(fitted: Fitted, task: Task, file: Path) -> None:
    """Refuse a checkpoint whose own constants are not the task's: every number would be wrong.

    Raises:
        CheckpointError: They differ.
    """
    wrong, flags = [], []
    for name, found, here in (("mean", fitted.mean, task.mean), ("std", fitted.std, task.std)):
        if found is None:
            continue
        there = found * task.channels if len(found) == 1 else found
        if len(there) != len(here) or max(abs(a - b) for a, b in zip(there, here, strict=True)) > TOLERANCE:
            wrong.append(f"{name} {list(there)}, the data set {list(here)}")
            flags.append(f"--{name} {shlex.quote(str(list(there)).replace(' ', ''))}")
    if wrong:
        raise CheckpointError(f"{file} normalises with {'; '.join(wrong)}", hint=f"add {' '.join(flags)}")


def _warn_of_twins(name: str, weights: dict[str, Tensor], fitted: Fitted, task: Task, options: ImportOptions) -> None:
    """Say which networks take the same weights and compute something else from them."""
    import warnings

    import torch

    from gambeson.core.errors import GambesonWarning
    from gambeson.models import create
    from gambeson.models.foreign import fitting_models

    x = torch.rand(2, task.channels, task.size, task.size, generator=torch.Generator().manual_seed(0))

    def logits(network: str) -> Tensor:
        model = create(network, task, width=options.width, seed=0)
        model.load_state_dict(fitted.weights)
        with torch.no_grad():
            return model.eval()(x)

    others = [other for other, _ in fitting_models(weights, task) if other != name]
    own = logits(name) if others else x
    differing = [other for other in others if not torch.equal(logits(other), own)]
    if differing:
        warnings.warn(
            f"the weights also fit {' and '.join(differing)}, which computes other logits from them; compare the clean"
            " accuracy with the published one",
            GambesonWarning,
            stacklevel=3,
        )


def _digest(file: Path) -> str:
    import hashlib

    digest = hashlib.sha256()
    with open(file, "rb") as opened:
        while chunk := opened.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
