"""Methods that flatten the loss in weight space: adversarial weight perturbation on PGD-AT, TRADES and MART."""

from __future__ import annotations

from dataclasses import replace

from gambeson.core.modes import BatchNormMode
from gambeson.methods.classic import Norm, mart, pgd_at, trades
from gambeson.methods.recipe import Recipe
from gambeson.parts.weight_perturbation import Relative, WeightPerturbation


def at_awp(
    eps: float = 8 / 255,
    gamma: float = 0.01,
    warmup: int = 0,
    steps: int = 10,
    rel_step_size: float = 0.25,
    bn: BatchNormMode = "update",
    norm: Norm = "Linf",
) -> Recipe:
    """AT-AWP: PGD-AT at weights `w + v`, `v_l = gamma ||w_l|| g_l / ||g_l||`, g the gradient of the loss at x_adv.

    Args:
        eps: Budget, fraction of the pixel range.
        gamma: Relative size of the weight perturbation (0.01, release).
        warmup: Epochs without it (0, release).
        steps: PGD steps.
        rel_step_size: Step as a multiple of eps.
        bn: BatchNorm during the attack; the release attacks in training mode.
        norm: Linf or L2.

    References:
        Wu, Xia, Wang, "Adversarial weight perturbation helps robust generalization", NeurIPS 2020,
        https://arxiv.org/abs/2004.05884; csdongxian/AWP, AT_AWP/utils_awp.py.

    Departures:
        The weights come back by copy, not by subtracting v (which restores about 98 % of float32 weights exactly);
        weight decay acts on w + v as in the release. The release attacks the first batch of every epoch in evaluation
        mode by accident; here `bn` holds for all. Not yet reproduced at full size.
    """
    return replace(
        pgd_at(eps, steps, rel_step_size, bn, norm),
        weight_perturbation=WeightPerturbation(size=Relative(gamma), warmup=warmup),
    )


def trades_awp(
    eps: float = 8 / 255,
    beta: float = 6.0,
    gamma: float = 0.005,
    warmup: int = 10,
    steps: int = 10,
    rel_step_size: float = 0.25,
    norm: Norm = "Linf",
) -> Recipe:
    """TRADES-AWP: TRADES at weights moved up the TRADES loss.

    Args:
        eps: Budget, fraction of the pixel range.
        beta: Weight of the KL term.
        gamma: Relative size of the weight perturbation (0.005, release).
        warmup: Epochs without it (10, release).
        steps: Attack steps.
        rel_step_size: Step as a multiple of eps.
        norm: Linf or L2.

    References:
        As for `at_awp`; csdongxian/AWP, trades_AWP.

    Departures:
        As for `at_awp` and `trades`; the release forwards adversarial images first.
    """
    return replace(
        trades(eps, beta, steps, rel_step_size, norm),
        weight_perturbation=WeightPerturbation(size=Relative(gamma), warmup=warmup),
    )


def mart_awp(
    eps: float = 8 / 255,
    beta: float = 5.0,
    gamma: float = 0.005,
    warmup: int = 10,
    steps: int = 10,
    rel_step_size: float = 0.25,
    norm: Norm = "Linf",
) -> Recipe:
    """MART-AWP: MART at weights moved up the MART loss.

    Args:
        eps: Budget, fraction of the pixel range.
        beta: Weight of the misclassification-aware term.
        gamma: Relative size of the weight perturbation; no released script names one, TRADES-AWP's is taken.
        warmup: Epochs without it; likewise.
        steps: Attack steps.
        rel_step_size: Step as a multiple of eps.
        norm: Linf or L2.

    References:
        As for `at_awp` and `mart`.

    Departures:
        As for `at_awp` and `mart`; the combination has no released training script.
    """
    return replace(
        mart(eps, beta, steps, rel_step_size, norm),
        weight_perturbation=WeightPerturbation(size=Relative(gamma), warmup=warmup),
    )
