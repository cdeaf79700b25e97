"""Where attacks start: at the image, uniformly in its ball, on the boundary of its ball, or near it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from gambeson.attacks.attack import per_image, require
from gambeson.core.threat import Threat, box

if TYPE_CHECKING:
    from torch import Generator, Tensor


@dataclass(frozen=True)
class Zero:
    """Start at the clean image."""

    def __call__(self, x: Tensor, threat: Threat, rng: Generator) -> Tensor:
        """`x` itself."""
        return x


@dataclass(frozen=True, repr=False)
class Uniform:
    """Start uniformly in the ball of radius `radius * eps`, clipped to [0, 1].

    Args:
        radius: In multiples of the budget, >= 0.
        eps: The budget of the start, a fraction of the pixel range; None for the budget of the threat. A number makes
            the start independent of budgets per pixel or example.
        clip: Clip the start to [0, 1]. Without it the first gradient is taken where no image is.

    Raises:
        InputError: A setting out of range.
    """

    radius: float = 1.0
    eps: float | None = None
    clip: bool = True

    def __post_init__(self) -> None:
        require(0 <= self.radius < math.inf, "the radius of a uniform start is a multiple of eps >= 0", self.radius)
        require(
            self.eps is None or 0 < self.eps < math.inf, "the eps of a uniform start must be finite and > 0", self.eps
        )

    def __call__(self, x: Tensor, threat: Threat, rng: Generator) -> Tensor:
        """`box(x + u)`, or `x + u` without `clip`."""
        ball = threat if self.eps is None else threat.with_eps(self.eps)
        start = x + ball.sample(x, rng, self.radius)
        return box(start) if self.clip else start

    def __repr__(self) -> str:
        # A checkpoint is compared by it: without the later fields where they are not used, as in older checkpoints.
        eps = "" if self.eps is None else f", eps={self.eps!r}"
        clip = "" if self.clip else f", clip={self.clip!r}"
        return f"Uniform(radius={self.radius!r}{eps}{clip})"


@dataclass(frozen=True)
class Gaussian:
    """Start at `x + sigma * n`, n standard normal; neither clipped nor projected before the first step (as TRADES)."""

    sigma: float = 0.001

    def __post_init__(self) -> None:
        require(0 <= self.sigma < math.inf, "the sigma of a Gaussian start must be finite and >= 0", self.sigma)

    def __call__(self, x: Tensor, threat: Threat, rng: Generator) -> Tensor:
        """`x + sigma * n`."""
        return x + self.sigma * torch.randn(x.shape, generator=rng, device=x.device, dtype=x.dtype)


@dataclass(frozen=True)
class Boundary:
    """Start on the boundary of the ball, clipped to [0, 1] (as APGD).

    Linf: `x + eps * t / max|t|` with t uniform in [-1, 1]. L2: `x + eps * n / ||n||` with n standard normal.

    References:
        Croce, Hein, "Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free attacks",
        ICML 2020, https://arxiv.org/abs/2003.01690
    """

    def __call__(self, x: Tensor, threat: Threat, rng: Generator) -> Tensor:
        """`box(x + eps * t / ||t||)`."""
        if threat.norm == "Linf":
            return boundary(x, threat, torch.rand(x.shape, generator=rng, device=x.device, dtype=x.dtype))
        return boundary(x, threat, torch.randn(x.shape, generator=rng, device=x.device, dtype=x.dtype))


def boundary(x: Tensor, threat: Threat, draw: Tensor) -> Tensor:
    """The start of `Boundary` that belongs to random numbers of the shape of `x`: uniform in [0, 1) for Linf, standard
    normal for L2.
    """
    t = 2 * draw - 1 if threat.norm == "Linf" else draw
    size = t.abs().flatten(1).amax(1) if threat.norm == "Linf" else t.flatten(1).norm(dim=1)
    return box(x + threat.eps * (t / (per_image(size, x) + 1e-12)))
