"""PGD-10: adversarial images of a batch, against a plain loop and the packages that are installed."""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.case import Bound, Case, Check, Ratio, Setup
from benchmarks.inputs import TASK, cifar_images, placed, random_images, random_labels, settled
from benchmarks.references import pgd as reference
from gambeson.attacks import PGD
from gambeson.attacks.starts import Zero
from gambeson.core.streams import Streams
from gambeson.core.threat import Linf
from gambeson.core.types import Batch
from gambeson.models import create

EPS, STEP, STEPS = 8 / 255, 2 / 255, 10
OURS, LOOP, FORWARD = "gambeson", "plain loop (reference)", "forward"
GOALS = {"torchattacks": Bound(">=", 1.2), "foolbox": Bound(">=", 1.6), "art": Bound(">=", 1.8)}
EQUAL = Bound(">=", 0.9999)  # in double precision, and in single precision in the same layout
ALIKE = Bound(
    "<=", 0.01
)  # in another layout a gradient near 0 has the sign that the rounding gives it, step after step
MOVED = Bound(">=", 0.5)


def cases(setup: Setup) -> Iterator[Case]:
    """PreActResNet-18, on random images and on real ones where they lie."""
    width = 64 if setup.full else 16
    sets = [(random_images(setup.batch_size, setup.seed), "random images")]
    if (real := cifar_images(setup.batch_size)) is not None:
        sets.append((real, "images of CIFAR-10"))
    for x, images in sets:
        net = settled(create("preact-resnet18", TASK, width=width, seed=setup.seed), x)
        yield _case(f"preact-resnet18 of width {width}", net, x, images, setup)


def _case(what: str, net: nn.Module, x: Tensor, images: str, setup: Setup) -> Case:
    y = random_labels(len(x), setup.seed).to(setup.device)
    # The packages leave the layout as it is; ours takes the one that training takes.
    as_given, x_as_given = placed(copy.deepcopy(net), x, setup.device, channels_last=False)
    model, x = placed(copy.deepcopy(net), x, setup.device)
    batch, attack = Batch(x, y, torch.arange(len(x))), PGD(steps=STEPS, step_size=STEP, start=Zero())

    def ours(net: nn.Module = model, batch: Batch = batch) -> Tensor:
        return attack(net, batch, Linf(EPS), Streams(0).at("benchmark", 0, setup.device))

    def loop(net: nn.Module = as_given, x: Tensor = x_as_given) -> Tensor:
        return reference.attack(net, x, y, eps=EPS, step=STEP, steps=STEPS)

    def loss(x_adv: Tensor) -> float:
        with torch.no_grad():
            return float(nn.functional.cross_entropy(as_given(x_adv), y))

    def forward() -> Tensor:
        with torch.no_grad():
            return model(x)

    makers = {"torchattacks": _torchattacks, "foolbox": _foolbox, "art": _art}
    peers = {
        name: make(as_given, x_as_given, y, setup) for name, make in makers.items() if importlib.util.find_spec(name)
    }

    def guard() -> list[Check]:
        wanted = loop()
        moved = float(((wanted - x_as_given).abs() > EPS / 2).float().mean())
        checks = [Check("share of values moved by more than eps/2", moved, MOVED)]
        precise, exact = copy.deepcopy(as_given).double(), x_as_given.double()
        pairs = {
            f"{OURS}, double precision": (ours(precise, Batch(exact, y, batch.index)), loop(precise, exact)),
            **{name: (function(), wanted) for name, function in peers.items()},
        }
        for name, (found, other) in pairs.items():
            equal = float(((found - other).abs() < 1e-5).float().mean())
            checks.append(Check(f"share of values equal to the reference's, {name}", equal, EQUAL))
        apart = abs(loss(ours()) / loss(wanted) - 1)
        checks.append(Check(f"relative difference of the loss, {OURS}", apart, ALIKE))
        return checks

    goal = setup.device.type == "cpu" and len(x) >= 64
    ratios = [Ratio(f"{name} / ours", name, OURS, GOALS[name] if goal else None) for name in peers]
    ratios += [Ratio("reference / ours", LOOP, OURS), Ratio("ours / forward", OURS, FORWARD)]
    title = f"pgd: {what}, {STEPS} steps, {len(x)} {images}"
    variants = {OURS: ours, LOOP: loop, **peers, FORWARD: forward}
    return Case(title, variants, FORWARD, guard, tuple(ratios), images=len(x))


def _torchattacks(model: nn.Module, x: Tensor, y: Tensor, setup: Setup) -> Callable[[], Tensor]:
    import torchattacks

    attack = torchattacks.PGD(model, eps=EPS, alpha=STEP, steps=STEPS, random_start=False)
    return lambda: attack(x, y)


def _foolbox(model: nn.Module, x: Tensor, y: Tensor, setup: Setup) -> Callable[[], Tensor]:
    import foolbox

    wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device=setup.device)
    attack = foolbox.attacks.LinfPGD(abs_stepsize=STEP, steps=STEPS, random_start=False)
    return lambda: attack.run(wrapped, x, foolbox.criteria.Misclassification(y), epsilon=EPS)


def _art(model: nn.Module, x: Tensor, y: Tensor, setup: Setup) -> Callable[[], Tensor]:
    from art.attacks.evasion import ProjectedGradientDescent
    from art.estimators.classification import PyTorchClassifier

    wrapped = PyTorchClassifier(
        model,
        nn.CrossEntropyLoss(),
        tuple(x.shape[1:]),
        TASK.num_classes,
        clip_values=(0, 1),
        device_type="gpu" if setup.device.type == "cuda" else "cpu",
    )
    attack = ProjectedGradientDescent(
        wrapped, eps=EPS, eps_step=STEP, max_iter=STEPS, num_random_init=0, batch_size=len(x), verbose=False
    )
    images, labels = x.cpu().numpy(), np.eye(TASK.num_classes, dtype=np.float32)[y.cpu().numpy()]
    return lambda: torch.from_numpy(attack.generate(images, labels)).to(x.device)
