"""How a training step grows: time, operations and memory against batch, width, attack steps and number of classes.

One factor is varied at a time around a base point; all its values are timed round by round in one process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.case import Bound, Case, Check, Factor, Setup
from benchmarks.inputs import TASK, placed, random_images
from gambeson.core.streams import Streams
from gambeson.core.types import Batch
from gambeson.engine.step import robust_step
from gambeson.methods import method
from gambeson.models import create
from gambeson.parts.state import Parts

EXACT = Bound("<=", 0)
MOVED = Bound(">=", 0.5)
BATCHES = (0.25, 0.5, 1, 2)
"""Times the base."""
WIDTHS, FULL_WIDTHS = (16, 32, 64), (16, 32, 64, 128)
BASE_STEPS, STEPS, CLASSES = 10, (1, 2, 5, 10, 20), (10, 100, 1000)


@dataclass(frozen=True)
class Point:
    """A setting of a training step.

    Attributes:
        method: `pgd-at` or `fgsm`.
        batch: Images.
        width: Channels of the first stage of PreActResNet-18.
        steps: Of the attack; 1 for `fgsm`, which has no other number.
        classes: Outputs of the network.
    """

    method: str
    batch: int
    width: int
    steps: int
    classes: int


def cases(setup: Setup) -> Iterator[Case]:
    """Adversarial training with PGD-10, then FGSM, from the batch that is asked for and a quarter of the width."""
    base = Point("pgd-at", setup.batch_size, 64 if setup.full else 16, BASE_STEPS, TASK.num_classes)
    single = replace(base, method="fgsm", steps=1)
    batches = sorted({max(2, round(share * setup.batch_size)) for share in BATCHES})  # BatchNorm needs two
    widths = FULL_WIDTHS if setup.full else WIDTHS
    yield _case(base, "batch", batches, setup)
    yield _case(base, "width", widths, setup)
    yield _case(base, "steps", STEPS, setup)
    yield _case(base, "classes", CLASSES, setup)
    yield _case(single, "batch", batches, setup)
    yield _case(single, "width", widths, setup)


class Step:
    """One training step on a network of its own, again and again on the same images.

    Args:
        point: The setting.
        setup: Device and seed.
    """

    def __init__(self, point: Point, setup: Setup) -> None:
        task = replace(TASK, num_classes=point.classes)
        net = create("preact-resnet18", task, width=point.width, seed=setup.seed)
        labels = torch.randint(0, point.classes, (point.batch,), generator=Streams(setup.seed).at("benchmark-labels"))
        self.net, x = placed(net, random_images(point.batch, setup.seed), setup.device)
        self.batch = Batch(x, labels.to(setup.device), torch.arange(point.batch, device=setup.device))
        settings = {"steps": point.steps} if point.method == "pgd-at" else {}
        _, make = method(point.method)
        self.recipe = make(**settings)
        self.parts = Parts(part.build(self.net) for part in self.recipe.parts).to(setup.device)
        self.optimizer = torch.optim.SGD(self.net.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
        self.streams, self.device = Streams(setup.seed), setup.device
        self.net.train()

    def __call__(self) -> object:
        def rng(purpose: str) -> torch.Generator:
            return self.streams.at(purpose, 0, self.device)

        return robust_step(self.net, self.batch, self.recipe, self.parts, self.optimizer, rng, 0)


def _case(base: Point, name: str, values: Any, setup: Setup) -> Case:
    points = {f"{name} {value}": replace(base, **{name: value}) for value in values}
    steps: dict[str, Step] = {label: Step(point, setup) for label, point in points.items()}

    def guard() -> list[Check]:
        passes, outputs, moved = {}, {}, {}
        for label, step in steps.items():
            point, before = points[label], [p.detach().clone() for p in step.net.parameters()]
            seen, logits = _watched(step.net, step)
            passes[label] = abs(seen - point.batch * (point.steps + 1))  # every step of the attack, and one to train
            outputs[label] = abs(logits - point.classes)
            pairs = list(zip(before, step.net.parameters(), strict=True))
            moved[label] = sum(not torch.equal(old, new) for old, new in pairs) / len(pairs)
        worst, logit, least = (
            pick(found, key=found.__getitem__) for pick, found in ((max, passes), (max, outputs), (min, moved))
        )
        return [
            Check("passes forward too many or too few", passes[worst], EXACT, worst),
            Check("outputs too many or too few", outputs[logit], EXACT, logit),
            Check("share of parameters that the step moved", moved[least], MOVED, least),
        ]

    fixed = {key: value for key, value in vars(base).items() if key not in (name, "method")}
    if base.method == "fgsm":
        del fixed["steps"]
    around = ", ".join(f"{key} {value}" for key, value in fixed.items())
    title = f"growth of a step of {base.method} with {name}: preact-resnet18, {around}"
    factor = Factor(name, {label: float(getattr(point, name)) for label, point in points.items()})
    images = {label: point.batch for label, point in points.items()}
    return Case(title, dict(steps), None, guard, (), images=images, factor=factor)


def _watched(net: nn.Module, function: Callable[[], object]) -> tuple[int, int]:
    """How many images go forward through a network in one call, and how many logits come out for each."""
    seen, logits = [0], [0]

    def count(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        seen[0] += len(output)
        logits[0] = output.shape[1]

    handle = net.register_forward_hook(count)
    try:
        function()
    finally:
        handle.remove()
    return seen[0], logits[0]
