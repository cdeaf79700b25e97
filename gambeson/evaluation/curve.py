"""Robust accuracy against the budget, from few attacks: balls are nested, so that what has fallen stays fallen."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gambeson.attacks.minimal import deepfool
from gambeson.core.errors import InputError
from gambeson.core.modes import batch_norm
from gambeson.core.parameters import like_of
from gambeson.core.streams import Streams
from gambeson.core.threat import create_threat
from gambeson.core.types import Batch
from gambeson.data.loader import to_unit
from gambeson.evaluation.evaluate import parse_attack
from gambeson.evaluation.examples import check_examples
from gambeson.evaluation.grid import check_budgets
from gambeson.evaluation.judging import judge, returned_images
from gambeson.evaluation.statistics import Interval, wilson


@dataclass(frozen=True, eq=False)
class Curve:
    """At which budget every example falls.

    Attributes:
        grid: The budgets, ascending; the first is 0, no attack.
        fell: The smallest budget of the grid at which each example was misclassified, float64 `(N,)`: 0 for one that is
            wrong as it is, infinite for one that no attack broke.
        y: Labels `(N,)`.
        grey: The budget at which every image can be made plain grey: 1/2 (Linf), or `sqrt(d) / 2` for d values (L2).
        grey_class: The class of plain grey: at `grey` examples of every other class have an adversarial image.
        settings: What was run, for the record, as in `Report`.
    """

    grid: tuple[float, ...]
    fell: Tensor
    y: Tensor
    grey: float
    grey_class: int
    settings: Mapping[str, Any]

    def accuracy(self, eps: float) -> Interval:
        """Share of the examples that stand at `eps`, with its Wilson 95 % interval.

        Raises:
            InputError: The budget is not one of the grid.
        """
        if eps not in self.grid:
            known = ", ".join(f"{one:g}" for one in self.grid)
            raise InputError(f"eps {eps:g} was not measured", hint=f"measured: {known}")
        return surviving(self.fell, eps)

    def warning(self) -> str | None:
        """What to think of a curve that does not come down to 0; None for one that does."""
        last = self.grid[-1]
        standing = self.fell > last
        if not standing.any():
            return None
        found = f"at the largest budget, {last:.4g}, accuracy is {100 * self.accuracy(last).value:.1f} %, not 0"
        if last < self.grey:
            return f"{found}: a grid up to {self.grey:.4g}, where every image can be made plain grey, should come to 0"
        missed = int((standing & (self.y != self.grey_class)).sum())
        if missed == 0:
            return f"{found}: all that stand have the class of plain grey"
        return (
            f"{found}, although plain grey, which lies in every ball there, is misclassified for {missed} of the"
            f" {int(standing.sum())} images that stand: the attack fails, the gradients may be masked"
        )

    def to_dict(self) -> dict[str, Any]:
        """Everything but the examples, for JSON."""
        points = [{"eps": eps, **vars(self.accuracy(eps))} for eps in self.grid]
        return {**self.settings, "n": len(self.y), "points": points, "warning": self.warning()}


def surviving(radii: Tensor, eps: float) -> Interval:
    """Share of examples whose radius, `(N,)`, is above `eps`, with its Wilson 95 % interval."""
    return wilson(int((radii > eps).sum()), len(radii))


def robust_curve(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    attack: str,
    grid: Sequence[float],
    *,
    norm: str = "Linf",
    num_classes: int,
    batch_size: int = 256,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> Curve:
    """Accuracy of `model` under one attack at every budget of a grid.

    The budgets come in ascending order, and an example that fell is not attacked again: what was found lies in every
    larger ball too. So the curve never rises, and a point of it is the accuracy under the attacks at *all* budgets up
    to there, at most that under the attack at this budget alone. Adversarial images are judged as in `evaluate`.

    Args:
        model: Maps images in [0, 1] to logits.
        x: Images `(N, C, H, W)`, uint8 or float in [0, 1].
        y: Labels `(N,)` in `[0, num_classes)`.
        attack: Name for `parse_attack`.
        grid: Budgets, at least one above 0; fractions of the pixel range, at most 1 for Linf.
        norm: "Linf" or "L2".
        num_classes: Number of classes.
        batch_size: Images at a time. Random starts depend on it.
        seed: Seed of the random starts.
        progress: Called with the number of images done, once per batch and budget.

    Returns:
        The curve, on the CPU.

    Raises:
        InputError: As `evaluate`; a grid that does not fit; no attack.

    References:
        Athalye, Carlini, Wagner, "Obfuscated gradients give a false sense of security", ICML 2018,
        https://arxiv.org/abs/1802.00420 (section 3.1: attacks without a bound must succeed always). Carlini et al., "On
        evaluating adversarial robustness", 2019, https://arxiv.org/abs/1902.06705 (curves against the budget).
    """
    search = parse_attack(attack)
    if search is None:
        raise InputError(
            f"a curve needs an attack, got {attack!r}", hint="such as pgd-50: accuracy at 0 is the clean one"
        )
    eps = check_budgets(grid)
    threats = [create_threat(norm, one) for one in eps[1:]]
    check_examples(x, y, num_classes)
    if batch_size < 1:
        raise InputError(f"batch_size must be at least 1, got {batch_size}")
    streams, fell, failed = Streams(seed), torch.full((len(y),), math.inf, dtype=torch.float64), 0
    for number, (images, labels, part) in enumerate(_batches(model, x, y, batch_size)):
        radii = torch.where(judge(model, images, labels, num_classes).cpu(), math.inf, 0.0).double()
        if progress:
            progress(len(labels))
        for one, threat in zip(eps[1:], threats, strict=True):
            left = radii.isinf().nonzero().squeeze(1)
            if len(left):
                rows = left.to(labels.device)
                batch = Batch(images[rows], labels[rows], rows)
                rng = streams.at(f"curve/{attack}/{one!r}", number, labels.device)
                x_adv, returned = returned_images(search(model, batch, threat, rng), batch.x, threat)
                failed += len(left) - int(returned.sum())
                radii[left[~judge(model, x_adv, batch.y, num_classes).cpu()]] = one
            if progress:
                progress(len(labels))
        fell[part] = radii
    settings = {
        "attack": attack,
        "norm": threats[0].norm,
        "batch_size": batch_size,
        "seed": seed,
        "failed": failed,
    }
    return Curve(eps, fell, y.cpu(), grey_budget(threats[0].norm, x), grey_class(model, x[:1]), settings)


def minimal_norms(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    norm: str = "Linf",
    num_classes: int,
    candidates: int = 10,
    batch_size: int = 256,
    progress: Callable[[int], None] | None = None,
) -> Tensor:
    """How far DeepFool must move every image, judged as in `evaluate`; see `gambeson.attacks.deepfool`.

    Args:
        model: Maps images in [0, 1] to logits.
        x: Images `(N, C, H, W)`, uint8 or float in [0, 1].
        y: Labels `(N,)` in `[0, num_classes)`.
        norm: "Linf" or "L2".
        num_classes: Number of classes.
        candidates: Only towards that many classes.
        batch_size: Images at a time.
        progress: Called with the number of images done, once per batch.

    Returns:
        The norms, float64 `(N,)` on the CPU: 0 for an image that is wrong as it is, infinite where nothing was found.

    Raises:
        InputError: As `evaluate`.
    """
    check_examples(x, y, num_classes)
    if batch_size < 1:
        raise InputError(f"batch_size must be at least 1, got {batch_size}")
    norms = torch.empty(len(y), dtype=torch.float64)
    for images, labels, part in _batches(model, x, y, batch_size):
        batch = Batch(images, labels, torch.arange(part.start, part.stop, device=labels.device))
        found = deepfool(model, batch, norm, candidates=candidates)
        wrong = ~judge(model, found.x_adv, labels, num_classes)
        norms[part] = torch.where(wrong, found.norms, torch.full_like(found.norms, math.inf)).cpu().double()
        if progress:
            progress(len(labels))
    return norms


def _batches(model: nn.Module, x: Tensor, y: Tensor, batch_size: int) -> Iterator[tuple[Tensor, Tensor, slice]]:
    """Images and labels on the model's device, with their place."""
    like = like_of(model, x)
    for start in range(0, len(y), batch_size):
        part = slice(start, min(start + batch_size, len(y)))
        yield to_unit(x[part].to(like.device)).to(like.dtype), y[part].to(like.device, torch.int64), part


def grey_budget(norm: str, x: Tensor) -> float:
    """The budget at which every image of the shape of `x`, `(N, C, H, W)`, can be made plain grey."""
    return 0.5 if norm == "Linf" else 0.5 * math.sqrt(x[0].numel())


def grey_class(model: nn.Module, x: Tensor) -> int:
    """The class of plain grey, an image of the shape of the one in `x`, `(1, C, H, W)`."""
    like = like_of(model, x)
    with torch.no_grad(), batch_norm(model, "running"):
        return int(model(torch.full(x.shape, 0.5, dtype=like.dtype, device=like.device)).argmax())
