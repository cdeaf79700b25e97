"""The training loop: steps, validation, sentinel, checkpoints. It is never given a test set."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from gambeson.core.errors import CheckpointError, DivergenceError, InputError, nearest, require_known
from gambeson.core.layout import preferred_layout
from gambeson.core.modes import batch_norms
from gambeson.core.processes import agreed, max_of, rank_and_world, shard, total, wait_for_all
from gambeson.core.streams import Streams
from gambeson.core.sync_batch_norm import share_batch_norms
from gambeson.core.tables import differences
from gambeson.core.types import Batch, Task
from gambeson.data.loader import Loader, to_unit
from gambeson.data.splits import Examples
from gambeson.engine.checkpoint import (
    load_checkpoint,
    load_optimizer,
    load_weights,
    optimizer_tensors,
    save_checkpoint,
    section,
)
from gambeson.engine.interruption import Interrupted, signals
from gambeson.engine.optim import cycled_momentum, learning_rate
from gambeson.engine.precision import Bfloat16Forward, CompiledForward
from gambeson.engine.run import Run
from gambeson.engine.sentinel import EVENT, PROBE, Sentinel
from gambeson.engine.settings import Settings
from gambeson.engine.snapshots import Snapshots
from gambeson.engine.step import robust_step
from gambeson.evaluation.evaluate import evaluate
from gambeson.methods.recipe import Recipe
from gambeson.parts.state import AveragedWeights, Parts

Listener = Callable[[dict[str, Any]], None]
Selection = Literal["val/pgd10_acc", "val/clean_acc"]
"""What the best checkpoint has most of, on the validation images."""
ROLLBACKS = 3
"""Rollbacks before a run gives up."""
AGREE_EVERY = 10
"""Steps between the looks of several processes at whether one was asked to stop."""


def selection_for(recipe: Recipe) -> Selection:
    """What the best checkpoint of a training by `recipe` is selected by where nothing else is said."""
    return "val/pgd10_acc" if recipe.adversarial else "val/clean_acc"


class Trainer:
    """Trains a model by a recipe.

    Args:
        model: The model; moved to `device` and trained in place.
        recipe: The method.
        train: Training images.
        val: Validation images, held out from training; selection of the best checkpoint sees these only. May be empty:
            then nothing is selected.
        task: Written into the checkpoints, so that they can be opened alone.
        settings: How to train.
        pad: The data set's crop padding, where the settings leave it open.
        flip: The data set's mirroring, likewise.
        description: Goes into the checkpoints' header (method, model, ...), and must agree when one is loaded.
        device: Where to train.
        select: What the best checkpoint is selected by; with `val/clean_acc` validation does not attack. None:
            `val/pgd10_acc`, and `val/clean_acc` for a recipe without an adversary.

    Raises:
        InputError: The batch is larger than the training set, or another setting does not fit; or the recipe trains
            parameters that the model does not have.
    """

    def __init__(
        self,
        model: nn.Module,
        recipe: Recipe,
        train: Examples,
        val: Examples,
        task: Task,
        settings: Settings,
        *,
        pad: int = 0,
        flip: bool = False,
        description: dict[str, Any] | None = None,
        device: torch.device | str = "cpu",
        select: Selection | None = None,
    ) -> None:
        self.select: Selection = select or selection_for(recipe)
        require_known("selection", self.select, get_args(Selection))
        self.device = torch.device(device)
        self.rank, self.world = rank_and_world()
        if settings.sync_bn:
            model = share_batch_norms(model, self.device)
        layout = preferred_layout(model, self.device, settings.channels_last)
        self.model = model.to(self.device, memory_format=layout)  # type: ignore[call-overload]
        self.recipe, self.settings, self.task = recipe, settings, task
        self.description = description or {}
        self.net = self._forward()
        self.streams = Streams(settings.seed)
        self.own = Streams(settings.seed, self.rank)  # what differs between processes: noise of attacks, dropout
        self.loader = Loader(
            train,
            settings.batch_size,
            self.streams,
            pad=pad if settings.pad is None else settings.pad,
            flip=flip if settings.flip is None else settings.flip,
            fill=settings.fill,
            device=self.device,
            layout=layout,
            rank=self.rank,
            world=self.world,
        )
        self.val = val.to(self.device)
        self.steps_per_epoch = self.loader.steps_per_epoch * recipe.replays
        self.total = settings.epochs * self.steps_per_epoch
        self.parts = Parts(part.build(self.model) for part in recipe.parts).to(self.device)
        for part in self.parts:
            part.prepare(self.model, self.loader, settings.epochs)
        self.optimizer = torch.optim.SGD(
            self._trainable(),
            lr=settings.lr,
            momentum=settings.momentum,
            weight_decay=settings.weight_decay,
            foreach=True,  # the same bits in a sixtieth of the operations; torch takes it by itself on CUDA only
        )
        self.step, self.elapsed = 0, 0.0
        self.best: dict[str, float] | None = None
        self.rollbacks = 0
        self.healthy: int | None = None  # step of the last healthy look, whose state a rollback returns to
        self.sentinel, self.probe_every = self._sentinel()
        self.snapshots = Snapshots(settings.snapshots, settings.epochs, self.steps_per_epoch)
        # Sums since the last line of metrics, and the first step with a loss that is not finite: on the device, no sync
        # per step.
        self.sums = torch.zeros(3, device=self.device)
        self.bad_step = torch.full((), 2**62, dtype=torch.int64, device=self.device)

    @property
    def evaluated(self) -> nn.Module:
        """The model that validation and checkpoints for use are made from: the average where the recipe has one."""
        return next((part.average for part in self.parts if isinstance(part, AveragedWeights)), self.model)

    def fit(self, run: Run, listen: Listener | None = None) -> None:
        """Train to the end, from wherever the state is.

        Args:
            run: Receives metrics and checkpoints `last`, `best` and `final`, and the snapshots of the settings.
            listen: Called with every line of metrics, and with `{"step": ...}` after each step.

        Raises:
            DivergenceError: NaN or infinite loss, or a collapse with `on_overfitting` at `stop` or after three
                rollbacks. The last good checkpoint stays.
            Interrupted: SIGINT or SIGTERM came; the state was saved.
        """
        report = listen or (lambda row: None)
        deterministic = self.settings.deterministic
        cudnn = torch.backends.cudnn.flags(enabled=True, benchmark=not deterministic, deterministic=deterministic)
        with self._alone(run), torch.random.fork_rng(), cudnn, signals() as caught, self.loader.serving():
            began = time.monotonic() - self.elapsed
            if self.step == 0:
                self.save(run, "last")
                self._probe(run, report)
            while self.step < self.total:
                self._train_step()
                self.elapsed = time.monotonic() - began
                report({"step": self.step})
                epoch_done = self.step % self.steps_per_epoch == 0
                if self.step % self.settings.log_every == 0 or epoch_done:
                    self._log(run, report)
                if self.snapshots.due(self.step):  # before a rollback
                    self._snapshot(run)
                if self.probe_every and self.step % self.probe_every == 0:
                    self._probe(run, report)
                if epoch_done:
                    self._end_epoch(run, report)
                stopped = self._stopped(caught)
                if stopped or epoch_done or self.step % self.settings.checkpoint_every == 0:
                    self._check_finite(run)
                    self.save(run, "last")
                if stopped and self.step < self.total:
                    raise Interrupted(stopped, self.step)
            self.save_weights(run, "final")
            wait_for_all()  # the others read what the first has written
            self.elapsed = time.monotonic() - began

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Everything that the rest of the training depends on, of all processes: tensors, and a header for JSON."""
        names = {id(p): name for name, p in self.model.named_parameters()}
        tensors = {f"model/{name}": t for name, t in self.model.state_dict().items()}
        tensors |= {f"optimizer/{name}": t for name, t in optimizer_tensors(self.optimizer, names).items()}
        tensors |= {f"parts/{name}": t for name, t in self.parts.whole_state().items()}
        tensors |= {"trainer/sums": total(self.sums)}
        header = {
            **self._identity(),
            "step": self.step,
            "elapsed": self.elapsed,
            "best": self.best,
            "rollbacks": self.rollbacks,
            "healthy": self.healthy,
            "sentinel": self.sentinel.state_dict() if self.sentinel else None,
            "snapshots": self.snapshots.state_dict(),
        }
        return tensors, header

    def save(self, run: Run, name: str) -> None:
        """Write the whole state.

        The header of `last` names the healthy state that belongs to it: a resumed run rolls back as the uninterrupted
        one would. Others are then no longer needed. Of several processes the first one writes.
        """
        state = self.state()
        if self.rank:
            return
        save_checkpoint(run.checkpoint(name), *state)
        if name == "last":
            for file in run.checkpoint("healthy").parent.glob("healthy-*.safetensors"):
                if file != run.checkpoint(f"healthy-{self.healthy}"):
                    file.unlink()
            self.snapshots.prune(run, self.step)

    def save_weights(self, run: Run, name: str) -> None:
        """Write the weights for use: the average where the recipe has one. The first of several processes writes."""
        if self.rank:
            return
        weights = {f"model/{k}": t for k, t in self.evaluated.state_dict().items()}
        save_checkpoint(run.checkpoint(name), weights, {**self._identity(), "step": self.step, "best": self.best})

    def resume(self, run: Run) -> None:
        """Continue from the run's last checkpoint; the steps that follow are the uninterrupted run's, to the bit.

        Another number of processes goes on too: with the same images and the same mean of gradients, but other noise.

        Raises:
            CheckpointError: No checkpoint, or one of another method, model, settings or number of classes; each
                difference is named.
        """
        tensors, header = load_checkpoint(run.checkpoint("last"))
        if "trainer/sums" not in tensors:
            raise CheckpointError(f"{run.checkpoint('last')} holds weights for use, not the state of a training")
        here = json.loads(json.dumps(self._identity()))
        different = differences({key: header.get(key) for key in here}, here)
        if different:
            raise CheckpointError(f"{run.checkpoint('last')} belongs to another training: {'; '.join(different)}")
        self._restore(tensors, run)
        self.step, self.elapsed, self.best = header["step"], header["elapsed"], header["best"]
        self.rollbacks, self.healthy = header["rollbacks"], header["healthy"]
        self.sums = tensors["trainer/sums"].to(self.device) * (self.rank == 0)  # they are of all processes
        if self.sentinel:
            self.sentinel.load_state_dict(header["sentinel"])
        if self.settings.snapshots:
            self.snapshots.load_state_dict(header["snapshots"])
        wait_for_all()  # nobody reads any more
        if self.rank:
            return
        self.snapshots.prune(run, self.step)
        run.trim(self.step if self.step else -1)  # the first look of the sentinel comes after the first checkpoint

    def _identity(self) -> dict[str, Any]:
        return {
            **self.description,
            "recipe": repr(self.recipe),
            "task": asdict(self.task),
            "settings": self.settings.to_dict(),
        }

    def _snapshot(self, run: Run) -> None:
        self._check_finite(run)
        self.save_weights(run, f"snapshot-{self.step}")

    def _restore(self, tensors: dict[str, Tensor], run: Run) -> None:
        load_weights(self.model, section(tensors, "model"), run.path)
        load_optimizer(self.optimizer, section(tensors, "optimizer"), dict(self.model.named_parameters()))
        self.parts.load_state_dict(section(tensors, "parts"))

    def _learning_rate(self, step: int) -> float:
        settings = self.settings
        return learning_rate(settings.schedule, step, self.total, settings.lr, settings.milestones)

    def _train_step(self) -> None:
        step, settings = self.step, self.settings
        lr = self._learning_rate(step)
        momentum = cycled_momentum(settings.schedule, step, self.total, settings.momentum, settings.momentum_low)
        for group in self.optimizer.param_groups:
            group["lr"], group["momentum"] = lr, momentum
        torch.manual_seed(self.own.number("torch", step))  # dropout draws from the global generator
        self.model.train()
        if self.recipe.bn == "frozen":
            for module in batch_norms(self.model):
                module.eval()
        epoch = step // self.steps_per_epoch
        if step % self.steps_per_epoch == 0:
            for part in self.parts:
                part.begin_epoch(self.model, self.loader, epoch)
        batch = self.loader.batch(step // self.recipe.replays)
        rng = partial(self._generator, step=step)
        outcome = robust_step(self.net, batch, self.recipe, self.parts, self.optimizer, rng, epoch)
        with torch.no_grad():
            logits = outcome.logits.get("adv", outcome.logits.get("clean"))
            assert logits is not None
            correct = (logits.argmax(1) == batch.y).sum()
            self.sums += torch.stack([outcome.loss * len(batch.y), correct, torch.full_like(correct, len(batch.y))])
            bad = torch.where(outcome.loss.isfinite(), self.bad_step, torch.full_like(self.bad_step, step))
            self.bad_step = torch.minimum(self.bad_step, bad)
        self.step += 1

    def _log(self, run: Run, report: Listener) -> None:
        self._check_finite(run)
        loss, correct, count = total(self.sums).tolist()
        self.sums.zero_()
        view = "adv" if "adv" in self.recipe.objective.views else "clean"
        row = {
            "train/loss": loss / count,
            f"train/{view}_acc": correct / count,
            "train/lr": self.optimizer.param_groups[0]["lr"],
        }
        for part in self.parts:
            row |= part.metrics()
        self._emit(run, report, row)

    def _emit(self, run: Run, report: Listener, row: dict[str, Any]) -> None:
        row = {"step": self.step, "epoch": self.step / self.steps_per_epoch, "seconds": round(self.elapsed, 3), **row}
        if self.rank == 0:
            run.log(row)
        report(row)

    def _end_epoch(self, run: Run, report: Listener) -> None:
        epoch = self.step // self.steps_per_epoch
        if len(self.val) == 0 or (epoch % self.settings.val_every and self.step < self.total):
            return
        found = evaluate(
            self.evaluated,
            self.val.x,
            self.val.y,
            ["pgd-10"] if self.select == "val/pgd10_acc" else [],
            self.recipe.threat,
            num_classes=self.task.num_classes,
            seed=self.settings.seed,
            checks=False,  # a network that is in training may be in any state; the final evaluation examines it
        )
        row = {"val/clean_acc": found.accuracy("clean").value}
        if self.select == "val/pgd10_acc":
            row["val/pgd10_acc"] = found.accuracy("pgd-10").value
        self._emit(run, report, row)
        if self.best is None or self._score(row) > self._score(self.best):
            self._check_finite(run)
            self.best = {**row, "step": self.step}
            self.save_weights(run, "best")

    def _score(self, row: dict[str, float]) -> tuple[float, float]:
        return row[self.select], row["val/clean_acc"]

    def _trainable(self) -> list[nn.Parameter]:
        """What the optimizer changes; the rest is frozen, so that no gradient is computed for it."""
        wanted = self.recipe.trainable
        if wanted is None:
            return list(self.model.parameters())
        known = dict(self.model.named_parameters())
        unknown = [name for name in wanted if name not in known]
        if unknown:
            raise InputError(
                f"the model has no parameter {', '.join(map(repr, unknown))}", hint=nearest(unknown[0], known)
            )
        for name, p in known.items():
            p.requires_grad_(name in wanted)
        return [p for name, p in known.items() if name in wanted]

    def _forward(self) -> nn.Module:
        """The model as the steps run it."""
        net, settings = self.model, self.settings
        if settings.compile:
            if self.recipe.penalty is not None:
                raise InputError(
                    f"{type(self.recipe.penalty).__name__} differentiates twice, which torch.compile cannot",
                    hint="train without --compile",
                )
            mine = shard(settings.batch_size, self.rank, self.world)
            net = CompiledForward(net, mine.stop - mine.start)
        return Bfloat16Forward(net) if settings.bf16 else net

    def _generator(self, purpose: str, step: int) -> torch.Generator:
        """Randomness of a step: every process has its own, except for what happens to the weights."""
        streams = self.streams if purpose == "weights" else self.own
        return streams.at(purpose, step, self.device)

    def _alone(self, run: Run) -> AbstractContextManager[None]:
        """The run's lock, which the first process holds for all."""
        return run.locked() if self.rank == 0 else nullcontext()

    def _stopped(self, caught: list[int]) -> int:
        """The signal on which all processes stop after this step, or 0. Several agree about it every ten steps."""
        if self.world == 1 or self.step % AGREE_EVERY == 0 or self.step == self.total:
            return max_of(caught[0] if caught else 0)
        return 0

    def _check_finite(self, run: Run) -> None:
        step = -max_of(-int(self.bad_step))
        if step < 2**62:
            raise DivergenceError(
                f"the loss was NaN or infinite at step {step} (learning rate {self._learning_rate(step):.3g}); the last"
                f" good checkpoint is {run.checkpoint('last')}",
                hint="lower --lr, or the method's perturbation (beta, gamma); or turn off --bf16",
            )

    def _sentinel(self) -> tuple[Sentinel | None, int]:
        every = self.settings.probe_every
        if every is None:
            every = max(50, self.steps_per_epoch // 2) if self.recipe.single_step else 0
        if every == 0:
            return None, 0
        images = self.loader.examples
        rows = torch.randperm(len(images), generator=self.streams.at("probe"))[:PROBE].to(self.device)
        probe = Batch(to_unit(images.x[rows]), images.y[rows], rows)
        return Sentinel(probe, self.recipe.threat, self.task.num_classes, self.settings.seed), every

    def _probe(self, run: Run, report: Listener) -> None:
        if self.sentinel is None:
            return
        look = agreed(self.sentinel.look(self.model, self.step))
        self.sentinel.load_state_dict(agreed(self.sentinel.state_dict()))  # rounding may differ between devices
        row: dict[str, Any] = {"probe/fgsm_acc": look.fgsm, "probe/pgd10_acc": look.pgd, "probe/gap": look.gap}
        row |= {"probe/aae": look.aae, "probe/alignment": look.alignment}
        if look.collapsed:
            row["event"] = EVENT
        self._emit(run, report, row)
        if self.snapshots.watch(self.step, look.collapsed):
            self._snapshot(run)
        policy = self.settings.on_overfitting
        if not look.collapsed:
            if policy == "rollback":
                self._check_finite(run)
                self.healthy = self.step
                self.save(run, f"healthy-{self.step}")
            return
        if policy == "warn":
            return
        said = (
            f"catastrophic overfitting at step {self.step}: FGSM accuracy {look.fgsm:.1%}, PGD-10 {look.pgd:.1%} on the"
            " probe batch"
        )
        if policy == "stop" or self.rollbacks == ROLLBACKS:
            if self.rank == 0:
                self.snapshots.prune(run, self.step)
            raise DivergenceError(
                said + (f", after {ROLLBACKS} rollbacks" if policy == "rollback" else ""),
                hint="try n-lap or n-fgsm, a larger beta, or a smaller eps"
                + (f"; the best weights before it: {run.checkpoint('best')}" if self.best else ""),
            )
        self.rollbacks += 1
        wait_for_all()  # the first process has written what all read now
        self._restore(load_checkpoint(run.checkpoint(f"healthy-{self.healthy}"))[0], run)
        self._emit(run, report, {"event": f"rollback {self.rollbacks} of {ROLLBACKS}"})
