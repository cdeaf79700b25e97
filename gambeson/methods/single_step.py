"""One gradient per batch: the FGSM family, its remedies against catastrophic overfitting, and LAP."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Literal

from gambeson.attacks.pgd import PGD, Unanimous, Uniform, Zero, ZeroSmall
from gambeson.core.threat import Linf, parse_eps
from gambeson.methods.recipe import Recipe
from gambeson.parts.memory import CarriedPerturbation
from gambeson.parts.objectives import CrossEntropy
from gambeson.parts.penalties import GradientAlignment
from gambeson.parts.weight_perturbation import LayerAware, WeightPerturbation

Direction = Literal["optimizer", "gradient", "random"]
WeightNorm = Literal["l2", "linf"]


def fgsm(eps: float = 8 / 255, alpha: float = 1.0) -> Recipe:
    """FGSM adversarial training (V-FGSM): `x_adv = x + alpha eps sign(g(x))`, zero start.

    Args:
        eps: Budget, fraction of the pixel range.
        alpha: Step as a multiple of eps.

    References:
        Goodfellow et al., ICLR 2015, https://arxiv.org/abs/1412.6572; as V-FGSM in tmllab/2024_ICML_LAP.

    Departures:
        None known. Collapses (catastrophic overfitting) from moderate eps on; that is its role here.
    """
    attack = PGD(steps=1, rel_step_size=alpha, start=Zero(), bn="update")
    return Recipe(threat=Linf(eps), objective=CrossEntropy("adv"), attack=attack)


def rs_fgsm(eps: float = 8 / 255, alpha: float = 1.25) -> Recipe:
    """RS-FGSM (R-FGSM): `x_adv = clip_eps(u + alpha eps sign(g(x + u)))`, u uniform in `[-eps, eps]`.

    Args:
        eps: Budget, fraction of the pixel range.
        alpha: Step as a multiple of eps (10/255 at 8/255).

    References:
        Wong, Rice, Kolter, "Fast is better than free", ICLR 2020, https://arxiv.org/abs/2001.03994;
        locuslab/fast_adversarial.

    Departures:
        None known.
    """
    attack = PGD(steps=1, rel_step_size=alpha, start=Uniform(1.0), bn="update")
    return Recipe(threat=Linf(eps), objective=CrossEntropy("adv"), attack=attack)


def n_fgsm(eps: float = 8 / 255, noise: float = 2.0, alpha: float = 1.0) -> Recipe:
    """N-FGSM: `x_adv = x + u + alpha eps sign(g(x + u))`, u uniform in `[-noise eps, noise eps]`, no clipping to eps.

    Args:
        eps: Budget, fraction of the pixel range.
        noise: Radius of the noise as a multiple of eps (2; the paper uses 4 for WRN on CIFAR-10 at 16/255, 3 on SVHN at
            12/255).
        alpha: Step as a multiple of eps.

    References:
        de Jorge, Bibi, Volpi, Sanyal, Torr, Rogez, Dokania, "Make some noise: reliable and efficient single-step
        adversarial training", NeurIPS 2022, https://arxiv.org/abs/2202.01181

    Departures:
        The noisy start is clipped to [0, 1], as in LAP's release. Training images can be up to `(noise + alpha) eps`
        away.
    """
    attack = PGD(steps=1, rel_step_size=alpha, start=Uniform(noise), project=False, bn="update")
    return Recipe(threat=Linf(eps), objective=CrossEntropy("adv"), attack=attack)


def v_lap(
    eps: float = 8 / 255,
    beta: float = 0.03,
    gamma: float = 0.3,
    alpha: float = 1.0,
    direction: Direction = "optimizer",
    ascent: bool = False,
    weight_norm: WeightNorm = "l2",
    extra_backward: bool = False,
) -> Recipe:
    """V-LAP: layer-aware adversarial weight perturbation on FGSM. See n-lap for the mathematics and the arguments.

    Args:
        eps: Budget, fraction of the pixel range.
        beta: Relative weight perturbation of the first layer; CIFAR-10: .03, .058, .07, .48 at eps 8, 12, 16, 32/255.
        gamma: How fast it falls with depth.
        alpha: Step as a multiple of eps.
        direction: optimizer (release), gradient, or random.
        ascent: Up the loss instead of down.
        weight_norm: l2 (release) or linf.
        extra_backward: LAP-A: one more backward, images at the perturbed weights.

    References:
        As for `n_lap`.

    Departures:
        As for `n_lap`.
    """
    return _lap(fgsm(eps, alpha), beta, gamma, direction, ascent, weight_norm, extra_backward)


def r_lap(
    eps: float = 8 / 255,
    beta: float = 0.002,
    gamma: float = 0.3,
    alpha: float = 1.25,
    direction: Direction = "optimizer",
    ascent: bool = False,
    weight_norm: WeightNorm = "l2",
    extra_backward: bool = False,
) -> Recipe:
    """R-LAP: layer-aware adversarial weight perturbation on RS-FGSM. See n-lap for the mathematics and the arguments.

    Args:
        eps: Budget, fraction of the pixel range.
        beta: Relative weight perturbation of the first layer; CIFAR-10: .002, .03, .05, .3 at eps 8, 12, 16, 32/255.
        gamma: How fast it falls with depth.
        alpha: Step as a multiple of eps.
        direction: optimizer (release), gradient, or random.
        ascent: Up the loss instead of down.
        weight_norm: l2 (release) or linf.
        extra_backward: LAP-A: one more backward, images at the perturbed weights.

    References:
        As for `n_lap`.

    Departures:
        As for `n_lap`.
    """
    return _lap(rs_fgsm(eps, alpha), beta, gamma, direction, ascent, weight_norm, extra_backward)


def n_lap(
    eps: float = 8 / 255,
    beta: float = 0.001,
    gamma: float = 0.3,
    noise: float = 2.0,
    alpha: float = 1.0,
    direction: Direction = "optimizer",
    ascent: bool = False,
    weight_norm: WeightNorm = "l2",
    extra_backward: bool = False,
) -> Recipe:
    """N-LAP: N-FGSM with a weight perturbation that fades with depth and is never taken back.

    One backward at the noisy start gives the input gradient and the weight gradients. Every weight layer l = 1..L moves
    to `w_l - beta lambda_l ||w_l|| d_l / ||d_l||` with `lambda_l = 1 - (ln l / ln L)^gamma` and `d_l = mu m_l + g_l +
    kappa w_l`, what SGD would subtract there; the adversarial images are trained on from the moved weights.

    Args:
        eps: Budget, fraction of the pixel range.
        beta: Relative weight perturbation of the first layer; CIFAR-10: .001, .002, .005, .75 at eps 8, 12, 16, 32/255.
        gamma: How fast it falls with depth: large is uniform over all layers but the last, small is the first layer
            only.
        noise: Radius of the noise as a multiple of eps.
        alpha: Step as a multiple of eps.
        direction: optimizer: what the optimizer would do, momentum and weight decay inside (release); gradient; or
            random (LAP-R).
        ascent: Up the loss instead of down. The release goes down; the paper's wording suggests up. With ascent choose
            a small beta: from about 0.03 on the weights of a scale-invariant layer grow without bound.
        weight_norm: l2 (release) or linf (LAP-Linf).
        extra_backward: LAP-A: the weights are perturbed first, the images at the perturbed weights, at one more
            backward.

    References:
        Lin, Yu, Han, Su, Liu, "Layer-aware analysis of catastrophic overfitting: revealing the pseudo-robust shortcut
        dependency", ICML 2024, https://arxiv.org/abs/2405.16262; tmllab/2024_ICML_LAP, LAP.py:98-151, utils.py:26-46.

    Departures:
        The release steps a copy of the optimizer and subtracts weights (utils.py:26); the closed form here is equal up
        to rounding and keeps the direction where a tiny learning rate would lose it. L is the model's number of weight
        layers, not an option. On torch >= 2.1 the release does not restore its momentum (LAP.py:135-136); here it is
        restored, as on the torch 2.0.1 it was published with. What the paper means by LAP-Linf is not known; here the
        largest absolute entry replaces both norms. Not yet reproduced at full size.
    """
    return _lap(n_fgsm(eps, noise, alpha), beta, gamma, direction, ascent, weight_norm, extra_backward)


def free_at(eps: float = 8 / 255, replays: int = 8) -> Recipe:
    """Free adversarial training: every batch is trained on `replays` times, each backward also moves the perturbation.

    Args:
        eps: Budget, fraction of the pixel range.
        replays: Consecutive steps on one batch, m (8). An epoch passes every image m times.

    References:
        Shafahi et al., "Adversarial training for free!", NeurIPS 2019, https://arxiv.org/abs/1904.12843;
        locuslab/fast_adversarial, train_free.py (max. learning rate .04, about 11 passes over the data).

    Departures:
        At the first replay of a batch the release trains on `x + delta` as it is, outside [0, 1] where the last batch's
        delta leads there (train_free.py); here those images are clipped, as every image is. Not yet reproduced at full
        size.
    """
    return Recipe(
        threat=Linf(eps),
        objective=CrossEntropy("adv"),
        inner="carried",
        parts=(CarriedPerturbation(),),
        replays=replays,
    )


def grad_align(eps: float = 8 / 255, weight: float | None = None, alpha: float = 1.25) -> Recipe:
    """GradAlign: FGSM plus `weight * (1 - cos(g(x), g(x + u)))`, u uniform in the ball.

    Args:
        eps: Budget, fraction of the pixel range.
        weight: Coefficient lambda; default the authors' `0.02 * 10^(255 eps / 8)`: .2, .632, 2.0 at 8, 12, 16/255.
        alpha: Step as a multiple of eps, clipped to the ball.

    References:
        Andriushchenko & Flammarion, NeurIPS 2020, https://arxiv.org/abs/2007.02617;
        tml-epfl/understanding-fast-adv-training (max. learning rate .3).

    Departures:
        The gradient at the clean images is computed again for the penalty instead of taken from the attack: the same
        values at one more pass; its forward leaves no trace in the BatchNorm statistics. The release leaves examples
        whose gradient is exactly zero out of the mean; here they count as unaligned. The coefficient's rule was fitted
        by the authors for eps up to 16/255 on CIFAR-10; elsewhere give it. Not yet reproduced at full size.
    """
    eps = parse_eps(eps)
    lam = 0.02 * math.pow(10, 255 * eps / 8) if weight is None else weight
    attack = PGD(steps=1, rel_step_size=alpha, start=Zero(), bn="update")
    return Recipe(threat=Linf(eps), objective=CrossEntropy("adv"), attack=attack, penalty=GradientAlignment(lam))


def zero_grad(eps: float = 8 / 255, quantile: float = 0.35, alpha: float = 2.0) -> Recipe:
    """ZeroGrad: RS-FGSM whose smallest input-gradient entries are set to zero.

    Args:
        eps: Budget, fraction of the pixel range.
        quantile: Share of entries dropped per image (.35 CIFAR-10, .45 CIFAR-100).
        alpha: Step as a multiple of eps, clipped to the ball.

    References:
        Golgooni et al., https://arxiv.org/abs/2103.15476; rohban-lab/catastrophic_overfitting.

    Departures:
        None known. Not yet reproduced at full size.
    """
    attack = PGD(steps=1, rel_step_size=alpha, start=Uniform(1.0), gradient=ZeroSmall(quantile), bn="update")
    return Recipe(threat=Linf(eps), objective=CrossEntropy("adv"), attack=attack)


def multi_grad(eps: float = 8 / 255, points: int = 3, alpha: float = 2.0) -> Recipe:
    """MultiGrad: a step from the clean image along the gradient signs on which several random points agree.

    Args:
        eps: Budget, fraction of the pixel range.
        points: Random points of the ball whose gradient signs must be unanimous.
        alpha: Step as a multiple of eps, clipped to the ball.

    References:
        Golgooni et al., https://arxiv.org/abs/2103.15476; rohban-lab/catastrophic_overfitting.

    Departures:
        None known. Not yet reproduced at full size.
    """
    attack = PGD(steps=1, rel_step_size=alpha, start=Zero(), gradient=Unanimous(points), bn="update")
    return Recipe(threat=Linf(eps), objective=CrossEntropy("adv"), attack=attack)


def _lap(
    base: Recipe,
    beta: float,
    gamma: float,
    direction: Direction,
    ascent: bool,
    weight_norm: WeightNorm,
    extra_backward: bool,
) -> Recipe:
    wp = WeightPerturbation(
        size=LayerAware(beta, gamma), direction=direction, sign=1 if ascent else -1, norm=weight_norm, keep=True
    )
    return replace(base, weight_perturbation=wp, inner="weights-first" if extra_backward else "joint")
