"""The margin decomposition attack: first one term of the margin alone, so that the other's gradient cannot hide it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from gambeson.attacks.attack import input_gradient, per_image, require
from gambeson.attacks.search import Forward, Jobs, State, noise, select
from gambeson.core.threat import box

if TYPE_CHECKING:
    from torch import Tensor

    from gambeson.core.streams import Streams
    from gambeson.core.threat import Threat


@dataclass(frozen=True, kw_only=True)
class MD:
    """The margin decomposition attack (MD) as a `Search`.

    The margin `max_{k != y} z_k - z_y` has two terms, whose gradients may nearly cancel: then an attack on the margin
    follows what is left of their sum. A round begins at a random point of the ball and takes K steps

        x_{i+1} = box(project(x_i + a_i ascend(grad l_i(x_i))))

    on `l_0 = z_y`, for `0 < i < C` on one term alone, `-z_y` in even rounds and `max_{k != y} z_k` in odd ones, and
    from step C on the margin. The steps fall twice: `a_i = eps (1 + cos(pi (i - 1) / (K - C)))` up to i = C, and
    `a_i = eps (1 + cos(pi (i - C - 1) / (K - C)))` after it.

    Args:
        steps: Steps K of every round.
        change: Step C at which the margin takes over.
        restarts: Pairs of rounds.

    Raises:
        InputError: A setting out of range.

    References:
        Jiang, Ma, Erfani, Bailey, "Imbalanced gradients: a subtle cause of overestimated adversarial robustness",
        Machine Learning 2023, https://arxiv.org/abs/2006.13726; code: https://github.com/HanxunH/MDAttack
    Departures:
        From the release (attacks/MD.py, `MDAttack.perturb`): the random start is clipped to [0, 1], and belongs to the
        example. An example stops where it falls; the release goes on and keeps the last misclassified image.
    """

    steps: int = 50
    change: int = 25
    restarts: int = 1

    def __post_init__(self) -> None:
        require(self.restarts >= 1, "MD needs restarts >= 1", self.restarts)
        require(1 <= self.change < self.steps, f"MD changes its loss at a step in [1, {self.steps})", self.change)

    @property
    def name(self) -> str:
        """`md`."""
        return "md"

    @property
    def length(self) -> int:
        """Steps, and the look at the last point."""
        return self.steps + 1

    def rounds(self, num_classes: int) -> int:
        """Two per restart."""
        return 2 * self.restarts

    def begin(self, jobs: Jobs, threat: Threat, streams: Streams) -> State:
        """Uniform starts: in the cube of the budget, for L2 projected onto the ball."""
        x, no = jobs.x, torch.zeros_like(jobs.y, dtype=torch.bool)
        draw = 2 * noise(jobs, self.name, streams, torch.rand) - 1
        return {
            "x": x,
            "y": jobs.y,
            "x_adv": x,
            "fooled": no,
            "ended": no,
            "at": box(threat.project(x + draw * threat.eps, x)),
            "odd": jobs.round % 2 == 1,
            "taken": torch.zeros_like(jobs.y),
        }

    def step(self, model: Forward, state: State, threat: Threat) -> None:
        """One gradient, a look at the label, and one step."""
        s, taken, at = state, state["taken"], state["at"]

        def loss(logits: Tensor) -> Tensor:
            own = logits.gather(1, s["y"][:, None]).squeeze(1)
            other = logits.scatter(1, s["y"][:, None], -torch.inf).amax(1)
            alone = torch.where(s["odd"], other, -own)
            return torch.where(taken == 0, own, torch.where(taken < self.change, alone, other - own))

        grad, logits, _ = input_gradient(model, loss, at)
        wrong = ~s["fooled"] & (logits.argmax(1) != s["y"])
        s["x_adv"], s["fooled"] = select(wrong, at, s["x_adv"]), s["fooled"] | wrong
        s["ended"] = taken >= self.steps
        since = taken - 1 - torch.where(taken > self.change, self.change, 0)
        size = 1 + torch.cos(math.pi * since.to(at.dtype) / (self.steps - self.change))
        moved = box(threat.project(at + per_image(size, at) * threat.eps * threat.ascend(grad), s["x"]))
        stay = s["fooled"] | s["ended"]
        s["at"], s["taken"] = select(stay, at, moved), taken + (~stay).to(taken.dtype)
