"""Which pixels a model's class-activation maps would give the full budget, measured on a split."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from gambeson.core.errors import GambesonWarning, InputError, require_known
from gambeson.data.loader import to_unit
from gambeson.diagnosis.spread import Spread, spread
from gambeson.evaluation.examples import check_examples
from gambeson.parts.cam import CAM, Site, class_activation_maps, find_site, normalised
from gambeson.parts.masks import Jet, Quantile, Rule, ZScore, upsample


@dataclass(frozen=True, eq=False)
class Shown:
    """The images of the picture.

    Attributes:
        index: Their positions among the images measured, int64 `(k,)`.
        x: The images, float in [0, 1], `(k, C, H, W)`.
        maps: Their maps at the images' size, `(k, H, W)`; about [0, 1], a little beyond where the interpolation
            overshoots.
        masks: Where they have the full budget, bool `(k, 1 or 3, H, W)`.
    """

    index: Tensor
    x: Tensor
    maps: Tensor
    masks: Tensor


@dataclass(frozen=True)
class Group:
    """Some of the images.

    Attributes:
        full: Share of an image's values (pixels times channels) at the full budget, over the images.
        channels: Mean share by channel; one entry where the mask is the same for all.
        any_channel: Mean share of pixels with the full budget in one channel at least.
        dead: Images with an empty map.
    """

    full: Spread
    channels: tuple[float, ...]
    any_channel: float
    dead: int


@dataclass(frozen=True, eq=False)
class CamDiagnosis:
    """What the maps of a model say about the images of a split.

    Attributes:
        site: The layer of the maps, and the closed form of what follows it.
        cam: How the maps were made.
        rule: How they became masks.
        dead_budget: What an image with an empty map gets, `full` or `low`.
        full: Share of pixels at the full budget, by image and channel of the mask, `(N, 1 or 3)`.
        any_channel: Share of pixels at the full budget in one channel at least, `(N,)`.
        dead: Which maps are empty, bool `(N,)`.
        y: Labels `(N,)`.
        predicted: Predicted classes `(N,)`; the maps are theirs.
        shown: The images of the picture.
        class_names: One per class.
    """

    site: Site
    cam: CAM
    rule: Rule
    dead_budget: Literal["full", "low"]
    full: Tensor
    any_channel: Tensor
    dead: Tensor
    y: Tensor
    predicted: Tensor
    shown: Shown
    class_names: tuple[str, ...]

    def groups(self) -> dict[str, Group | None]:
        """All images, those that the model classifies correctly, and the others; None for a group without images."""
        correct = self.predicted == self.y
        chosen = {"all": torch.ones_like(correct), "correct": correct, "wrong": ~correct}
        return {name: self._group(rows) if rows.any() else None for name, rows in chosen.items()}

    def mean_budget(self, eps: float, eps_low: float) -> float:
        """The mean of the budgets over all values of all images."""
        return eps_low + (eps - eps_low) * float(self.full.double().mean())

    def to_dict(self) -> dict[str, Any]:
        """Everything but the pictures, for JSON."""
        rows = self.shown.index
        return {
            "n": len(self.y),
            "layer": self.site.layer,
            "closed_form": self.site.head is not None,
            "cam": self.cam.method,
            "mask": rule_name(self.rule),
            "dead_budget": self.dead_budget,
            "groups": {name: asdict(group) if group else None for name, group in self.groups().items()},
            "shown": {
                "index": rows.tolist(),
                "y": self.y[rows].tolist(),
                "predicted": self.predicted[rows].tolist(),
                "full": self.full[rows].double().mean(1).tolist(),
            },
        }

    def _group(self, rows: Tensor) -> Group:
        full = self.full[rows].double()
        return Group(
            spread(full.mean(1).tolist()),
            tuple(full.mean(0).tolist()),
            float(self.any_channel[rows].double().mean()),
            int(self.dead[rows].sum()),
        )


def diagnose_cam(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    class_names: Sequence[str],
    rule: Rule | None = None,
    cam: CAM | None = None,
    dead: Literal["full", "low"] = "full",
    shown: int = 8,
    batch_size: int = 256,
    progress: Callable[[int], None] | None = None,
) -> CamDiagnosis:
    """The maps of the predicted classes, and the pixels that a rule makes of them, on images as they are.

    The model is looked at in evaluation mode and comes back as it was.

    Args:
        model: Maps images in [0, 1] to logits.
        x: Images `(N, C, H, W)`, uint8 or float in [0, 1].
        y: Labels `(N,)`.
        class_names: One per class.
        rule: Makes masks from maps; None takes `ZScore()`.
        cam: How the maps are made; None takes `CAM()`.
        dead: What an image with an empty map gets, see `PixelBudget`.
        shown: Images to keep for the picture, evenly over the N.
        batch_size: Images at a time.
        progress: Called with the number of images done, once per batch.

    Returns:
        The diagnosis, on the CPU.

    Raises:
        InputError: Images, labels or names that do not fit, a layer without maps, or `Jet` for images without three
            channels.
    """
    rule, cam = ZScore() if rule is None else rule, CAM() if cam is None else cam
    require_known("budget of dead maps", dead, ("full", "low"))
    check_examples(x, y, len(class_names))
    if isinstance(rule, Jet):
        rule.require_channels(x.shape[1])
    if batch_size < 1 or shown < 0:
        raise InputError(f"batch_size must be at least 1 and shown at least 0, got {batch_size} and {shown}")
    like = next(model.parameters())
    index = torch.linspace(0, len(x) - 1, min(shown, len(x)), dtype=torch.float64).round().long()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", GambesonWarning)  # the result says whether there is a closed form
        site = find_site(model, to_unit(x[:2].to(like.device)).to(like.dtype), cam.layer)
    rows: list[tuple[Tensor, ...]] = []
    pictures: list[tuple[Tensor, ...]] = []
    for number in torch.arange(len(x)).split(batch_size):
        images = to_unit(x[number.to(x.device)].to(like.device)).to(like.dtype)
        found = class_activation_maps(model, images, site, cam.method)
        small, empty = normalised(found.maps)
        maps = upsample(small, (x.shape[2], x.shape[3]))
        masks = torch.where(empty.view(-1, 1, 1, 1), dead == "full", rule(maps))
        rows.append((masks.float().mean((2, 3)), masks.any(1).float().mean((1, 2)), empty, found.classes))
        kept = (index[torch.isin(index, number)] - number[0]).to(like.device)
        pictures.append((images[kept], maps[kept], masks[kept]))
        if progress:
            progress(len(number))
    full, any_channel, empty, predicted = (torch.cat(parts).cpu() for parts in zip(*rows, strict=True))
    images, maps, masks = (torch.cat(parts).cpu() for parts in zip(*pictures, strict=True))
    return CamDiagnosis(
        site,
        cam,
        rule,
        dead,
        full,
        any_channel,
        empty,
        y.cpu(),
        predicted,
        Shown(index, images, maps, masks),
        tuple(class_names),
    )


def rule_name(rule: Rule) -> str:
    """The rule as the command line spells it.

    Examples:
        >>> rule_name(Quantile(0.9))
        'quantile:0.9'
    """
    if isinstance(rule, ZScore):
        return f"zscore:{rule.threshold:g}"
    return f"quantile:{rule.q:g}" if isinstance(rule, Quantile) else "jet"
