"""Minimum-margin attacks: every image is attacked towards the few classes that are nearest to it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch

from gambeson.attacks.apgd import apgd
from gambeson.attacks.attack import budget_of, require
from gambeson.attacks.pgd import PGD
from gambeson.attacks.starts import Boundary, Gaussian, Uniform, Zero
from gambeson.core.errors import InputError
from gambeson.core.losses import targeted_margin
from gambeson.core.modes import batch_norm, frozen

if TYPE_CHECKING:
    from torch import Generator, Tensor, nn

    from gambeson.core.threat import Threat
    from gambeson.core.types import Batch


@dataclass(frozen=True, kw_only=True)
class MMA:
    """The minimum-margin attack with fixed steps: PGD towards each of the `targets` nearest classes, all at once.

    The targets `t` of an image are the classes of its largest clean logits, the true class `y` excluded. From one
    start, the same for all targets, PGD maximises `z_t - z_y`; of the last iterates the one with the largest margin
    `z_t - z_y` to its own target is returned. All images are attacked, misclassified ones too, to the last step.

    The candidates lie one after the other on the batch axis, so a forward sees `targets * N` images. They would mix in
    batch statistics, therefore BatchNorm always uses its running statistics.

    Args:
        targets: Classes to attack towards; all but the true one where there are fewer.
        steps: Number of steps.
        step_size: Step in pixel range units, or None.
        rel_step_size: Step as a multiple of eps (of the budget of the pixel or example where eps is a tensor), or None.
            Give at most one of the two; without either it is 1/4.
        start: The first point.

    Raises:
        InputError: A setting out of range.

    References:
        Gao, Wang, Zhou, Liu, Xie, Niu, Han, Cheng, "Fast and reliable evaluation of adversarial robustness with
        minimum-margin attack", ICML 2022, https://arxiv.org/abs/2206.07314; code:
        https://github.com/Sjtubrian/MM-attack
    Departures:
        This is `mmu_at_train` (attack_generator.py), there the attack of MM3-F training; PART (ICML 2024) evaluates
        with it under the name MMA. The release's hinge `max(z_y - z_t + 50, 0)` is left out: it only stops an image
        whose target leads by 50. More targets than wrong classes are cut, where the release fails or attacks towards
        the true class. The step is 1/4 of the budget as PART's on CIFAR-10 (on SVHN it takes 1/8); the release trains
        with 0.007 for eps 0.031.
    """

    targets: int = 3
    steps: int = 20
    step_size: float | None = None
    rel_step_size: float | None = None
    start: Zero | Uniform | Gaussian | Boundary = Uniform()  # noqa: RUF009 (frozen)

    def __post_init__(self) -> None:
        require(self.targets >= 1, "a minimum-margin attack needs at least one target", self.targets)
        self._ascent()  # checks the other settings

    def __call__(self, model: nn.Module, batch: Batch, threat: Threat, rng: Generator) -> Tensor:
        """Adversarial images for `batch`, of its shape, detached, inside ball and [0, 1]; the model is as before."""
        x, n = batch.x, len(batch.x)
        with frozen(model), batch_norm(model, "running"):
            with torch.no_grad():
                targets = nearest_classes(model(x), batch.y, self.targets)
            copies = torch.arange(n, device=x.device).repeat(len(targets))
            labels = batch.y[copies]
            loss = partial(targeted_margin, y=labels, target=targets.flatten())
            start = self.start(x, threat, rng).detach()[copies]
            x_adv = self._ascent().climb(model, x[copies], labels, loss, start, budget_of(threat, copies), rng)
            with torch.no_grad():
                best = loss(model(x_adv)).view(len(targets), n).argmax(0)
        return x_adv[best * n + torch.arange(n, device=x.device)]

    def _ascent(self) -> PGD:
        return PGD(steps=self.steps, step_size=self.step_size, rel_step_size=self.rel_step_size, start=self.start)


@dataclass(frozen=True, kw_only=True)
class MarginAPGD:
    """The minimum-margin attack with adaptive steps: Auto-PGD towards one near class after the other.

    The targets `t` of an image are the classes of its largest clean logits, the true class `y` excluded. Auto-PGD
    maximises `z_t - z_y` from a start of its own for every target. An image that falls, to whatever class, is not
    attacked further; an image that is wrong without attack is not attacked at all.

    Args:
        targets: Classes to attack towards; all but the true one where there are fewer.
        steps: Steps of Auto-PGD towards each.

    Raises:
        InputError: Fewer than one target or step.

    References:
        Gao et al., as for `MMA`.
    Departures:
        From `eval_robust_mm_sequential` (attack_generator.py): the starts of the targets are different draws, one for
        the whole batch per target; the release seeds the generator anew for each. More targets than wrong classes are
        cut; the release fails.
    """

    targets: int = 3
    steps: int = 20

    def __post_init__(self) -> None:
        require(self.targets >= 1, "a minimum-margin attack needs at least one target", self.targets)
        require(self.steps >= 1, "an attack needs at least 1 step", self.steps)

    def __call__(self, model: nn.Module, batch: Batch, threat: Threat, rng: Generator) -> Tensor:
        """Images for `batch`, of its shape, detached: adversarial where the attack succeeded, else the clean ones.

        They are inside the ball and [0, 1]; the model is as before.
        """
        x, y = batch.x, batch.y
        x_adv = x.clone()
        with frozen(model), batch_norm(model, "running"):
            with torch.no_grad():
                logits = model(x)
            standing = logits.argmax(1) == y
            for target in nearest_classes(logits, y, self.targets):
                start = Boundary()(x, threat, rng)  # for the whole batch: draws do not depend on who has fallen
                left = standing.nonzero().squeeze(1)
                if len(left) == 0:
                    break
                loss = partial(targeted_margin, y=y[left], target=target[left])
                found = apgd(model, x[left], y[left], loss, start[left], budget_of(threat, left), steps=self.steps)
                x_adv[left] = found.x_adv
                standing[left] = ~found.fooled
        return x_adv


def mm3() -> MarginAPGD:
    """MM3 of Gao et al. (ICML 2022), see `MarginAPGD`: 3 targets, 20 steps each."""
    return MarginAPGD(targets=3, steps=20)


def mm9() -> MarginAPGD:
    """MM9 of Gao et al. (ICML 2022), see `MarginAPGD`: 9 targets, 20 steps each."""
    return MarginAPGD(targets=9, steps=20)


def mm_plus() -> MarginAPGD:
    """MM+ of Gao et al. (ICML 2022), see `MarginAPGD`: 9 targets, 100 steps each."""
    return MarginAPGD(targets=9, steps=100)


def nearest_classes(logits: Tensor, y: Tensor, count: int) -> Tensor:
    """The `count` classes with the largest logits, the true class excluded; all others where there are fewer.

    Args:
        logits: Clean logits `(N, K)`.
        y: Labels `(N,)`.
        count: At least 1.

    Returns:
        Classes `(min(count, K - 1), N)`, nearest first.

    Raises:
        InputError: There is only one class.
    """
    classes = logits.shape[1]
    if classes < 2:
        raise InputError(f"a targeted attack needs at least 2 classes, got {classes}")
    return logits.scatter(1, y[:, None], -torch.inf).topk(min(count, classes - 1), dim=1).indices.T
