"""Budgets per pixel: a mask says which pixels keep the full eps, the others get less."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, get_args

from gambeson.core.errors import InputError, require_known
from gambeson.core.threat import parse_eps
from gambeson.parts.cam import CAM
from gambeson.parts.masks import Mask, Quadrant, Random, Rule, ZScore

if TYPE_CHECKING:
    from torch import nn

    from gambeson.parts.budget_state import BudgetState

Assign = Literal["own", "permuted", "release"]


@dataclass(frozen=True, kw_only=True)
class PixelBudget:
    """`|delta_p| <= eps` where the mask is true, `|delta_p| <= eps_low` elsewhere, for every pixel p.

    A step of an attack relative to eps is relative to the pixel's own budget; give `step_size` for one step on all
    pixels, as PART does.

    Args:
        eps_low: Budget of the other pixels, at most the recipe's eps; fraction of the pixel range.
        mask: Which pixels keep the full budget, see `gambeson.parts.masks`.
        cam: The maps behind `ZScore`, `Quantile` and `Jet`.
        refresh: 0: the maps of every batch are made from that batch, as augmented, just before it is attacked. s >= 1:
            at the start of every s-th epoch the maps of the training set, not augmented, are made and kept by data set
            index in the layer's resolution; the masks move through the batch's crop and flip, and what the crop shows
            from outside of the image has the low budget.
        assign: Whose mask an image gets. `"own"`. `"permuted"`: another image's, at random; the control that tells
            whether the map matters. `"release"`: what PART's released code does: maps are made of augmented images,
            kept by place in a shuffled pass, and looked up by place in another.
        dead: Budget of an image whose map is empty: `"full"`, or `"low"` as in the release. The metrics count them.
        warmup: Epochs with the full budget everywhere at the start; None for a quarter of them, as 20 of 80 in PART.

    Maps are made with the weights that are trained, not with a moving average of them.

    Raises:
        InputError: A setting out of range, or settings that do not go together.

    References:
        Zhang, Liu, Zhou, Zhang, Liu, "Improving accuracy-robustness trade-off via pixel reweighted adversarial
        training", ICML 2024, https://arxiv.org/abs/2406.00685; JiachengZ01/PART.
    """

    eps_low: float
    mask: Mask = field(default_factory=ZScore)
    cam: CAM = field(default_factory=CAM)
    refresh: int = 1
    assign: Assign = "own"
    dead: Literal["full", "low"] = "full"
    warmup: int | None = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "eps_low", parse_eps(self.eps_low))
        if not 0 <= self.eps_low <= 1:
            hint = f"{self.eps_low:g} grey levels are eps_low={self.eps_low:g}/255" if 1 < self.eps_low <= 255 else None
            raise InputError(
                f"eps_low must be a fraction of the pixel range in [0, 1], got {self.eps_low:g}", hint=hint
            )
        if not isinstance(self.mask, Mask):
            kinds = ", ".join(kind.__name__ for kind in get_args(Mask))
            raise InputError(
                f"the mask of a budget is one of {kinds}, got {type(self.mask).__name__}",
                hint="create_mask('zscore') makes one from its name",
            )
        require_known("assignment of masks", self.assign, get_args(Assign))
        require_known("budget of dead maps", self.dead, ("full", "low"))
        if self.refresh < 0 or (self.warmup or 0) < 0:
            raise InputError(f"refresh and warmup count epochs from 0, got {self.refresh} and {self.warmup}")
        if self.assign != "own" and isinstance(self.mask, (Random, Quadrant)):
            raise InputError(
                "random, uniform and quadrant masks belong to no image, so that an image cannot get another's",
                hint="leave assign at own",
            )
        if self.assign == "release" and not self.needs_maps:
            raise InputError("assign='release' is about maps, and masks from a file have none", hint="assign permuted")
        if self.assign == "release" and not self.refresh:
            raise InputError(
                "assign='release' looks maps up by place in a later pass: it needs stored maps", hint="refresh 1"
            )

    @property
    def needs_maps(self) -> bool:
        """Whether the mask is made from class-activation maps."""
        return isinstance(self.mask, Rule)

    def build(self, model: nn.Module) -> BudgetState:
        """The state: stored maps and counters."""
        from gambeson.parts.budget_state import BudgetState  # keeps the values free of torch at import

        return BudgetState(self, model)
