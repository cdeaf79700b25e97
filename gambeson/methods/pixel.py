"""PART and its combinations: class-activation maps decide which pixels keep the full budget."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, get_args

from gambeson.attacks.margin import MMA
from gambeson.attacks.pgd import PGD
from gambeson.attacks.starts import Uniform
from gambeson.core.errors import require_known
from gambeson.methods.classic import mart, pgd_at, trades
from gambeson.methods.recipe import Recipe
from gambeson.parts.budgets import Assign, PixelBudget
from gambeson.parts.cam import CAM, CamMethod
from gambeson.parts.masks import Rule, create_mask

Protocol = Literal["paper", "release"]


def part(
    eps: float = 8 / 255,
    eps_low: float | None = None,
    inner_attack: Literal["pgd", "mma"] = "pgd",
    steps: int = 10,
    rel_step_size: float = 0.25,
    warmup: int | None = None,
    mask: str | None = None,
    cam: CamMethod = "gradcam",
    layer: str | None = None,
    refresh: int = 1,
    assign: Assign | None = None,
    protocol: Protocol = "paper",
) -> Recipe:
    """PART: PGD adversarial training in which only the pixels that a class-activation map calls important keep eps.

    `min_w E max_{|d_p| <= eps_p} CE(f_w(x + d), y)` with `eps_p = eps` on pixels p in the mask of x and `eps_low`
    elsewhere; the first `warmup` epochs have eps everywhere.

    Args:
        eps: Budget of the pixels in the mask, fraction of the pixel range.
        eps_low: Budget of the pixels outside of the mask; default 7/8 of eps, the paper's 7/255 at 8/255.
        inner_attack: `pgd` on the cross-entropy, or `mma` on the three nearest margins, at three times
            the cost.
        steps: Attack steps.
        rel_step_size: Step as a multiple of eps, the same on all pixels; 1/4 is 2/255 at 8/255 (SVHN: 1/8).
        warmup: Epochs before the maps are used, with eps everywhere; default a quarter of all, as the paper's 20 of 80.
        mask: `zscore[:T]`, `quantile[:Q]`, `jet`, `random[:SHARE]`, `uniform` (a control: no pixel keeps eps),
            `quadrant:ul|ur|bl|br` or `file:PATH`; default `zscore`, in the release's protocol `jet`.
        cam: `gradcam`, `xgradcam` or `layercam`. On ResNets the first two are the same map.
        layer: Module whose output the maps are made of; default the last spatial feature map.
        refresh: Epochs between refreshes of the maps (the paper's s, 1 or 10); 0 makes them anew for every batch.
        assign: `own`, `permuted` (a control: another image's mask) or `release`; default the protocol's.
        protocol: `paper`: z-score masks, one for all channels, of the image itself. `release`: what the released code
            does: jet masks per channel, of other images, a start in the full budget, and the low budget everywhere for
            empty maps.

    References:
        Zhang, Liu, Zhou, Zhang, Liu, "Improving accuracy-robustness trade-off via pixel reweighted adversarial
        training", ICML 2024, https://arxiv.org/abs/2406.00685; JiachengZ01/PART, commit 5a0ca6b.

    Departures:
        Paper: its text was not at hand; the threshold (z-score of the squared map above 1), the predicted class and the
        warm-up are the release's, the mask for all channels and the map's own image are as its figures show. Maps are
        made of images without augmentation and the mask moves through crop and flip. Multiplying the perturbation by
        the mask, as a figure has it, would also shrink it inside the budget; it is clipped, as the release does.
        Release: its random draws come from other generators, and its warm-up clips the start to [0, 1], which its
        epochs with maps do not; here neither does. Not yet reproduced at full size.
    """
    base = pgd_at(eps, steps, rel_step_size)
    return _with_budget(
        base, eps_low, inner_attack, rel_step_size, warmup, mask, CAM(cam, layer), refresh, assign, protocol
    )


def part_t(
    eps: float = 8 / 255,
    eps_low: float | None = None,
    beta: float = 6.0,
    inner_attack: Literal["pgd", "mma"] = "pgd",
    steps: int = 10,
    rel_step_size: float = 0.25,
    warmup: int | None = None,
    mask: str | None = None,
    cam: CamMethod = "gradcam",
    layer: str | None = None,
    refresh: int = 1,
    assign: Assign | None = None,
    protocol: Protocol = "paper",
) -> Recipe:
    """PART-T: PART with the loss and the attack of TRADES.

    Args:
        eps: Budget of the pixels in the mask, fraction of the pixel range.
        eps_low: Budget of the pixels outside of the mask; default 7/8 of eps, the paper's 7/255 at 8/255.
        beta: Weight of the KL term.
        inner_attack: `pgd` on the KL divergence from `x + 0.001 * n`, or `mma`, at three times the cost.
        steps: Attack steps.
        rel_step_size: Step as a multiple of eps, the same on all pixels.
        warmup: Epochs before the maps are used, with eps everywhere; default a quarter of all, as the paper's 20 of 80.
        mask: `zscore[:T]`, `quantile[:Q]`, `jet`, `random[:SHARE]`, `uniform` (a control: no pixel keeps eps),
            `quadrant:ul|ur|bl|br` or `file:PATH`; default `zscore`, in the release's protocol `jet`.
        cam: `gradcam`, `xgradcam` or `layercam`. On ResNets the first two are the same map.
        layer: Module whose output the maps are made of; default the last spatial feature map.
        refresh: Epochs between refreshes of the maps (the paper's s, 1 or 10); 0 makes them anew for every batch.
        assign: `own`, `permuted` (a control: another image's mask) or `release`; default the protocol's.
        protocol: `paper`: z-score masks, one for all channels, of the image itself. `release`: what the released code
            does: jet masks per channel, of other images, a start in the full budget, and the low budget everywhere for
            empty maps.

    References:
        As `part`; Zhang et al., TRADES, ICML 2019, https://arxiv.org/abs/1901.08573.

    Departures:
        As `part` and `trades`. The release ignores its MMA option here.
    """
    base = trades(eps, beta, steps, rel_step_size)
    return _with_budget(
        base, eps_low, inner_attack, rel_step_size, warmup, mask, CAM(cam, layer), refresh, assign, protocol
    )


def part_m(
    eps: float = 8 / 255,
    eps_low: float | None = None,
    beta: float = 6.0,
    inner_attack: Literal["pgd", "mma"] = "pgd",
    steps: int = 10,
    rel_step_size: float = 0.25,
    warmup: int | None = None,
    mask: str | None = None,
    cam: CamMethod = "gradcam",
    layer: str | None = None,
    refresh: int = 1,
    assign: Assign | None = None,
    protocol: Protocol = "paper",
) -> Recipe:
    """PART-M: PART with the loss and the attack of MART.

    Args:
        eps: Budget of the pixels in the mask, fraction of the pixel range.
        eps_low: Budget of the pixels outside of the mask; default 7/8 of eps, the paper's 7/255 at 8/255.
        beta: Weight of the misclassification-aware term; 6 in PART's release, 5 in MART's.
        inner_attack: `pgd` on the cross-entropy from `x + 0.001 * n`, or `mma`, at three times the cost.
        steps: Attack steps.
        rel_step_size: Step as a multiple of eps, the same on all pixels.
        warmup: Epochs before the maps are used, with eps everywhere; default a quarter of all, as the paper's 20 of 80.
        mask: `zscore[:T]`, `quantile[:Q]`, `jet`, `random[:SHARE]`, `uniform` (a control: no pixel keeps eps),
            `quadrant:ul|ur|bl|br` or `file:PATH`; default `zscore`, in the release's protocol `jet`.
        cam: `gradcam`, `xgradcam` or `layercam`. On ResNets the first two are the same map.
        layer: Module whose output the maps are made of; default the last spatial feature map.
        refresh: Epochs between refreshes of the maps (the paper's s, 1 or 10); 0 makes them anew for every batch.
        assign: `own`, `permuted` (a control: another image's mask) or `release`; default the protocol's.
        protocol: `paper`: z-score masks, one for all channels, of the image itself. `release`: what the released code
            does: jet masks per channel, of other images, a start in the full budget, and the low budget everywhere for
            empty maps.

    References:
        As `part`; Wang et al., MART, ICLR 2020, https://openreview.net/forum?id=rklOg6EFwS.

    Departures:
        As `part` and `mart`. The release ignores its MMA option here.
    """
    base = mart(eps, beta, steps, rel_step_size)
    return _with_budget(
        base, eps_low, inner_attack, rel_step_size, warmup, mask, CAM(cam, layer), refresh, assign, protocol
    )


def _with_budget(
    base: Recipe,
    eps_low: float | None,
    inner_attack: Literal["pgd", "mma"],
    rel_step_size: float,
    warmup: int | None,
    mask: str | None,
    cam: CAM,
    refresh: int,
    assign: Assign | None,
    protocol: Protocol,
) -> Recipe:
    """A method of the classics with a budget per pixel and a step that is the same on all of them."""
    require_known("protocol", protocol, get_args(Protocol))
    require_known("inner attack", inner_attack, ("pgd", "mma"))
    eps, released = base.threat.eps, protocol == "release"
    assert isinstance(eps, float)
    assert isinstance(base.attack, PGD)
    step_size = rel_step_size * eps
    attack: PGD | MMA = replace(base.attack, step_size=step_size, rel_step_size=None)
    if inner_attack == "mma":
        attack = MMA(steps=base.attack.steps, step_size=step_size)
    if released and isinstance(attack.start, Uniform):  # MMA's release clips its start, PART's PGD does not
        attack = replace(attack, start=Uniform(eps=eps, clip=inner_attack == "mma"))
    chosen = create_mask(mask or ("jet" if released else "zscore"))
    budget = PixelBudget(
        eps_low=eps * 7 / 8 if eps_low is None else eps_low,
        mask=chosen,
        cam=cam,
        refresh=refresh,
        assign=assign or ("release" if released and isinstance(chosen, Rule) else "own"),
        dead="low" if released else "full",
        warmup=warmup,
    )
    return replace(base, attack=attack, parts=(*base.parts, budget))
