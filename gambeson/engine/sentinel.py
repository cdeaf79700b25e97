"""The sentinel against catastrophic overfitting: FGSM accuracy against PGD accuracy on a fixed probe batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from gambeson.attacks.pgd import PGD, Uniform, fgsm
from gambeson.core.streams import Streams
from gambeson.core.threat import Threat
from gambeson.core.types import Batch
from gambeson.evaluation.judging import judge, returned_images


@dataclass(frozen=True)
class Probe:
    """One look of the sentinel.

    Attributes:
        fgsm: Accuracy under FGSM.
        pgd: Accuracy under PGD-10.
        collapsed: The verdict.
    """

    fgsm: float
    pgd: float
    collapsed: bool

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


class Sentinel:
    """Watches a single-step method for catastrophic overfitting.

    Both accuracies are measured in evaluation mode on the same images each time; `has_collapsed` is the verdict.

    Args:
        probe: Fixed images, not augmented.
        threat: Ball of both attacks.
        num_classes: Number of classes.
        seed: Seed of the random starts.
        gap: Smallest FGSM-PGD gap of a collapse.

    References:
        Wong, Rice, Kolter, ICLR 2020 (PGD-5 accuracy falling by 0.2 between epochs); Andriushchenko & Flammarion,
        NeurIPS 2020.

    Departures:
        The rule combines the two published symptoms and adds a third; the thresholds are ours.
    """

    def __init__(self, probe: Batch, threat: Threat, num_classes: int, seed: int, gap: float = 0.2) -> None:
        self.probe, self.threat, self.num_classes, self.gap = probe, threat, num_classes, gap
        self.streams = Streams(seed)
        self.best = 0.0

    def look(self, model: nn.Module, step: int) -> Probe:
        """Measure, judge, and remember the best PGD accuracy so far."""
        values = []
        for attack in (fgsm(), PGD(steps=10, rel_step_size=0.25, start=Uniform(), freeze_fooled=True)):
            rng = self.streams.at("sentinel", step, self.probe.x.device)
            x_adv, _ = returned_images(attack(model, self.probe, self.threat, rng), self.probe.x, self.threat)
            values.append(judge(model, x_adv, self.probe.y, self.num_classes).float().mean().item())
        fast, strong = values
        self.best = max(self.best, strong)
        return Probe(fast, strong, has_collapsed(fast, strong, self.best, self.gap))

    def state_dict(self) -> dict[str, Any]:
        """What the verdict depends on."""
        return {"best": self.best}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back what `state_dict` gave."""
        self.best = state["best"]
