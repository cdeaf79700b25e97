"""Losses as pure functions, one value per example: logits `(N, K)` and labels `(N,)` in, `(N,)` out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch

from gambeson.core.errors import InputError, nearest

if TYPE_CHECKING:
    from torch import Tensor

InnerLoss = Literal["ce", "kl", "squared-error", "squared-error-clean", "margin"]
"""What an attack can maximise; the names ending in the clean output need the clean logits."""


def ce(logits: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy `-log p_y`."""
    return torch.nn.functional.cross_entropy(logits, y, reduction="none")


def kl(clean: Tensor, adv: Tensor) -> Tensor:
    """`KL(p_clean || p_adv)`, gradients through both arguments (Zhang et al., TRADES, ICML 2019)."""
    log_p, log_q = clean.log_softmax(1), adv.log_softmax(1)
    return (log_p.exp() * (log_p - log_q)).sum(1)


def squared_error(logits: Tensor, target: Tensor) -> Tensor:
    """`sum_c (p_c - target_c)^2` on softmax outputs (Pang et al., SCORE, ICML 2022); `target` is `(N, K)`."""
    return (logits.softmax(1) - target).square().sum(1)


def one_hot(y: Tensor, like: Tensor) -> Tensor:
    """Labels as probabilities of the shape and type of the logits `like`."""
    return torch.nn.functional.one_hot(y, like.shape[1]).to(like.dtype)


def boosted_ce(logits: Tensor, y: Tensor) -> Tensor:
    """`-log p_y - log(1.0001 - max_{k != y} p_k + 1e-12)` (Wang et al., MART, ICLR 2020; constants of the release)."""
    p = logits.softmax(1)
    wrong = p.scatter(1, y[:, None], -1.0).amax(1)
    return ce(logits, y) - torch.log(1.0001 - wrong + 1e-12)


def margin(logits: Tensor, y: Tensor) -> Tensor:
    """`max_{k != y} z_k - z_y`: positive exactly where the example is misclassified."""
    own = logits.gather(1, y[:, None]).squeeze(1)
    return logits.scatter(1, y[:, None], -torch.inf).amax(1) - own


def dlr(logits: Tensor, y: Tensor) -> Tensor:
    """Difference of logits ratio `(max_{k != y} z_k - z_y) / (z_(1) - z_(3))` (Croce & Hein, ICML 2020). Needs 3
    classes.

    Raises:
        InputError: Fewer than three classes.
    """
    if logits.shape[1] < 3:
        raise InputError(f"the DLR loss needs at least 3 classes, got {logits.shape[1]}", hint="use the margin loss")
    top = logits.topk(3, dim=1).values
    return margin(logits, y) / (top[:, 0] - top[:, 2] + 1e-12)


def targeted_margin(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    """`z_t - z_y` per example, `(N,)`: above zero the target is more likely than the true class."""
    return (logits.gather(1, target[:, None]) - logits.gather(1, y[:, None])).squeeze(1)


def targeted_dlr(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    """Targeted difference of logits ratio `(z_t - z_y) / (z_(1) - (z_(3) + z_(4)) / 2)` (Croce & Hein, ICML 2020).

    Needs 4 classes.

    Raises:
        InputError: Fewer than four classes.
    """
    if logits.shape[1] < 4:
        raise InputError(
            f"the targeted DLR loss needs at least 4 classes, got {logits.shape[1]}", hint="use the margin loss"
        )
    top = logits.topk(4, dim=1).values
    return targeted_margin(logits, y, target) / (top[:, 0] - (top[:, 2] + top[:, 3]) / 2 + 1e-12)


def inner_loss(name: InnerLoss, logits: Tensor, y: Tensor, clean: Tensor | None) -> Tensor:
    """The loss called `name` for an attack.

    Args:
        name: `"ce"`, `"kl"` (to the clean output), `"squared-error"` (to the label), `"squared-error-clean"` (to the
            clean output) or `"margin"`.
        logits: Logits at the perturbed images.
        y: Labels.
        clean: Logits at the clean images; only the two losses towards the clean output read them.

    Raises:
        InputError: Unknown name.
    """
    if name == "ce":
        return ce(logits, y)
    if name == "margin":
        return margin(logits, y)
    if name == "squared-error":
        return squared_error(logits, one_hot(y, logits))
    if NEEDS_CLEAN.get(name) and clean is None:
        raise InputError(f"the inner loss {name!r} needs the clean logits")
    if clean is not None and name == "kl":
        return kl(clean, logits)
    if clean is not None and name == "squared-error-clean":
        return squared_error(logits, clean.softmax(1))
    raise InputError(f"unknown inner loss {name!r}", hint=nearest(name, NEEDS_CLEAN))


NEEDS_CLEAN: dict[str, bool] = {
    "ce": False,
    "kl": True,
    "squared-error": False,
    "squared-error-clean": True,
    "margin": False,
}
"""Inner losses, and whether each needs the clean logits."""
