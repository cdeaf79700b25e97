"""The one ascent loop: FGSM, RS-FGSM, N-FGSM, PGD and the inner attacks of TRADES and SCORE are settings of it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, get_args

import torch

from gambeson.attacks.attack import LogitLoss, budget_of, input_gradient, per_image, require
from gambeson.attacks.starts import Boundary, Gaussian, Uniform, Zero
from gambeson.core.errors import InputError, require_known
from gambeson.core.losses import NEEDS_CLEAN, InnerLoss, inner_loss
from gambeson.core.modes import BatchNormMode, batch_norm, frozen
from gambeson.core.threat import Threat, box
from gambeson.core.types import Batch

if TYPE_CHECKING:
    from torch import Generator, Tensor, nn


GradientAt = Callable[["Tensor"], "tuple[Tensor, Tensor]"]
"""Maps images to `(gradient of the loss, logits)` there."""


@dataclass(frozen=True)
class Plain:
    """Follow the gradient at the current point."""

    def __call__(
        self, at: GradientAt, x_adv: Tensor, x: Tensor, threat: Threat, rng: Generator
    ) -> tuple[Tensor, Tensor]:
        """`(gradient, logits)` at `x_adv`."""
        return at(x_adv)


@dataclass(frozen=True)
class ZeroSmall:
    """Set the smallest gradient entries of every image to zero (ZeroGrad).

    Args:
        quantile: Entries with `|g|` below this quantile of the image are dropped, in [0, 1).

    References:
        Golgooni, Saberi, Eskandar, Rohban, "ZeroGrad: Costless conscious remedies for catastrophic overfitting in the
        FGSM adversarial training", Intelligent Systems with Applications 2023, https://arxiv.org/abs/2103.15476
    """

    quantile: float

    def __post_init__(self) -> None:
        require(0 <= self.quantile < 1, "the quantile of ZeroGrad lies in [0, 1)", self.quantile)

    def __call__(
        self, at: GradientAt, x_adv: Tensor, x: Tensor, threat: Threat, rng: Generator
    ) -> tuple[Tensor, Tensor]:
        """`(gradient with small entries zeroed, logits)`."""
        grad, logits = at(x_adv)
        # torch.quantile's linear interpolation, without its limit of 16 million entries
        sizes = grad.abs().flatten(1).sort(dim=1).values
        position = self.quantile * (sizes.shape[1] - 1)
        low = int(position)
        high = min(low + 1, sizes.shape[1] - 1)
        threshold = sizes[:, low].lerp(sizes[:, high], position - low).view(-1, *[1] * (grad.ndim - 1))
        return grad.masked_fill(grad.abs() < threshold, 0.0), logits


@dataclass(frozen=True)
class Unanimous:
    """Keep a gradient sign only where `points` random points of the ball agree on it (MultiGrad).

    References:
        Golgooni et al., as for `ZeroSmall`.
    """

    points: int = 3

    def __post_init__(self) -> None:
        require(self.points >= 1, "MultiGrad needs at least one point", self.points)

    def __call__(
        self, at: GradientAt, x_adv: Tensor, x: Tensor, threat: Threat, rng: Generator
    ) -> tuple[Tensor, Tensor]:
        """`(unanimous sign or zero, logits at the last point)`."""
        votes = torch.zeros_like(x)
        for _ in range(self.points):
            grad, logits = at(box(x + threat.sample(x, rng)))
            votes += grad.sign()
        return votes.masked_fill(votes.abs() < self.points, 0.0).sign(), logits


@dataclass(frozen=True, kw_only=True)
class PGD:
    """Projected gradient ascent inside a threat model.

    `x_0 = start(x)`; then `steps` times `x_{t+1} = box(project(x_t + step * ascend(grad loss(x_t))))`; the last iterate
    is returned.

    Args:
        steps: Number of steps.
        step_size: Step in pixel range units, or None.
        rel_step_size: Step as a multiple of eps (of the budget of the pixel or example where eps is a tensor), or None.
            Give at most one of the two; without either it is 1/4.
        start: `Zero()`, `Uniform(radius)`, `Gaussian(sigma)` or `Boundary()`.
        loss: What is maximised, see `gambeson.core.losses.inner_loss`.
        project: Project onto the ball after every step. N-FGSM does not.
        gradient: `Plain()`, `ZeroSmall(q)` or `Unanimous(n)`.
        restarts: Independent starts; a later one replaces only examples that the earlier ones did not fool.
        freeze_fooled: Stop moving an example at the first step at which it is misclassified (for evaluation).
        bn: BatchNorm during the attack: `"running"`, `"batch"` or `"update"`, see `gambeson.core.modes.batch_norm`.

    Raises:
        InputError: A setting out of range.

    References:
        Madry, Makelov, Schmidt, Tsipras, Vladu, "Towards deep learning models resistant to adversarial attacks", ICLR
        2018, https://arxiv.org/abs/1706.06083
    """

    steps: int = 10
    step_size: float | None = None
    rel_step_size: float | None = None
    start: Zero | Uniform | Gaussian | Boundary = Uniform()  # noqa: RUF009 (frozen)
    loss: InnerLoss = "ce"
    project: bool = True
    gradient: Plain | ZeroSmall | Unanimous = Plain()
    restarts: int = 1
    freeze_fooled: bool = False
    bn: BatchNormMode = "running"

    def __post_init__(self) -> None:
        if self.steps < 1 or self.restarts < 1:
            raise InputError(f"an attack needs at least 1 step and 1 restart, got {self.steps} and {self.restarts}")
        if self.step_size is not None and self.rel_step_size is not None:
            raise InputError("give step_size or rel_step_size, not both")
        for step in (self.step_size, self.rel_step_size):
            require(step is None or 0 <= step < math.inf, "the step of an attack must be finite and >= 0", step)
        require_known("BatchNorm mode", self.bn, get_args(BatchNormMode))
        require_known("inner loss", self.loss, NEEDS_CLEAN)

    def __call__(self, model: nn.Module, batch: Batch, threat: Threat, rng: Generator) -> Tensor:
        """Adversarial images for `batch`, of its shape, detached, inside the ball (unless `project=False`) and [0, 1].

        The model's parameters, modes and flags are as before afterwards; BatchNorm statistics too unless `bn="update"`.
        """
        with frozen(model), batch_norm(model, self.bn):
            x_adv = self._run(model, batch, self.begin(batch.x, threat, rng), threat, rng)
            for _ in range(self.restarts - 1):
                start = self.begin(batch.x, threat, rng)  # for the whole batch: draws do not depend on who has fallen
                left = (~_fooled(model, x_adv, batch.y)).nonzero().squeeze(1)
                if len(left) == 0:
                    break
                rest = Batch(batch.x[left], batch.y[left], batch.index[left])
                x_adv[left] = self._run(model, rest, start[left], budget_of(threat, left), rng)
        return x_adv

    def begin(self, x: Tensor, threat: Threat, rng: Generator) -> Tensor:
        """The starting point."""
        return self.start(x, threat, rng).detach()

    def move(self, x_adv: Tensor, grad: Tensor, x: Tensor, threat: Threat) -> Tensor:
        """One step along `grad` from `x_adv`, projected and clipped."""
        if self.step_size is not None:
            step: float | Tensor = self.step_size
        else:
            step = (0.25 if self.rel_step_size is None else self.rel_step_size) * threat.eps
        x_adv = x_adv + step * threat.ascend(grad)
        return box(threat.project(x_adv, x) if self.project else x_adv)

    def climb(
        self, model: nn.Module, x: Tensor, y: Tensor, loss: LogitLoss, x_adv: Tensor, threat: Threat, rng: Generator
    ) -> Tensor:
        """The ascent loop: `steps` steps up `loss` from `x_adv`. The caller freezes the model and sets its modes.

        Args:
            model: Maps images to logits.
            x: Clean images `(N, C, H, W)`, the centres of the balls.
            y: Labels `(N,)`; only `freeze_fooled` reads them.
            loss: What is maximised, instead of the attack's own `loss`.
            x_adv: The starting point.
            threat: The balls.
            rng: Randomness of `gradient`.

        Returns:
            The last iterate, detached.
        """
        if self.freeze_fooled and self.project:
            x_adv = box(threat.project(x_adv, x))  # a start that fools is returned as it is
        for _ in range(self.steps):
            grad, logits = self.gradient(lambda at: input_gradient(model, loss, at)[:2], x_adv, x, threat, rng)
            moved = self.move(x_adv, grad, x, threat)
            if self.freeze_fooled:
                moved = torch.where(per_image(logits.argmax(1) != y, x), x_adv, moved)
            x_adv = moved
        return x_adv

    def _run(self, model: nn.Module, batch: Batch, x_adv: Tensor, threat: Threat, rng: Generator) -> Tensor:
        clean = None
        if NEEDS_CLEAN[self.loss]:
            with torch.no_grad():
                clean = model(batch.x)

        def loss(logits: Tensor) -> Tensor:
            return inner_loss(self.loss, logits, batch.y, clean)

        return self.climb(model, batch.x, batch.y, loss, x_adv, threat, rng)


def fgsm(*, bn: BatchNormMode = "running") -> PGD:
    """The fast gradient sign method: one step of size eps from the clean image.

    References:
        Goodfellow, Shlens, Szegedy, "Explaining and harnessing adversarial examples", ICLR 2015,
        https://arxiv.org/abs/1412.6572
    """
    return PGD(steps=1, rel_step_size=1.0, start=Zero(), bn=bn)


def _fooled(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    with torch.no_grad():
        return model(x).argmax(1) != y
