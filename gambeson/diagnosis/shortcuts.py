"""Pseudo-robust shortcuts: what becomes of accuracy when a share of the weights of some layers is removed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from gambeson.core.errors import InputError, require_known
from gambeson.core.parameters import applied, layer_weights
from gambeson.core.streams import Streams
from gambeson.core.threat import Threat
from gambeson.evaluation.evaluate import evaluate
from gambeson.evaluation.preflight import preflight
from gambeson.evaluation.statistics import Interval, paired_difference, wilson

Mode = Literal["largest", "smallest", "random"]
"""Which weights are removed: by magnitude, or any."""

SHARES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3)
"""Shares of a layer's weights that are removed by default."""


@dataclass(frozen=True, eq=False)
class Removal:
    """Accuracy after some weights were removed.

    Attributes:
        group: Which layers.
        mode: Which of their weights.
        share: How many, of 1.
        outcomes: By attack, whether each example is correct, bool `(N,)`.
    """

    group: str
    mode: Mode
    share: float
    outcomes: Mapping[str, Tensor]

    def accuracy(self, attack: str) -> Interval:
        """Accuracy with its Wilson 95 % interval."""
        correct = self.outcomes[attack]
        return wilson(int(correct.sum()), len(correct))


@dataclass(frozen=True, eq=False)
class Shortcuts:
    """Accuracy against the share of the weights that was removed, by group of layers and kind of weights.

    Attributes:
        whole: The model as it is, share 0.
        removals: All others.
        fast: The one-step attack.
        slow: The attack of many steps.
        settings: What was run, for the record.
    """

    whole: Removal
    removals: tuple[Removal, ...]
    fast: str
    slow: str
    settings: Mapping[str, Any]

    def curve(self, group: str, mode: str) -> list[Removal]:
        """From share 0 on."""
        return [self.whole, *[one for one in self.removals if (one.group, one.mode) == (group, mode)]]

    def change(self, removal: Removal, attack: str) -> Interval:
        """Accuracy after the removal minus that of the model as it is, with Tango's interval."""
        before, after = self.whole.outcomes[attack], removal.outcomes[attack]
        return paired_difference(int((after & ~before).sum()), int((before & ~after).sum()), len(before))

    def signature(self, removal: Removal) -> bool:
        """Whether a removal shows a shortcut: accuracy falls under one step and rises under many.

        Both 95 % intervals of the change leave out 0, on opposite sides.
        """
        return self.change(removal, self.fast).high < 0 < self.change(removal, self.slow).low

    @property
    def found(self) -> tuple[Removal, ...]:
        """The removals that show a shortcut."""
        return tuple(one for one in self.removals if self.signature(one))

    def sentence(self) -> str:
        """What was found, in words."""
        if not self.found:
            return (
                f"no sign of a shortcut: no removal lowers accuracy under {self.fast} and raises that under {self.slow}"
            )
        best = max(self.found, key=lambda one: self.change(one, self.slow).value)
        fell, rose = self.change(best, self.fast).value, self.change(best, self.slow).value
        where = ", ".join(dict.fromkeys(f"{one.mode} of {one.group}" for one in self.found))
        return (
            f"shortcuts in the {where} weights: without {100 * best.share:g} % of the {best.mode} of {best.group},"
            f" accuracy under {self.fast} changes by {100 * fell:+.1f} points and under {self.slow} by"
            f" {100 * rose:+.1f}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Everything but the outcomes, for JSON."""

        def row(one: Removal) -> dict[str, Any]:
            accuracy = {name: vars(one.accuracy(name)) for name in one.outcomes}
            change = {name: vars(self.change(one, name)) for name in one.outcomes}
            of = {"group": one.group, "mode": one.mode, "share": one.share}
            return {**of, "accuracy": accuracy, "change": change, "signature": self.signature(one)}

        return {
            **self.settings,
            "n": len(next(iter(self.whole.outcomes.values()))),
            "whole": {name: vars(self.whole.accuracy(name)) for name in self.whole.outcomes},
            "removals": [row(one) for one in self.removals],
            "shortcuts": len(self.found),
            "sentence": self.sentence(),
        }


def removed(
    weights: Mapping[str, Tensor], share: float, mode: Mode, *, pooled: bool = False, seed: int = 0
) -> dict[str, Tensor]:
    """What has to be added to weights so that a share of them is 0.

    Args:
        weights: By name.
        share: How many of them, in [0, 1]; of every layer `round(share * size)`, ties in the order of the entries.
        mode: The largest or the smallest magnitudes, or random ones.
        pooled: Rank all layers together; otherwise every layer loses the same share.
        seed: Of the random ones; a layer's do not depend on the others, and those of a larger share contain them.

    Returns:
        `-w` at the removed entries, 0 elsewhere, by name.

    Raises:
        InputError: A share outside [0, 1], or another mode.
    """
    require_known("mode", mode, get_args(Mode))
    if not 0 <= share <= 1:
        raise InputError(f"the share of weights to remove lies in [0, 1], got {share:g}")

    def rank(name: str, w: Tensor) -> Tensor:
        """What is removed first comes first."""
        if mode == "random":
            rng = Streams(seed).at(f"removal/{name}")
            return torch.rand(w.numel(), generator=rng).to(w.device)
        size = w.detach().abs().flatten()
        return -size if mode == "largest" else size

    ranks = {name: rank(name, w) for name, w in weights.items()}
    if pooled:
        together = torch.cat([r.double() for r in ranks.values()])
        mask = _first(together, round(share * len(together)))
        masks = dict(zip(ranks, mask.split([len(r) for r in ranks.values()]), strict=True))
    else:
        masks = {name: _first(r, round(share * len(r))) for name, r in ranks.items()}
    return {name: torch.where(masks[name].view_as(w), -w.detach(), 0) for name, w in weights.items()}


def _first(rank: Tensor, count: int) -> Tensor:
    """The `count` lowest of a rank, bool."""
    mask = torch.zeros(len(rank), dtype=torch.bool, device=rank.device)
    mask[rank.argsort(stable=True)[:count]] = True
    return mask


def find_shortcuts(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    groups: Mapping[str, Sequence[str]],
    *,
    num_classes: int,
    modes: Sequence[Mode] = ("largest", "smallest", "random"),
    shares: Sequence[float] = SHARES,
    attacks: tuple[str, str] = ("fgsm", "pgd-10"),
    pooled: bool = False,
    batch_size: int = 256,
    seed: int = 0,
    progress: Callable[[], None] | None = None,
) -> Shortcuts:
    """Remove weights of some layers, without training, and measure clean accuracy and that under two attacks.

    A network that has collapsed to one-step attacks reads, in the large weights of its former layers, features that
    answer such attacks only: without them its accuracy under FGSM falls and that under PGD rises.

    Args:
        model: Maps images in [0, 1] to logits; its weights come back bit for bit.
        x: Images `(N, C, H, W)`, uint8 or float in [0, 1].
        y: Labels `(N,)` in `[0, num_classes)`.
        threat: Ball of the attacks.
        groups: Names of weights by group, see `gambeson.diagnosis.groups`.
        num_classes: Number of classes.
        modes: Which weights are removed.
        shares: How many.
        attacks: Names for `parse_attack`: one step, and many.
        pooled: Rank the layers of a group together.
        batch_size: Images at a time.
        seed: Seed of the random weights and of the attacks' starts.
        progress: Called after every evaluation.

    Returns:
        The accuracies.

    Raises:
        InputError: What `evaluate` refuses, unknown weights, a share outside (0, 1], or no groups, modes or shares.

    References:
        Lin, Yu, Han, Su, Liu, "Layer-aware analysis of catastrophic overfitting: revealing the pseudo-robust shortcut
        dependency", ICML 2024, https://arxiv.org/abs/2405.16262. The paper removes 10 % of the large weights of layers
        1 to 5; whether it ranks by layer is not published.
    """
    own = layer_weights(model)
    missing = [name for names in groups.values() for name in names if name not in own]
    if missing:
        raise InputError(f"the model has no weights {', '.join(dict.fromkeys(missing))}")
    if not groups or not modes or not shares:
        raise InputError("a search for shortcuts needs groups of layers, modes and shares")
    if not all(0 < share <= 1 for share in shares):
        raise InputError(f"shares of weights to remove lie in (0, 1], got {list(shares)}")
    preflight(model, x, y, threat, ("ce",), num_classes=num_classes, batch_size=batch_size)

    def measure() -> dict[str, Tensor]:
        settings: dict[str, Any] = {"num_classes": num_classes, "batch_size": batch_size, "seed": seed}
        report = evaluate(model, x, y, attacks, threat, checks=False, **settings)
        if progress:
            progress()
        return report.outcomes

    whole = Removal("none", "largest", 0.0, measure())
    removals = []
    for group, names in groups.items():
        weights = {name: own[name] for name in names}
        for mode in modes:
            for share in sorted(shares):
                with applied(model, removed(weights, share, mode, pooled=pooled, seed=seed)):
                    removals.append(Removal(group, mode, share, measure()))
    settings = {
        "groups": {group: list(names) for group, names in groups.items()},
        "modes": list(modes),
        "shares": sorted(shares),
        "pooled": pooled,
        "attacks": list(attacks),
        "norm": threat.norm,
        "eps": float(threat.eps),
        "seed": seed,
        "batch_size": batch_size,
    }
    return Shortcuts(whole, tuple(removals), *attacks, settings)
