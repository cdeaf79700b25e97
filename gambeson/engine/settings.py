"""How to train, apart from the method: a value without tensors, which is also the schema of the command line."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from gambeson.core.errors import InputError, require_known
from gambeson.engine.optim import Schedule, learning_rate

OnOverfitting = Literal["warn", "stop", "rollback"]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How to train, apart from the method.

    Args:
        epochs: Passes over the training set (for `free-at`, each passes every image `replays` times).
        batch_size: Images per step, of all processes together.
        lr: Largest learning rate.
        schedule: `cyclic`, `piecewise`, `cosine` or `constant`, per step.
        milestones: Fractions of the training at which `piecewise` divides the learning rate by ten.
        momentum: SGD momentum.
        momentum_low: Momentum at the peak of the cyclic schedule.
        weight_decay: Weight decay on all parameters.
        pad: Padding of the random crop, pixels; default the data set's.
        flip: Mirroring; default the data set's.
        fill: Padding: `zero` or `reflect`.
        bf16: bfloat16 autocast in the forwards of training.
        compile: Compile the forwards of training (torch.compile): slow first step, faster ones after it.
        channels_last: Memory layout of weights and images; default channels-last on the CPU, a quarter faster.
        sync_bn: Under torchrun, BatchNorm over the images of all processes instead of each process's own.
        deterministic: On CUDA, deterministic cuDNN kernels: without them a resumed run is not the same to the bit.
        seed: Seed of everything random.
        val_every: Epochs between validations.
        log_every: Steps between lines of metrics.
        checkpoint_every: Steps between checkpoints; one is written after every epoch anyway.
        probe_every: Steps between looks of the sentinel; 0 turns it off; default half an epoch, at least 50, for
            single-step methods, off for others.
        on_overfitting: What follows a collapse: `warn`, `stop`, or `rollback` (return to the last healthy weights, go
            on with the next batches, stop after three).
        snapshots: Light checkpoints to keep, evenly over the epochs; with any, under the sentinel, also the weights of
            the last healthy look before the first collapse and of the first collapsed one.
    """

    epochs: int = 30
    batch_size: int = 128
    lr: float = 0.2
    schedule: Schedule = "cyclic"
    milestones: tuple[float, ...] = (0.5, 0.75)
    momentum: float = 0.9
    momentum_low: float = 0.8
    weight_decay: float = 5e-4
    pad: int | None = None
    flip: bool | None = None
    fill: Literal["zero", "reflect"] = "zero"
    bf16: bool = False
    compile: bool = False
    channels_last: bool | None = None
    sync_bn: bool = False
    deterministic: bool = True
    seed: int = 0
    val_every: int = 1
    log_every: int = 50
    checkpoint_every: int = 1000
    probe_every: int | None = None
    on_overfitting: OnOverfitting = "warn"
    snapshots: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "val_every", "log_every", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name, known in (("on_overfitting", ("warn", "stop", "rollback")), ("fill", ("zero", "reflect"))):
            require_known(name, getattr(self, name), known)
        for name in ("pad", "probe_every"):
            if getattr(self, name) is not None and getattr(self, name) < 0:
                raise InputError(f"{name} must be at least 0, got {getattr(self, name)}")
        if not all(0 <= milestone <= 1 for milestone in self.milestones):
            raise InputError(f"milestones are fractions of the training in [0, 1], got {self.milestones}")
        for name in ("lr", "weight_decay", "momentum", "momentum_low"):
            value = getattr(self, name)
            below = 1.0 if name.startswith("momentum") else math.inf
            if not 0 <= value < below:
                raise InputError(f"{name} must lie in [0, {below:g}), got {value:g}")
        if not 0 <= self.snapshots <= self.epochs:
            raise InputError(f"snapshots are kept at ends of epochs: 0 to {self.epochs} of them, got {self.snapshots}")
        if not 0 <= self.seed < 2**63:
            raise InputError(f"seed must lie in [0, 2^63), got {self.seed}")
        learning_rate(self.schedule, 0, 1, self.lr)

    def to_dict(self) -> dict[str, Any]:
        """All settings for a record and for a checkpoint's identity, as JSON says them.

        A field that came later is left out where it has its default, as in records and checkpoints older than it.

        Examples:
            >>> "snapshots" in Settings().to_dict(), Settings(snapshots=2).to_dict()["snapshots"]
            (False, 2)
        """
        usual = {field.name: field.default for field in fields(self) if field.name in LATER}
        found = {**asdict(self), "milestones": list(self.milestones)}
        return {name: value for name, value in found.items() if name not in usual or value != usual[name]}


LATER = ("snapshots", "sync_bn", "compile")
"""Fields that older records and checkpoints do not have."""
