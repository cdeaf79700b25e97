"""Threat models: what an adversary may do to an image. Pure values; `eps` may be a tensor that broadcasts."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Protocol, TypeVar

import torch

from gambeson.core.errors import InputError

if TYPE_CHECKING:
    from torch import Generator, Tensor


def parse_eps(value: float | str) -> float:
    """A budget from a number or a fraction such as `"8/255"`.

    Raises:
        InputError: `value` is neither.

    Examples:
        >>> parse_eps("8/255") == 8 / 255
        True
    """
    try:
        if isinstance(value, str) and "/" in value:
            numerator, denominator = value.split("/")
            return float(numerator) / float(denominator)
        return float(value)
    except (ValueError, ZeroDivisionError):
        raise InputError(
            f"eps must be a number or a fraction, got {value!r}", hint="write eps=8/255 or eps=0.03"
        ) from None


class Threat(Protocol):
    """What every threat model offers; `Linf` and `L2` implement it.

    `eps` is a fraction of the pixel range: a number, or a tensor of shape `(N,1,1,1)` (per example) or, for Linf,
    `(N,1,H,W)` or `(N,C,H,W)` (per pixel).
    """

    norm: ClassVar[str]

    @property
    def eps(self) -> float | Tensor:
        """The budget."""

    def with_eps(self, eps: float | Tensor) -> Threat:
        """The same threat with another budget."""

    def with_map(self, eps: Tensor) -> Threat:
        """The same threat with budgets that are known to fit, computed here from such that were checked.

        They are not checked again: that would wait for the device at every step.
        """

    def project(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """The point of the eps-ball around `x` that is nearest to `x_adv`."""

    def sample(self, x: Tensor, rng: Generator, radius: float = 1.0) -> Tensor:
        """A uniform draw from the ball of radius `radius * eps` around zero, of the shape of `x`."""

    def ascend(self, grad: Tensor) -> Tensor:
        """The direction of steepest ascent with unit norm."""

    def distance(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """The norm of `x_adv - x` per example, shape `(N,)`."""


def box(x: Tensor) -> Tensor:
    """`x` clipped to the image range [0, 1]."""
    return x.clamp(0.0, 1.0)


@dataclass(frozen=True)
class Linf:
    """Every pixel value may move by at most `eps`: `max |x_adv - x| <= eps`.

    Args:
        eps: Fraction of the pixel range in (0, 1], a string such as `"8/255"`, or a tensor that broadcasts against the
            images (per example or per pixel).

    Raises:
        InputError: `eps` is outside (0, 1].

    Examples:
        >>> Linf("8/255") == Linf(8 / 255)
        True
    """

    eps: float | Tensor = 8 / 255
    norm: ClassVar[str] = "Linf"

    def __post_init__(self) -> None:
        if isinstance(self.eps, (int, float, str)):
            eps = parse_eps(self.eps)
            if not 0 < eps <= 1:
                hint = f"{eps:g} grey levels are eps={eps:g}/255" if 1 < eps <= 255 else None
                raise InputError(f"eps must be a fraction of the pixel range in (0, 1], got {eps:g}", hint=hint)
            object.__setattr__(self, "eps", eps)
        else:
            _check_tensor(self.eps, 1.0)

    def with_eps(self, eps: float | Tensor) -> Linf:
        """The same threat with another budget."""
        return replace(self, eps=eps)

    def with_map(self, eps: Tensor) -> Linf:
        """The same threat with budgets that are known to fit: they are not checked."""
        return _unchecked(self, eps)

    def project(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """`x + clip(x_adv - x, -eps, eps)`."""
        delta = x_adv - x
        if isinstance(self.eps, (int, float)):
            return x + delta.clamp(-self.eps, self.eps)
        return x + torch.minimum(torch.maximum(delta, -self.eps), self.eps)

    def sample(self, x: Tensor, rng: Generator, radius: float = 1.0) -> Tensor:
        """Uniform in `[-radius * eps, radius * eps]`, independently per value."""
        noise = torch.rand(x.shape, generator=rng, device=x.device, dtype=x.dtype)
        return (noise * 2 - 1) * (radius * self.eps)

    def ascend(self, grad: Tensor) -> Tensor:
        """`sign(grad)`; zero where the gradient is zero."""
        return grad.sign()

    def distance(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """`max |x_adv - x|` per example."""
        return (x_adv - x).abs().flatten(1).amax(1)


@dataclass(frozen=True)
class L2:
    """The whole perturbation has a Euclidean norm of at most `eps`.

    Args:
        eps: Euclidean norm in units of the pixel range (CIFAR: 128/255), positive; a string such as `"128/255"`; or a
            tensor of shape `(N, 1, 1, 1)`.

    Raises:
        InputError: `eps` is not positive and finite.
    """

    eps: float | Tensor = 128 / 255
    norm: ClassVar[str] = "L2"

    def __post_init__(self) -> None:
        if isinstance(self.eps, (int, float, str)):
            eps = parse_eps(self.eps)
            if not 0 < eps < math.inf:
                raise InputError(f"eps must be positive and finite, got {eps:g}")
            object.__setattr__(self, "eps", eps)
        else:
            _check_tensor(self.eps, math.inf)
            if self.eps.ndim and self.eps[0].numel() != 1:
                raise InputError(
                    f"an L2 budget is one number per example, got a tensor of shape {tuple(self.eps.shape)}",
                    hint="use Linf for budgets per pixel",
                )

    def with_eps(self, eps: float | Tensor) -> L2:
        """The same threat with another budget."""
        return replace(self, eps=eps)

    def with_map(self, eps: Tensor) -> L2:
        """The same threat with budgets that are known to fit: they are not checked."""
        return _unchecked(self, eps)

    def project(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """`x + delta * min(1, eps / ||delta||)`."""
        delta = x_adv - x
        norm = _norm(delta)
        return x + delta * torch.where(norm > self.eps, self.eps / norm.clamp_min(1e-12), torch.ones_like(norm))

    def sample(self, x: Tensor, rng: Generator, radius: float = 1.0) -> Tensor:
        """Uniform in the ball: a Gaussian direction times `radius * eps * U^(1/d)`."""
        direction = torch.randn(x.shape, generator=rng, device=x.device, dtype=x.dtype)
        u = torch.rand((len(x), *[1] * (x.ndim - 1)), generator=rng, device=x.device, dtype=x.dtype)
        return direction / _norm(direction).clamp_min(1e-12) * u.pow(1 / x[0].numel()) * (radius * self.eps)

    def ascend(self, grad: Tensor) -> Tensor:
        """`grad / ||grad||` per example; zero where the gradient is zero."""
        return grad / _norm(grad).clamp_min(1e-12)

    def distance(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """`||x_adv - x||_2` per example."""
        return (x_adv - x).flatten(1).norm(dim=1)


Threats = TypeVar("Threats", "Linf", "L2")


def create_threat(norm: str, eps: float | str) -> Linf | L2:
    """The threat called `norm` ("Linf" or "L2", any case) with budget `eps`.

    Raises:
        InputError: Unknown norm or a budget outside its range.
    """
    if norm.lower() == "linf":
        return Linf(parse_eps(eps))
    if norm.lower() == "l2":
        return L2(parse_eps(eps))
    raise InputError(f"unknown norm {norm!r}", hint="known: Linf, L2")


def _unchecked(threat: Threats, eps: Tensor) -> Threats:
    other = copy.copy(threat)
    object.__setattr__(other, "eps", eps)
    return other


def _check_tensor(eps: Tensor, largest: float) -> None:
    if eps.ndim not in (0, 4):
        raise InputError(
            f"a budget per example or pixel has four dimensions, got a tensor of shape {tuple(eps.shape)}",
            hint="eps.view(-1, 1, 1, 1) is one budget per example",
        )
    low, high = float(eps.min()), float(eps.max())
    if not 0 <= low <= high <= largest or high == math.inf:
        raise InputError(f"budgets must lie in [0, {largest:g}], got {low:g} to {high:g}")


def _norm(delta: Tensor) -> Tensor:
    return delta.flatten(1).norm(dim=1).view(-1, *[1] * (delta.ndim - 1))
