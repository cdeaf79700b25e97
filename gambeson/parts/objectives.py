"""Outer objectives: what is minimised at the worst case. Values with the views they need and a loss per example."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol

import torch

from gambeson.core.errors import InputError
from gambeson.core.losses import boosted_ce, ce, kl, one_hot, squared_error

if TYPE_CHECKING:
    from torch import Tensor

View = Literal["clean", "adv"]


class Objective(Protocol):
    """An outer objective.

    `views` names the images it wants logits of, in the order in which the model sees them. A name that comes twice
    stands for a second forward of the same images in the release: its effect on the BatchNorm statistics is reproduced,
    its cost is not.
    """

    @property
    def views(self) -> tuple[View, ...]:
        """The views, in forward order."""

    def __call__(self, logits: Mapping[str, Tensor], y: Tensor) -> Tensor:
        """The loss of every example, shape `(N,)`."""


@dataclass(frozen=True)
class CrossEntropy:
    """`CE(f(x_view), y)`: adversarial training in the sense of Madry et al., or standard training on the clean view."""

    view: View = "adv"

    @property
    def views(self) -> tuple[View, ...]:
        """The one view."""
        return (self.view,)

    def __call__(self, logits: Mapping[str, Tensor], y: Tensor) -> Tensor:
        """Cross-entropy per example."""
        return ce(logits[self.view], y)


@dataclass(frozen=True)
class Trades:
    """`CE(f(x), y) + beta * KL(p(x) || p(x_adv))`, gradients through both arguments of the KL term.

    Args:
        beta: Weight of the robust term (6 in the release's training script).

    References:
        Zhang, Yu, Jiao, Xing, El Ghaoui, Jordan, "Theoretically principled trade-off between robustness and accuracy",
        ICML 2019, https://arxiv.org/abs/1901.08573; yaodongyu/TRADES, trades.py.
    """

    beta: float = 6.0
    views: ClassVar[tuple[View, ...]] = ("clean", "adv", "clean")

    def __call__(self, logits: Mapping[str, Tensor], y: Tensor) -> Tensor:
        """The TRADES loss per example."""
        return ce(logits["clean"], y) + self.beta * kl(logits["clean"], logits["adv"])


@dataclass(frozen=True)
class Mart:
    """`BCE(x_adv, y) + beta * KL(p(x) || p(x_adv)) * (1 - p_y(x))`; nothing is detached.

    The constants 1e-12, 1.0001 and 1.0000001 are the release's.

    Args:
        beta: Weight of the misclassification-aware term (5 in the release's ResNet-18 script, 6 in the WRN one).

    References:
        Wang, Zou, Yi, Bailey, Ma, Gu, "Improving adversarial robustness requires revisiting misclassified examples",
        ICLR 2020; YisenWang/MART, mart.py.
    """

    beta: float = 5.0
    views: ClassVar[tuple[View, ...]] = ("clean", "adv")

    def __call__(self, logits: Mapping[str, Tensor], y: Tensor) -> Tensor:
        """The MART loss per example."""
        p, q = logits["clean"].softmax(1), logits["adv"].softmax(1)
        divergence = (torch.xlogy(p, p) - p * torch.log(q + 1e-12)).sum(1)
        own = p.gather(1, y[:, None]).squeeze(1)
        return boosted_ce(logits["adv"], y) + self.beta * divergence * (1.0000001 - own)


@dataclass(frozen=True)
class SquaredError:
    """`relu(||p(x_adv) - onehot(y)||^2 - c0)`: PGD-AT with SCORE's loss.

    Args:
        clip: c of the clipping bound `c0 = c^2 K / (K - 1)`, the squared error of a prediction with confidence 1 - c; 0
            does not clip. The release uses 0.4.

    References:
        Pang, Lin, Yang, Zhu, Yan, "Robustness and accuracy could be reconcilable by (proper) definition", ICML 2022,
        https://arxiv.org/abs/2202.10103; P2333/SCORE, without_DDPM.
    """

    clip: float = 0.4
    views: ClassVar[tuple[View, ...]] = ("adv",)

    def __call__(self, logits: Mapping[str, Tensor], y: Tensor) -> Tensor:
        """The clipped squared error per example."""
        adv = logits["adv"]
        return torch.relu(squared_error(adv, one_hot(y, adv)) - clip_bound(self.clip, adv.shape[1]))


@dataclass(frozen=True)
class Score:
    """`relu(||p(x) - onehot(y)||^2 + beta ||p(x_adv) - p(x)||^2 - c0)`: TRADES with SCORE's loss, p(x) not detached.

    Args:
        beta: Weight of the robust term (6 without extra data).
        clip: c of the clipping bound, see `SquaredError`; the release uses 0.3 here.
        clip_clean: Clip the sum (the release's default) rather than the robust term alone.

    References:
        Pang et al., as for `SquaredError`.
    """

    beta: float = 6.0
    clip: float = 0.3
    clip_clean: bool = True
    views: ClassVar[tuple[View, ...]] = ("clean", "adv")

    def __call__(self, logits: Mapping[str, Tensor], y: Tensor) -> Tensor:
        """The clipped loss per example."""
        clean, adv = logits["clean"], logits["adv"]
        bound = clip_bound(self.clip, clean.shape[1])
        natural = squared_error(clean, one_hot(y, clean))
        robust = self.beta * squared_error(adv, clean.softmax(1))
        return torch.relu(natural + robust - bound) if self.clip_clean else natural + torch.relu(robust - bound)


def clip_bound(c: float, num_classes: int) -> float:
    """`c^2 K / (K - 1)`: the squared error of `(1 - c, c/(K-1), ...)` against the one-hot label.

    Raises:
        InputError: c outside [0, 1) or fewer than two classes.
    """
    if not 0 <= c < 1 or num_classes < 2:
        raise InputError(f"the clipping bound needs 0 <= c < 1 and at least 2 classes, got {c} and {num_classes}")
    return c * c * num_classes / (num_classes - 1)
