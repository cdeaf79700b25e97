"""From a run's call to the objects that it names: data, model, recipe, trainer."""

from __future__ import annotations

import shlex
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gambeson.app.states import sentence, unfinished
from gambeson.core.errors import CheckpointError, DataError, GambesonError, GambesonWarning, InputError, RunError
from gambeson.core.layout import preferred_layout
from gambeson.core.threat import Threat, create_threat
from gambeson.core.types import Task
from gambeson.data import Examples, Facts, Splits, hold_out, load
from gambeson.data.stored import StoredImages
from gambeson.data.streaming import chunks
from gambeson.engine.checkpoint import load_checkpoint, load_weights, section
from gambeson.engine.run import Run
from gambeson.engine.settings import Settings
from gambeson.engine.trainer import Selection, Trainer, selection_for
from gambeson.methods import METHODS, Recipe, method
from gambeson.models import create
from gambeson.parts.averaging import EMA

EXTERNAL = "external"
"""The method of a run whose weights were imported: a threat, and nothing known of the training."""


def device(name: str) -> torch.device:
    """The device called `name`; `auto` takes CUDA, then MPS, then the CPU.

    Raises:
        InputError: Not a device.
        GambesonError: The machine has no such device, or it cannot be used.
    """
    hint = "use auto, cpu, cuda, cuda:N or mps"
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    kind, colon, number = name.partition(":")
    if kind not in ("cpu", "cuda", "mps") or (colon and not number.isdecimal()):
        raise InputError(f"unknown device {name!r}", hint=hint)
    try:
        found = torch.device(name)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise GambesonError(f"device {name!r} cannot be used: {reason}", hint=hint) from None
    return found


def use_threads(call: dict[str, Any]) -> None:
    """Use as many CPU threads as the call says; sums differ in their last bits with their number.

    Raises:
        InputError: Fewer than one.
    """
    threads = call.get("threads")
    if threads is None:
        return
    if threads < 1:
        raise InputError(f"--threads must be at least 1, got {threads}")
    torch.set_num_threads(threads)


def threat_of(own: Threat, norm: str | None, eps: float | None) -> Threat:
    """The budget that was asked for, where nothing was the run's own.

    Raises:
        InputError: Another norm than the run's without a budget: of the run's nothing follows for it.
    """
    if norm is None and eps is None:
        return own
    chosen = create_threat(norm or own.norm, 1.0).norm
    if eps is None and chosen != own.norm:
        raise InputError(
            f"the run's budget is one of {own.norm}, one of {chosen} must be given",
            hint="such as --eps 0.5" if chosen == "L2" else "such as --eps 8/255",
        )
    return create_threat(chosen, float(own.eps) if eps is None else eps)


TABLES = ("method", "data", "model", "settings")
"""What the call of a command holds."""


def is_bare(run: Run) -> bool:
    """Whether a run was made in Python: no command wrote what it would need to build the run again."""
    return "created" in run.call and not run.call.keys() & set(TABLES)


def open_run(path: Path) -> Run:
    """A run that the command line can rebuild.

    Raises:
        RunError: No run, or its record lacks what the command line writes.
    """
    run = Run.open(path)
    missing = [key for key in TABLES if not isinstance(run.call.get(key), dict) or not run.call[key]]
    missing += [key for key in ("ema", "attack", "test_size") if key not in run.call]
    if missing:
        raise RunError(f"{path / 'run.json'} lacks {', '.join(missing)}; it was not written by `gambeson train`")
    return run


def recipe(call: dict[str, Any]) -> Recipe:
    """The recipe of a call; of imported weights the one of standard training, for its threat."""
    name = call["method"]["name"]
    made = METHODS["standard" if name == EXTERNAL else method(name)[0]](**call["method"]["args"])
    return replace(made, parts=(*made.parts, EMA(call["ema"]))) if call["ema"] is not None else made


def splits(call: dict[str, Any], root: str | None = None) -> Splits:
    """The data of a call, read from `root` or from where the run found it."""
    data = call["data"]
    found = load(
        data["name"],
        root or data["dir"],
        val_fraction=data["val_fraction"],
        verify=data["verify"],
        size=data["size"],
        stream=data.get("stream", "off"),
        workers=data.get("workers"),
    )
    _require_same_files(data, found)
    if data["train_size"] is None:
        return found
    if not 1 <= data["train_size"] <= len(found.train):
        raise InputError(
            f"--train-size must be between 1 and the {len(found.train)} training images, got {data['train_size']}"
        )
    if data["train_size"] == len(found.train):
        return found
    if data["train_size"] < found.facts.num_classes:
        raise InputError(
            f"--train-size {data['train_size']} leaves classes without images: there are {found.facts.num_classes}"
        )
    fraction = data["train_size"] / len(found.train)
    kept = hold_out(found.train, fraction, found.facts.num_classes, seed=0, both=False)[1]
    return replace(found, train=found.train.subset(kept))


def _require_same_files(data: dict[str, Any], found: Splits) -> None:
    """Refuse a folder that has changed: its splits would be others, and images of training would be tested.

    Raises:
        DataError: Files have come or gone since the run was made. Files that were replaced are not noticed.
    """
    known = data.get("files")
    if known is None or found.facts.files is None or list(known) == list(found.facts.files):
        return
    raise DataError(
        f"{data['name']} has changed since the run was made: {found.facts.files[0]:,} images, then {known[0]:,}, or"
        " other names; the splits would be others, and images that it was trained on would be tested",
        hint="bring the files back, or evaluate on images of their own: `gambeson evaluate RUN --data folder:OTHER`",
    )


def require_decodable(*splits: Examples) -> None:
    """Decode all images of some splits once: a damaged one is found before a training, not after it.

    Raises:
        DataError: One cannot be decoded; it is named.
    """
    for split in splits:
        for _ in chunks(split.x, 256):
            pass


def settle_data(call: dict[str, Any], data: Splits) -> None:
    """Write into a call how many images its splits have, and of a folder which files it has and how it is read, which
    `auto` has left to this machine's memory.

    Everything that looks at the run later does the same: of a streamed folder, mean and standard deviation are
    measured on some of the images.
    """
    call["data"]["sizes"] = data.sizes
    if data.facts.files is not None:
        call["data"]["files"] = list(data.facts.files)
    if "stream" not in call["data"]:
        return
    call["data"]["stream"] = "on" if isinstance(data.train.x, StoredImages) else "off"
    if data.facts.measured_on is not None:
        call["data"]["measured_on"] = data.facts.measured_on


def trainer(call: dict[str, Any], data: Splits, where: torch.device) -> Trainer:
    """A trainer at step 0."""
    settings = Settings(**{**call["settings"], "milestones": tuple(call["settings"]["milestones"])})
    task = data.facts.task
    model = create(call["model"]["name"], task, width=call["model"]["width"], seed=settings.seed)
    return Trainer(
        model,
        recipe(call),
        data.train,
        data.val,
        task,
        settings,
        pad=data.facts.pad,
        flip=data.facts.flip,
        description={"method": call["method"]["name"], "model": call["model"]},
        device=where,
        select=selected_by(call),
    )


def load_model(run: Run, name: str, where: torch.device) -> tuple[nn.Module, Task, str, int]:
    """The model of a run, from a checkpoint for use.

    Args:
        run: The run.
        name: See `existing_checkpoint`.
        where: Device.

    Returns:
        The model, its task, the name of the checkpoint that was read, and its step.

    Raises:
        CheckpointError: No such checkpoint, damaged, or of another method or model than the run's.
        InputError: Another name.

    Warns:
        GambesonWarning: The run's training has not finished.
    """
    name = existing_checkpoint(run, name)
    tensors, header = load_checkpoint(run.checkpoint(name))
    expected = {"method": run.call["method"]["name"], "model": run.call["model"]}
    for key, value in expected.items():
        if header.get(key) != value:
            raise CheckpointError(f"{run.checkpoint(name)} is of {key} {header.get(key)!r}, the run of {value!r}")
    task = Task(**{**header["task"], "mean": tuple(header["task"]["mean"]), "std": tuple(header["task"]["std"])})
    model = create(run.call["model"]["name"], task, width=run.call["model"]["width"], seed=0)
    load_weights(model, section(tensors, "model"), run.checkpoint(name))
    layout = preferred_layout(model, where)
    open_end = unfinished(run)
    if open_end is not None:
        warnings.warn(f"{run.path}: {sentence(open_end, {name: header['step']})}", GambesonWarning, stacklevel=1)
    return model.to(where, memory_format=layout).eval(), task, name, header["step"]  # type: ignore[call-overload]


def require_fit(task: Task, facts: Facts) -> None:
    """Refuse images that the model does not take.

    Raises:
        InputError: Of another number of classes or channels, or of another size.
    """
    if (facts.num_classes, facts.channels, facts.size) != (task.num_classes, task.channels, task.size):
        raise InputError(
            f"the checkpoint takes {task.channels}x{task.size}x{task.size} images of {task.num_classes} classes,"
            f" {facts.name} has {facts.channels}x{facts.size}x{facts.size} images of {facts.num_classes}"
        )


def existing_checkpoint(run: Run, name: str) -> str:
    """The checkpoint that is meant by `best`, `final`, `last` or `snapshot-STEP`, or, of a fine-tuned run, `base` or
    `finetuned`.

    A run without validation has no `best`: its `final` is taken, and its `last` where it has not come to the end.

    Raises:
        InputError: Another name, or a snapshot that the run does not have; the hint lists what it has.
    """
    if name in run.snapshots():
        return name
    if name == SNAPSHOTS or name.startswith("snapshot-"):
        raise _no_snapshot(run, name)
    if name not in _known_checkpoints(run):
        raise InputError(f"unknown checkpoint {name!r}", hint=f"{run.path} has {_what_there_is(run)}")
    if name == "best" and not run.checkpoint("best").is_file():
        return "final" if run.checkpoint("final").is_file() else "last"
    return name


SNAPSHOTS = "snapshots"
"""Stands for all snapshots of a run, where several checkpoints may be named."""


def listed_checkpoints(run: Run, text: str, example: str) -> list[str]:
    """The checkpoints that a comma-separated list names, each once; `snapshots` are all of the run, by step.

    Raises:
        InputError: The list names none (the hint is the `example`), or the run has no snapshots.
    """
    names: list[str] = []
    for word in filter(None, map(str.strip, text.split(","))):
        if word == SNAPSHOTS and not run.snapshots():
            raise _no_snapshot(run, word)
        names += run.snapshots() if word == SNAPSHOTS else [word]
    if not names:
        raise InputError("--checkpoint names no checkpoint", hint=f"such as {example}")
    return list(dict.fromkeys(names))


def _known_checkpoints(run: Run) -> tuple[str, ...]:
    return ("best", "final", "last", *(("base", "finetuned") if "finetune" in run.call else ()))


def _what_there_is(run: Run) -> str:
    there = [name for name in _known_checkpoints(run) if run.checkpoint(name).is_file()]
    return ", ".join([*there, *run.snapshots()]) or "none"


def _no_snapshot(run: Run, name: str) -> InputError:
    if not run.snapshots():
        hint = f"it has {_what_there_is(run)}; `gambeson train ... --snapshots N` keeps some"
        return InputError(f"{run.path} kept no snapshots", hint=hint)
    if name == SNAPSHOTS:
        said = f"one checkpoint is needed, and {SNAPSHOTS!r} are {len(run.snapshots())}"
        return InputError(said, hint=f"{run.path} has {_what_there_is(run)}")
    return InputError(f"{run.path} has no {name}", hint=f"it has {_what_there_is(run)}")


def selected_on(call: dict[str, Any]) -> str | None:
    """The split that a run's weights were selected on: `val`, `test`, or `unknown` for imported weights."""
    split: str | None = (call.get("selection") or {}).get("split")
    return split


def selected_by(call: dict[str, Any]) -> Selection:
    """What the best checkpoint of a training is selected by; a call without it is older than the choice."""
    found: Selection = (call.get("selection") or {}).get("by", "val/pgd10_acc")
    return found


def require_training(run: Run) -> None:
    """Refuse a run whose weights were imported.

    Raises:
        RunError: It is one.
    """
    if "imported" in run.call:
        raise RunError(
            f"{run.path} was not trained here but imported from {run.call['imported']['file']}:"
            " there is nothing to resume",
            hint=f"gambeson evaluate {shlex.quote(str(run.path))}",
        )


def data_stem(data: str) -> str:
    """The name of a data set as the beginning of a run's.

    Examples:
        >>> data_stem("npz:data/mine.npz")
        'npz-mine'
    """
    kind, _, path = data.partition(":")
    return f"{kind}-{Path(path).stem}" if path else kind


def _streaming(options: Any) -> dict[str, Any]:
    """How a folder is read; other data have no such keys.

    Raises:
        InputError: Other data were asked to be streamed.
    """
    if options.data.startswith("folder:"):
        return {"stream": options.stream, "workers": options.workers}
    if options.stream == "on" or options.workers is not None:
        given = "--stream on" if options.stream == "on" else f"--workers {options.workers}"
        raise InputError(f"{given} does not apply to {options.data}", hint="folders are streamed: --data folder:PATH")
    return {}


def make_call(method_name: str, method_args: dict[str, Any], options: Any, settings: Settings) -> dict[str, Any]:
    """The record of a training: everything that `resume` and `evaluate` need."""
    function = METHODS["standard"] if method_name == EXTERNAL else method(method_name)[1]
    return {
        "method": {"name": method_name, "args": method_args},
        "data": {
            "name": options.data,
            "dir": options.data_dir,
            "val_fraction": options.val_fraction,
            "train_size": options.train_size,
            "size": options.size,
            "verify": options.verify,
            **_streaming(options),
        },
        "model": {"name": options.model.replace("_", "-").lower(), "width": options.width},
        "ema": options.ema,
        "settings": settings.to_dict(),
        "selection": {"split": "val", "by": selection_for(function())},
        "threads": options.threads,
        "attack": options.attack,
        "test_size": options.test_size,
    }
