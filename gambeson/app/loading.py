"""A run in Python: its model, ready to use, with the task, the budget and the data that it was trained for."""

from __future__ import annotations

from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gambeson.app import build
from gambeson.app.states import unfinished
from gambeson.core.threat import Threat
from gambeson.core.types import Task
from gambeson.data import Splits
from gambeson.methods import Recipe


@dataclass(frozen=True, eq=False, kw_only=True)
class LoadedRun:
    """A run whose model has been loaded.

    Attributes:
        path: The run directory.
        model: In evaluation mode, on the device that was asked for; maps images in [0, 1] to logits.
        task: Classes, channels, size and normalisation.
        recipe: What it was trained with; of imported weights, standard training.
        checkpoint: Name of the checkpoint that was read: `final` where `best` was asked for and nothing was selected.
        step: The training step of that checkpoint.
        unfinished: How far the training is, if it has not come to its end: `stage`, `step`, `steps`, `running`.
        call: What `run.json` holds: method, data, model, settings, versions, ...
    """

    path: Path
    model: nn.Module
    task: Task
    recipe: Recipe
    checkpoint: str
    step: int
    unfinished: dict[str, Any] | None
    call: dict[str, Any]

    @property
    def threat(self) -> Threat:
        """The norm and the budget that it was trained for."""
        return self.recipe.threat

    def data(self, root: str | PathLike[str] | None = None) -> Splits:
        """Read the data that it was trained on: `train`, `val`, `test` as in its training, and `facts` (class names).

        Args:
            root: Folder with the data set's files, if it has moved.

        Raises:
            DataError: It is not there, or damaged.
        """
        return build.splits(self.call, None if root is None else str(root))


def load_run(path: str | PathLike[str], checkpoint: str = "best", *, device: str | torch.device = "cpu") -> LoadedRun:
    """Load the model of a run that `gambeson train`, `finetune` or `import` made.

    Args:
        path: The run directory.
        checkpoint: `best` (by validation), `final`, or `last`; of a fine-tuned run `base` or `finetuned` too. A run
            without validation has no `best`: its `final` is taken.
        device: Where the model goes: a device, or `auto` for CUDA, else MPS, else the CPU.

    Returns:
        The model in evaluation mode, and what belongs to it.

    Raises:
        RunError: No run, or one that was made in Python, whose record does not say which model it is.
        CheckpointError: No such checkpoint, or damaged.
        InputError: Another name of a checkpoint, or no name of a device.
        GambesonError: The machine has no such device.

    Warns:
        GambesonWarning: The run's training has not finished.

    Examples:
        >>> load_run("runs/nothing")
        Traceback (most recent call last):
        gambeson.core.errors.RunError: runs/nothing is not a run directory (no run.json)
        hint: `gambeson runs list` shows the runs
    """
    run = build.open_run(Path(path))
    model, task, name, step = build.load_model(run, checkpoint, build.device(str(device)))
    return LoadedRun(
        path=run.path,
        model=model,
        task=task,
        recipe=build.recipe(run.call),
        checkpoint=name,
        step=step,
        unfinished=unfinished(run),
        call=run.call,
    )
