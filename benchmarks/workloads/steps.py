"""One training step of a method, against a transcription of its release's: same images, same noise, same weights.

Ours is `robust_step` as the trainer calls it; batches from the loader and sums for the log are on neither side. Weights
and labels are random and every step trains on the same images, since neither changes the cost; steps follow one another
at a small learning rate, and a loss that is not finite ends the benchmark.

Only the references that leave a network in the same state, its BatchNorm statistics included, are held against a goal.
Two releases run passes whose one lasting effect is on these statistics (`benchmarks.references.multi_steps`); with
them the comparison is shown beside it, and the guard asks for equal weights and momentum.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import SGD

from benchmarks.case import Bound, Case, Check, Ratio, Setup
from benchmarks.inputs import TASK, placed, random_images, random_labels, settled
from benchmarks.references import multi_steps, steps
from benchmarks.references.steps import MOMENTUM, Make, Step
from gambeson import methods
from gambeson.core.streams import Streams
from gambeson.core.types import Batch, Rng
from gambeson.engine.precision import CompiledForward
from gambeson.engine.step import robust_step
from gambeson.methods.recipe import Recipe
from gambeson.models import create
from gambeson.parts.state import Parts

OURS, COMPILED, CONTIGUOUS, FORWARD = "gambeson", "gambeson, compiled", "gambeson, contiguous", "forward"
REFERENCE, IDLE = "reference", "reference with idle passes"
LR = 0.01
GUARDED = 16  # images of the comparison in double precision, in which a step takes many times as long
EQUAL = Bound("<=", 1e-10)
ALIKE = Bound("<=", 0.02)  # in single precision the sign of a gradient near 0 is that of its rounding
MOVED = Bound(">=", 1e-5)


class Pair(NamedTuple):
    """A method and its references: with the same state after every step, and perhaps with idle passes."""

    what: str
    recipe: Recipe
    reference: Make
    goal: Bound | None = None
    idle: Make | None = None


PAIRS: dict[str, tuple[Pair, ...]] = {
    "fgsm": (Pair("RS-FGSM against fast_adversarial", methods.rs_fgsm(), steps.rs_fgsm, Bound(">=", 1.5)),),
    "n-fgsm": (Pair("N-FGSM against its release", methods.n_fgsm(), steps.n_fgsm),),
    "lap": (Pair("N-LAP against its release", methods.n_lap(), steps.n_lap, Bound(">=", 1.35)),),
    "pgd-at": (
        Pair("PGD-10 in evaluation mode against torchattacks", methods.pgd_at(), multi_steps.pgd_at, Bound(">=", 1.4)),
        Pair(
            "PGD-10 in training mode against robust_overfitting",
            methods.pgd_at(bn="update"),
            multi_steps.rice,
            idle=partial(multi_steps.rice, idle_passes=True),
        ),
    ),
    "trades": (Pair("TRADES-10 against its release", methods.trades(), multi_steps.trades, Bound(">=", 1.7)),),
    "mart": (Pair("MART-10 against its release", methods.mart(), multi_steps.mart, Bound(">=", 1.1)),),
    "at-awp": (
        Pair(
            "AT-AWP-10 against its release",
            methods.at_awp(),
            multi_steps.at_awp,
            Bound(">=", 1.5),
            partial(multi_steps.at_awp, idle_passes=True),
        ),
    ),
}
"""The pairs of every workload."""


@dataclass
class Training:
    """A network that every call trains by one step, drawing from the streams of that step as the trainer does.

    Raises:
        FloatingPointError: When called: the loss is not finite.
    """

    model: nn.Module
    optimizer: SGD
    batch: Batch
    step: Step
    number: int = 0

    def __call__(self) -> float:
        rng = partial(Streams(0).at, step=self.number, device=self.batch.x.device)
        self.number += 1
        loss = float(self.step(self.batch, rng))
        if not math.isfinite(loss):
            raise FloatingPointError(f"step {self.number} has a loss of {loss}")
        return loss

    def state(self) -> dict[str, dict[str, Tensor]]:
        """Copies of weights, buffers and momentum, by kind and name, in double precision."""
        weights = dict(self.model.named_parameters())
        found = {
            "weights": weights,
            "BatchNorm statistics": dict(self.model.named_buffers()),
            "momentum": {
                name: self.optimizer.state[p]["momentum_buffer"]
                for name, p in weights.items()
                if self.optimizer.state.get(p)
            },
        }
        return {kind: {name: t.detach().double().clone() for name, t in ts.items()} for kind, ts in found.items()}


def cases(name: str, setup: Setup) -> Iterator[Case]:
    """PreActResNet-18 on random images."""
    width = 64 if setup.full else 16
    x = random_images(setup.batch_size, setup.seed)
    net = settled(create("preact-resnet18", TASK, width=width, seed=setup.seed), x)
    for pair in PAIRS[name]:
        yield _case(name, f"preact-resnet18 of width {width}", pair, net, x, setup)


def ours(recipe: Recipe, *, compiled: bool = False) -> Make:
    """Steps of a recipe, prepared and made as the trainer does; `compiled` as with `gambeson train --compile`."""

    def make(model: nn.Module, optimizer: SGD) -> Step:
        parts = Parts(part.build(model) for part in recipe.parts)
        for group in optimizer.param_groups:
            group["foreach"] = True  # as in the trainer

        net: list[nn.Module] = []

        def step(batch: Batch, rng: Rng) -> Tensor:
            net[:] = net or [CompiledForward(model, len(batch.y)) if compiled else model]
            model.train()
            return robust_step(net[0], batch, recipe, parts, optimizer, rng, epoch=0).loss

        return step

    return make


def training(
    make: Make, net: nn.Module, x: Tensor, y: Tensor, device: torch.device, channels_last: bool | None = None
) -> Training:
    """A copy of the network that steps on these images, in their precision."""
    model, x = placed(copy.deepcopy(net).to(x.dtype).train(), x, device, channels_last=channels_last)
    batch = Batch(x, y.to(device), torch.arange(len(x), device=device))
    optimizer = SGD(model.parameters(), lr=LR, **MOMENTUM)
    return Training(model, optimizer, batch, make(model, optimizer))


def _case(name: str, what: str, pair: Pair, net: nn.Module, x: Tensor, setup: Setup) -> Case:
    y = random_labels(len(x), setup.seed)
    # The releases leave the layout as it is; ours takes the one that training takes.
    sides: dict[str, tuple[Make, bool | None]] = {
        OURS: (ours(pair.recipe), None),
        CONTIGUOUS: (ours(pair.recipe), False),
        REFERENCE: (pair.reference, False),
    }
    if setup.compile:
        sides[COMPILED] = (ours(pair.recipe, compiled=True), None)
    if pair.idle is not None:
        sides[IDLE] = (pair.idle, False)

    def started(x: Tensor) -> dict[str, Training]:
        return {
            variant: training(make, net, x, y[: len(x)], setup.device, channels_last)
            for variant, (make, channels_last) in sides.items()
        }

    trainings = started(x)
    model, images = placed(copy.deepcopy(net), x, setup.device)

    def forward() -> Tensor:
        with torch.no_grad():
            return model(images)

    def guard() -> list[Check]:
        eager = {name: one for name, one in started(x[:GUARDED].double()).items() if name != COMPILED}
        checks = _compared(eager)
        losses = {variant: [train(), train()][-1] for variant, train in trainings.items()}
        for variant, loss in losses.items():
            if variant != REFERENCE:
                label = f"relative difference of the second step's loss, single precision, {variant}"
                checks.append(Check(label, abs(loss / losses[REFERENCE] - 1), ALIKE))
        return checks

    goal = pair.goal if setup.device.type == "cpu" and len(x) >= 64 else None
    ratios = [Ratio("reference / ours", REFERENCE, OURS, goal)]
    if COMPILED in trainings:
        ratios.append(Ratio("reference / ours, compiled", REFERENCE, COMPILED, goal))
    ratios.append(Ratio("reference / ours, contiguous", REFERENCE, CONTIGUOUS))
    if IDLE in trainings:
        ratios.append(Ratio(f"{IDLE} / ours", IDLE, OURS))
    ratios += [Ratio(f"{variant} / forward", variant, FORWARD) for variant in trainings]
    title = f"{name}: {pair.what}, {what}, {len(x)} random images"
    return Case(title, {**trainings, FORWARD: forward}, FORWARD, guard, tuple(ratios), images=len(x))


def _compared(trainings: dict[str, Training]) -> list[Check]:
    """Whether two steps leave the same state, and whether they moved anything."""
    start = trainings[REFERENCE].state()["weights"]
    states: dict[str, dict[str, dict[str, Tensor]]] = {}
    for variant, train in trainings.items():
        train()
        train()
        states[variant] = train.state()
    wanted = states.pop(REFERENCE)
    checks = [Check("movement of the weights in two steps, relative", _distance(wanted["weights"], start), MOVED)]
    for variant, state in states.items():
        for kind, tensors in state.items():
            if variant == IDLE and kind == "BatchNorm statistics":
                continue
            label = f"largest relative difference of {kind}, double precision, {variant}"
            if tensors.keys() != wanted[kind].keys():
                checks.append(Check(label, math.inf, EQUAL, "not the same tensors"))
                continue
            differences = {name: _distance({name: t}, {name: wanted[kind][name]}) for name, t in tensors.items()}
            worst = max(differences, key=differences.__getitem__)
            checks.append(Check(label, differences[worst], EQUAL, worst))
    return checks


def _distance(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> float:
    """The norm of the difference over that of `wanted`; infinite where it is no number, so that it is the largest."""
    difference = math.hypot(*(float((found[name] - t).norm()) for name, t in wanted.items()))
    size = math.hypot(*(float(t.norm()) for t in wanted.values()))
    if difference == 0:
        return 0.0
    return difference / size if size and math.isfinite(difference) else math.inf
