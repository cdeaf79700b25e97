"""The sentinel against catastrophic overfitting: FGSM accuracy against PGD accuracy on a fixed probe batch."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from gambeson.attacks.attack import input_gradient
from gambeson.attacks.pgd import PGD, Uniform, fgsm
from gambeson.core.losses import ce
from gambeson.core.modes import batch_norm, frozen
from gambeson.core.streams import Streams
from gambeson.core.threat import Threat
from gambeson.core.types import Batch
from gambeson.evaluation.judging import judge, returned_images

EVENT = "catastrophic overfitting"
"""What the metrics call a look whose verdict is a collapse."""

PROBE = 256
"""Training images of the probe batch, at most."""


@dataclass(frozen=True)
class Probe:
    """One look of the sentinel.

    Attributes:
        fgsm: Accuracy under FGSM.
        pgd: Accuracy under PGD-10.
        collapsed: The verdict.
        aae: Share of abnormal adversarial examples: a step of FGSM from a random start lowers their loss.
        alignment: Mean cosine of the gradients at the image and at the random start; None where no image has both.
    """

    fgsm: float
    pgd: float
    collapsed: bool
    aae: float
    alignment: float | None

    @property
    def gap(self) -> float:
        """`fgsm - pgd`: near zero while healthy, large after the collapse."""
        return self.fgsm - self.pgd


def has_collapsed(fgsm: float, pgd: float, best: float, gap: float = 0.2) -> bool:
    """Whether a model has learned to answer one step instead of the ball.

    `fgsm - pgd >= gap`, and PGD accuracy is below half its running maximum (it fell) or below a quarter of FGSM
    accuracy (it never rose). The gap alone would fire on a merely weak attack, the others alone on noise at the start.

    Args:
        fgsm: FGSM accuracy.
        pgd: PGD accuracy.
        best: Running maximum of PGD accuracy.
        gap: Smallest difference that counts.

    Examples:
        >>> has_collapsed(0.42, 0.0, 0.1), has_collapsed(0.88, 0.60, 0.61)
        (True, False)
    """
    return fgsm - pgd >= gap and (pgd < best / 2 or pgd < fgsm / 4)


def alignment(first: Tensor, second: Tensor) -> float | None:
    """The mean cosine of two gradients per example, over the examples at which both are finite and not zero.

    Args:
        first: Gradients `(N, C, H, W)`.
        second: Others, of the same examples.

    Returns:
        In [-1, 1]; None where no example is left.

    References:
        Andriushchenko & Flammarion, as for `Sentinel`; their code leaves out zero gradients too.
    """
    rows = [flat / flat.abs().amax(1, keepdim=True) for flat in (first.flatten(1), second.flatten(1))]  # no underflow
    there = torch.stack([row.isfinite().all(1) for row in rows]).all(0)
    cosines = torch.nn.functional.cosine_similarity(rows[0][there], rows[1][there], dim=1)
    return cosines.mean().item() if len(cosines) else None


class Sentinel:
    """Watches a single-step method for catastrophic overfitting.

    Both accuracies are measured in evaluation mode on the same images each time; `has_collapsed` is the verdict. Two
    more symptoms are measured on the way, with two forwards and a backward: with u uniform in the ball and
    `g(x) = grad loss(x)`, the gradient alignment `mean cos(g(x), g(x + u))`, and the share of abnormal adversarial
    examples, those with `loss(project(x + u + eps ascend(g(x + u)))) < loss(x + u)`.

    Args:
        probe: Fixed images, not augmented.
        threat: Ball of both attacks.
        num_classes: Number of classes.
        seed: Seed of the random starts.
        gap: Smallest FGSM-PGD gap of a collapse.

    References:
        Wong, Rice, Kolter, "Fast is better than free: revisiting adversarial training", ICLR 2020,
        https://arxiv.org/abs/2001.03994 (PGD-5 accuracy falling by 0.2 between epochs); Andriushchenko, Flammarion,
        "Understanding and improving fast adversarial training", NeurIPS 2020, https://arxiv.org/abs/2007.02617
        (alignment); Lin, Yu, Han, Su, Liu, "Eliminating catastrophic overfitting via abnormal adversarial examples
        regularization", NeurIPS 2023 (abnormal examples).

    Departures:
        The rule combines the two published symptoms and adds a third; the thresholds are ours. Abnormal examples are
        counted in evaluation mode, from a start in the ball and with a step of eps; the release counts them in training
        mode, with the noise and the step of the training. The start is clipped to [0, 1], as there; that of GradAlign's
        release is not.
    """

    def __init__(self, probe: Batch, threat: Threat, num_classes: int, seed: int, gap: float = 0.2) -> None:
        self.probe, self.threat, self.num_classes, self.gap = probe, threat, num_classes, gap
        self.streams = Streams(seed)
        self.best = 0.0

    def look(self, model: nn.Module, step: int) -> Probe:
        """Measure, judge, and remember the best PGD accuracy so far."""
        x, y = self.probe.x, self.probe.y
        rng = self.streams.at("sentinel", step, x.device)
        with frozen(model), batch_norm(model, "running"):
            grad = input_gradient(model, partial(ce, y=y), x)[0]
        fast = self._accuracy(model, fgsm().move(x, grad, x, self.threat))
        attack = PGD(steps=10, rel_step_size=0.25, start=Uniform(), freeze_fooled=True)
        strong = self._accuracy(model, attack(model, self.probe, self.threat, rng))
        aae, aligned = self._symptoms(model, grad, step)
        self.best = max(self.best, strong)
        return Probe(fast, strong, has_collapsed(fast, strong, self.best, self.gap), aae, aligned)

    def _accuracy(self, model: nn.Module, x_adv: Tensor) -> float:
        images, _ = returned_images(x_adv, self.probe.x, self.threat)
        return judge(model, images, self.probe.y, self.num_classes).float().mean().item()

    def _symptoms(self, model: nn.Module, grad: Tensor, step: int) -> tuple[float, float | None]:
        """The share of abnormal examples and the alignment; `grad` is that at the images."""
        x, loss = self.probe.x, partial(ce, y=self.probe.y)
        attack = PGD(steps=1, rel_step_size=1.0, start=Uniform())
        start = attack.begin(x, self.threat, self.streams.at("sentinel/symptoms", step, x.device))
        with frozen(model), batch_norm(model, "running"):
            there, _, before = input_gradient(model, loss, start)
            with torch.no_grad():
                after = loss(model(attack.move(start, there, x, self.threat)))
        return (after < before).float().mean().item(), alignment(grad, there)

    def state_dict(self) -> dict[str, Any]:
        """What the verdict depends on."""
        return {"best": self.best}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back what `state_dict` gave."""
        self.best = state["best"]
