"""The signs of masked gradients: comparisons of two attacks on the same examples, and properties of the gradient."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from gambeson.attacks.apgd import AutoPGD
from gambeson.attacks.attack import Attack, input_gradient
from gambeson.attacks.decomposition import MD
from gambeson.attacks.margin import mm3
from gambeson.attacks.pgd import PGD
from gambeson.attacks.search import Hunt
from gambeson.attacks.square import Square
from gambeson.attacks.starts import Uniform
from gambeson.core.losses import ce, dlr, margin
from gambeson.core.modes import batch_norm, frozen
from gambeson.core.threat import box, create_threat
from gambeson.core.types import Batch
from gambeson.diagnosis.subject import Averaged, Rescaled, Subject
from gambeson.evaluation.curve import grey_budget, grey_class
from gambeson.evaluation.statistics import Interval, paired_difference, wilson

Verdict = Literal["PASS", "WARN", "FAIL"]
"""No sign of masking; something to know; an accuracy under gradient attacks would be too high."""

DRAWS = 10
"""Random directions that the gradient has to beat."""

MARGIN = 4
"""Margin of the logits at which the softmax neither saturates nor weighs all wrong classes alike."""


@dataclass(frozen=True)
class Evidence:
    """What one check found.

    Attributes:
        check: Its name, see `gambeson.diagnosis.masking.CHECKS`.
        verdict: `"PASS"`, `"WARN"` or `"FAIL"`.
        message: What was found, one sentence.
        hint: What to do about it, or None.
        measured: The numbers, for JSON.
    """

    check: str
    verdict: Verdict
    message: str
    hint: str | None = None
    measured: Mapping[str, Any] = field(default_factory=dict)


def verdict_of(count: int, n: int, tolerance: float) -> tuple[Verdict, Interval]:
    """What `count` of `n` examples say that a model without masked gradients does not show.

    FAIL where the whole Wilson 95 % interval of the share is above the tolerance, WARN where the share itself is.
    """
    share = wilson(count, n)
    if share.low > tolerance:
        return "FAIL", share
    return ("WARN" if share.value > tolerance else "PASS"), share


def counted(check: str, count: int, n: int, tolerance: float, message: str, hint: str, **more: Any) -> Evidence:
    """Evidence from a count; the hint belongs to what is not a PASS."""
    verdict, share = verdict_of(count, n, tolerance)
    measured = {"count": count, **vars(share), "tolerance": tolerance, **more}
    return Evidence(check, verdict, message, None if verdict == "PASS" else hint, measured)


def examine_images(total: int) -> Evidence:
    """Enough images: what 5 % of all images show is seen on one of them at least, by the Wilson 95 % interval of 0."""
    unseen = wilson(0, total).high
    message = f"with {total} images, a sign that {100 * unseen:.1f} % of all images show may be missed"
    hint = "more images: a PASS of so few says little"
    short, measured = unseen > 0.05, {"unseen": unseen, "n": total}
    return Evidence("images", "WARN" if short else "PASS", message, hint if short else None, measured)


def examine_zero_gradients(subject: Subject) -> list[Evidence]:
    """For each loss: examples whose gradient is zero or not finite though their logits change inside the ball."""
    losses = {"ce": ce, "dlr": dlr if subject.num_classes > 2 else margin, "margin": margin}

    def measure(batch: Batch, rng: torch.Generator) -> Tensor:
        with frozen(subject.model):
            columns = []
            for loss in losses.values():
                grad, logits, _ = input_gradient(subject.model, partial(loss, y=batch.y), batch.x)
                flat = grad.flatten(1)
                columns.append((flat == 0).all(1) | ~flat.isfinite().all(1))
        with torch.no_grad():
            there = subject.model(box(batch.x + subject.threat.sample(batch.x, rng)))
        scale = logits.abs().amax(1).clamp_min(torch.finfo(logits.dtype).tiny)
        moved = ((there - logits).abs().amax(1) / scale) > 32 * torch.finfo(logits.dtype).eps
        return torch.stack([*columns, moved], 1)

    found = subject.per_example(measure, "zero-gradient")
    moved, missing = found[:, -1], found[:, :-1]
    evidence = []
    for number, loss in enumerate(losses):
        count = int((missing[:, number] & moved).sum())
        hint = "a rounding, quantisation or detach on the way: attack with its backward replaced (BPDA), or Square"
        if loss == "ce" and count > int((missing[:, -1] & moved).sum()):
            hint = "the softmax saturates: attack the margin (mm3, autoattack), not the cross-entropy"
        message = f"the gradient of {loss} is missing at {count} of {len(subject)} images whose logits change"
        more = {"constant": int((missing[:, number] & ~moved).sum())}
        evidence.append(counted(f"zero gradient ({loss})", count, len(subject), 0.1, message, hint, **more))
    return evidence


def examine_direction(subject: Subject, forwards: int = 1) -> Evidence:
    """A step of the budget along the gradient of the margin must raise it more than the best of ten random ones.

    Args:
        subject: The model and its examples.
        forwards: Of a randomised model so many are averaged.
    """
    model = Averaged(subject.model, forwards) if forwards > 1 else subject.model

    def measure(batch: Batch, rng: torch.Generator) -> Tensor:
        x, y, threat = batch.x, batch.y, subject.threat

        def after(direction: Tensor) -> Tensor:
            with torch.no_grad():
                return margin(model(box(threat.project(x + threat.eps * threat.ascend(direction), x))), y)

        with frozen(subject.model):
            grad, _, clean = input_gradient(model, partial(margin, y=y), x)
        along = after(grad)
        draws = (torch.randn(x.shape, generator=rng, device=x.device, dtype=x.dtype) for _ in range(DRAWS))
        best = torch.stack([after(draw) for draw in draws]).amax(0)
        return (along <= best) & ((along != clean) | (best != clean))  # where nothing moves there is nothing to follow

    count = int(subject.per_example(measure, "direction").sum())
    message = f"one of {DRAWS} random steps is as good as the gradient's at {count} of {len(subject)} images"
    hint = "the gradient at the image does not say where the loss rises: use many steps, restarts, and Square"
    return counted("gradient direction", count, len(subject), 0.1, message, hint, draws=DRAWS)


def climb(subject: Subject, steps: Sequence[int]) -> dict[int, Tensor]:
    """PGD on the cross-entropy, looked at after so many steps: which examples its *last* iterate fools."""
    found = {count: torch.zeros(len(subject), dtype=torch.bool) for count in steps}
    for number, (batch, part) in enumerate(subject.batches()):
        rng = subject.streams.at("masking/pgd", number, batch.x.device)
        at, taken = Uniform()(batch.x, subject.threat, rng), 0
        for count in steps:
            at = _further(subject.model, batch, subject.threat, at, count - taken, rng)
            taken = count
            found[count][part] = ~subject.correct(at, batch.y).cpu()
    return found


def _further(model: nn.Module, batch: Batch, threat: Any, at: Tensor, steps: int, rng: torch.Generator) -> Tensor:
    """So many more steps of PGD."""
    with frozen(model), batch_norm(model, "running"):
        ascent = PGD(steps=steps, rel_step_size=0.25)
        return ascent.climb(model, batch.x, batch.y, lambda z: ce(z, batch.y), at, threat, rng)


def examine_steps(looks: Mapping[int, Tensor], total: int) -> Evidence:
    """More steps must not help the defender, and the attack must have converged."""
    few, middle, many = looks
    lost, gained = int((looks[few] & ~looks[many]).sum()), int((looks[many] & ~looks[few]).sum())
    worse = paired_difference(lost, gained, total)
    late = int(looks[many].sum()) - int(looks[middle].sum())
    measured = {
        "fooled": {str(count): int(fooled.sum()) for count, fooled in looks.items()},
        "lost": lost,
        "gained": gained,
        "difference": vars(worse),
    }
    seen = ", ".join(f"{int(fooled.sum())} after {count}" for count, fooled in looks.items())
    message = f"of {total} images the last step of PGD fools {seen}"
    if worse.value > 0.01:
        hint = "more steps make the attack weaker: the gradients along its way mislead"
        return Evidence("more steps", "FAIL" if worse.low > 0 else "WARN", message, hint, measured)
    if late / total > 0.02:
        hint = f"not converged at {middle} steps: evaluate with {many} or more, or AutoAttack"
        return Evidence("more steps", "WARN", message, hint, measured)
    return Evidence("more steps", "PASS", message, None, measured)


def examine_single_step(fast: Tensor, slow: Tensor) -> Evidence:
    """One step of FGSM must fool at least half of what many steps fool."""
    beaten, only = int(slow.sum()), int((slow & ~fast).sum())
    message = f"of the {beaten} images that PGD fools, FGSM fools {beaten - only}"
    if beaten == 0:
        return Evidence("single step", "PASS", message, None, {"count": 0, "n": 0})
    hint = "accuracy under one step says nothing here: the model has overfitted to it (catastrophic overfitting)"
    return counted("single step", only, beaten, 0.5, message, hint)


def examine_scale(subject: Subject, before: Tensor, steps: int, total: int) -> Evidence:
    """PGD must not be stronger on rescaled logits, which predict the same; `before` are those that PGD has fooled."""

    def measure(batch: Batch, rng: torch.Generator) -> Tensor:
        with torch.no_grad():
            return -margin(subject.model(batch.x), batch.y)

    gap = float(subject.per_example(measure, "gap").double().median())
    factor = MARGIN / max(gap, 1e-6)
    attack = PGD(steps=steps, rel_step_size=0.25)
    found = subject.fooled("rescaled", attack, attacked=Rescaled(subject.model, factor))
    only = int((found & ~before).sum())
    message = f"with logits rescaled by {factor:.2g} (margins near {MARGIN}), PGD fools {only} of {total} images more"
    hint = (
        "the scale of the logits hides the gradient of the cross-entropy: attack the margin (mm3) or dlr (autoattack)"
    )
    more = {"median_margin": gap, "factor": factor, "fooled": int(found.sum())}
    return counted("logit scale", only, total, 0.05, message, hint, **more)


def examine_unbounded(subject: Subject, total: int) -> Evidence:
    """With a budget that makes every image grey, everything must fall but what has the class of grey."""
    eps = grey_budget(subject.threat.norm, subject.x)
    threat = create_threat(subject.threat.norm, eps)
    standing = torch.arange(len(subject))
    for loss in ("ce", "margin"):
        if len(standing):
            attack = Hunt(AutoPGD(loss=loss), slots=subject.batch_size)
            fell = subject.head(standing).fooled(f"unbounded-{loss}", attack, threat=threat)
            standing = standing[~fell]
    grey = grey_class(subject.model, subject.x[:1])
    count = int((subject.y[standing.to(subject.y.device)] != grey).sum())
    message = (
        f"at eps {eps:.3g}, where plain grey is within reach, {count} of {total} images stand that grey would break"
    )
    hint = "the attack fails though adversarial images exist: gradients are masked, or the steps are too few"
    return counted("unbounded budget", count, total, 0.01, message, hint, eps=eps, standing=len(standing), grey=grey)


def examine_second_opinions(subject: Subject, before: Tensor, total: int) -> tuple[list[Evidence], dict[str, Tensor]]:
    """Attacks on other losses must not find much that PGD on the cross-entropy does not; and what they find."""
    attacks: dict[str, tuple[Attack, str]] = {
        "mm3": (mm3(), "minimum margin"),
        "md": (Hunt(MD(), slots=subject.batch_size), "margin decomposition"),
    }
    evidence, found = [], {}
    for name, (attack, what) in attacks.items():
        found[name] = subject.fooled(name, attack)
        only = int((found[name] & ~before).sum())
        message = f"{what} ({name}) fools {only} images of {total} that PGD does not"
        hint = (
            f"the gradient of the cross-entropy misleads: an accuracy under PGD is too high, use {name} or autoattack"
        )
        evidence.append(
            counted(f"second opinion ({name})", only, total, 0.1, message, hint, fooled=int(found[name].sum()))
        )
    return evidence, found


def examine_black_box(subject: Subject, white: Tensor, queries: int, total: int) -> tuple[Evidence, Tensor]:
    """Square, which sees no gradient, must not fool what the gradient attacks do not; and what it fools."""
    found = subject.fooled("square", Hunt(Square(queries=queries), slots=subject.batch_size))
    only = int((found & ~white).sum())
    message = f"Square with {queries:,} queries fools {only} images of {total} that no gradient attack fools"
    hint = "queries find what gradients do not: the gradients are masked"
    more = {"fooled": int(found.sum()), "queries": queries}
    return counted("black box", only, total, 0.01, message, hint, **more), found


def examine_transfer(subject: Subject, source: nn.Module, white: Tensor, total: int) -> tuple[Evidence, Tensor]:
    """Images made against another model must not fool what this one's own gradients do not; and what they fool."""
    found = subject.fooled("transfer", PGD(steps=40, rel_step_size=0.25), attacked=source)
    only = int((found & ~white).sum())
    message = f"PGD against the other model fools {only} images of {total} that no gradient attack on this one fools"
    hint = "another model's gradients are better than this one's own: they are masked"
    return counted("transfer", only, total, 0.01, message, hint, fooled=int(found.sum())), found


def examine_randomness(subject: Subject, forwards: int, total: int) -> tuple[Evidence, dict[str, Tensor]]:
    """For a randomised model: the gradient of the mean of its forwards must not be much better than that of one."""
    attack = PGD(steps=40, rel_step_size=0.25)
    found = {
        "pgd-40": subject.fooled("pgd-40", attack),
        "pgd-40-eot": subject.fooled("pgd-40", attack, attacked=Averaged(subject.model, forwards)),
    }
    only = int((found["pgd-40-eot"] & ~found["pgd-40"]).sum())
    message = (
        f"the model is randomised; PGD on the mean of {forwards} forwards (EoT) fools {only} images of {total} that PGD"
        " on single ones does not"
    )
    hint = "average gradients over forwards (autoattack-rand); a number is of one draw of the model"
    more = {"forwards": forwards, "fooled": {name: int(fooled.sum()) for name, fooled in found.items()}}
    evidence = counted("randomness", only, total, 0.05, message, hint, **more)
    if evidence.verdict == "PASS":
        evidence = Evidence("randomness", "WARN", message, hint, evidence.measured)
    return evidence, found
