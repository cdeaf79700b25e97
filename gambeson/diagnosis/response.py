"""What weight perturbations of single layers do to loss and accuracy: the result, and which layers respond most."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from gambeson.diagnosis.groups import short
from gambeson.diagnosis.spread import difference
from gambeson.evaluation.finding import finite_number
from gambeson.evaluation.statistics import Interval, paired_difference, wilson

Kind = Literal["adversarial", "random"]
"""Which way weights are moved: up the gradient of the loss, or in a filter-normalised random direction."""

Strategy = Literal["cached", "naive"]
"""Whether only what follows the moved layers is run, or the whole network."""

RHOS = (0.005, 0.01, 0.02, 0.05)
"""Sizes of the perturbation by default, as shares of the norm of a layer's weight."""


@dataclass(frozen=True, eq=False)
class Moved:
    """Loss and accuracy with some weights moved.

    Attributes:
        group: Which layers.
        kind: Which way.
        rho: How far, as a share of every layer's norm.
        inputs: On which images: `clean`, or the attack that made them.
        loss: Cross-entropy of every image, float64 `(N,)`; infinite where it is not finite.
        correct: Whether every image is classified correctly, bool `(N,)`.
    """

    group: str
    kind: Kind
    rho: float
    inputs: str
    loss: Tensor
    correct: Tensor

    @property
    def accuracy(self) -> Interval:
        """Accuracy with its Wilson 95 % interval."""
        return wilson(int(self.correct.sum()), len(self.correct))


@dataclass(frozen=True)
class Most:
    """Which of several groups of layers responds most, at the largest rho.

    Attributes:
        inputs: On which images.
        kind: Which way the weights were moved.
        rho: How far.
        by: What is compared: the layers of a group moved one at a time, `alone`, or all at once, `together`.
        first: The group whose loss rises most.
        second: The one after it; None where there is no other.
        margin: Rise of the first minus that of the second; None where there is no second.
        alone: By group, the mean of the rises of its layers; empty where they were not all measured.
        together: By group, its rise.
        layer: The single layer whose loss rises most, and its rise; None where no single layers were moved.
    """

    inputs: str
    kind: Kind
    rho: float
    by: Literal["alone", "together"]
    first: str
    second: str | None
    margin: Interval | None
    alone: Mapping[str, Interval]
    together: Mapping[str, Interval]
    layer: tuple[str, Interval] | None

    @property
    def told_apart(self) -> bool:
        """Whether there is a second, and the interval of the margin leaves out 0."""
        return self.margin is not None and self.margin.low > 0

    def sentence(self) -> str:
        """What was found, in words."""
        way = "up the gradient" if self.kind == "adversarial" else "at random"
        rises = self.alone if self.by == "alone" else self.together
        how = "one layer at a time, the loss rises most in" if self.by == "alone" else "the loss rises most with"
        text = f"{self.inputs} images, weights moved by {100 * self.rho:g} % of their norm {way}: {how} {self.first}, "
        others = [f"{name} {in_words(rise)}" for name, rise in rises.items() if name != self.first]
        text += ", ".join([in_words(rises[self.first]), *others])
        if self.margin is not None:
            verdict = "" if self.told_apart else ", which is not told apart from 0"
            text += f"; {self.first} minus {self.second} {in_words(self.margin)}{verdict}"
        if self.by == "alone":
            text += "; all at once: " + ", ".join(f"{name} {rise.value:+.3g}" for name, rise in self.together.items())
        if self.layer is not None and self.layer[0] not in rises:
            text += f"; of single layers most in {self.layer[0]}, {in_words(self.layer[1])}"
        return text

    def to_dict(self) -> dict[str, Any]:
        """Everything, for JSON."""
        return {
            **{key: getattr(self, key) for key in ("kind", "rho", "by", "first", "second", "told_apart")},
            "margin": None if self.margin is None else _safe(self.margin),
            "alone": {name: _safe(rise) for name, rise in self.alone.items()},
            "together": {name: _safe(rise) for name, rise in self.together.items()},
            "layer": None if self.layer is None else {"name": self.layer[0], "rise": _safe(self.layer[1])},
        }


@dataclass(frozen=True, eq=False)
class Response:
    """Loss and accuracy against the size of a perturbation, by layers, way and images.

    Attributes:
        groups: Names of weights by group, in order; a single layer is a group of one weight with that layer's name.
        whole: The model as it is, by images.
        moves: All others.
        settings: What was run, for the record.
        untraced: Why the whole network was run for every layer, or None.
    """

    groups: Mapping[str, tuple[str, ...]]
    whole: Mapping[str, Moved]
    moves: tuple[Moved, ...]
    settings: Mapping[str, Any]
    untraced: str | None = None

    @property
    def layers(self) -> tuple[str, ...]:
        """The groups that are single layers, named by them."""
        return tuple(name for name, weights in self.groups.items() if [short(w) for w in weights] == [name])

    @property
    def parts(self) -> tuple[str, ...]:
        """The other groups, but for those that contain another one, such as `whole`."""
        rest = {name: set(weights) for name, weights in self.groups.items() if name not in self.layers}
        return tuple(name for name, own in rest.items() if not any(other < own for other in rest.values()))

    def of(self, group: str, inputs: str, rho: float, kind: Kind = "adversarial") -> Moved:
        """One of the moves.

        Raises:
            KeyError: It was not made.
        """
        for one in self.moves:
            if (one.group, one.inputs, one.rho, one.kind) == (group, inputs, rho, kind):
                return one
        raise KeyError((group, inputs, rho, kind))

    def rise(self, moved: Moved) -> Interval:
        """Mean cross-entropy after the move minus that before, over the same images, with Student's 95 % interval."""
        return _mean(moved.loss - self.whole[moved.inputs].loss)

    def change(self, moved: Moved) -> Interval:
        """Accuracy after the move minus that before, with Tango's 95 % interval."""
        before, after = self.whole[moved.inputs].correct, moved.correct
        return paired_difference(int((after & ~before).sum()), int((before & ~after).sum()), len(before))

    def most(self, inputs: str) -> Most:
        """Which layers respond most: of the `parts` where there are any, else of the layers.

        At the largest rho, up the gradient where that was measured. Groups have different numbers of layers, and moved
        at once more layers raise the loss more: so layers moved one at a time are compared where all of them were
        measured. The interval of the margin is about other images, with these weights and directions; that the first
        was chosen on the same images makes it a little optimistic.

        Raises:
            KeyError: Other images than those that were measured.
        """
        kind: Kind = "adversarial" if "adversarial" in self.settings["kinds"] else "random"
        rho = max(self.settings["rhos"])
        rises = {name: self._rises(name, inputs, rho, kind) for name in self.groups}
        single = {self.groups[name][0]: rises[name] for name in self.layers}
        wanted = self.parts or self.layers or tuple(self.groups)
        alone = {
            name: torch.stack([single[weight] for weight in self.groups[name]]).mean(0)
            for name in self.parts
            if all(weight in single for weight in self.groups[name])
        }
        by: Literal["alone", "together"] = "alone" if self.parts and len(alone) == len(self.parts) else "together"
        ranked = _ranked({name: alone[name] if by == "alone" else rises[name] for name in wanted})
        (first, top), (second, next_) = [*ranked.items(), (None, None)][:2]
        best = next(iter(_ranked({name: rises[name] for name in self.layers}).items()), None)
        return Most(
            inputs,
            kind,
            rho,
            by,
            str(first),
            second,
            None if top is None or next_ is None else _mean(top - next_),
            {name: _mean(alone[name]) for name in ranked if name in alone},
            {name: _mean(rises[name]) for name in ranked},
            None if best is None else (best[0], _mean(best[1])),
        )

    def _rises(self, group: str, inputs: str, rho: float, kind: Kind) -> Tensor:
        """By how much every image's loss rises."""
        return self.of(group, inputs, rho, kind).loss - self.whole[inputs].loss

    def sentence(self, inputs: str | None = None) -> str:
        """What was found, in words, on the last of the images by default."""
        return self.most(inputs or list(self.whole)[-1]).sentence()

    def to_dict(self) -> dict[str, Any]:
        """Everything but the numbers of single images, for JSON; what is not finite is None."""

        def row(one: Moved) -> dict[str, Any]:
            of = {"group": one.group, "kind": one.kind, "rho": one.rho, "inputs": one.inputs}
            loss = finite_number(float(one.loss.mean()))
            found = {"rise": _safe(self.rise(one)), "accuracy": vars(one.accuracy), "change": vars(self.change(one))}
            return {**of, "loss": loss, **found}

        return {
            **self.settings,
            "groups": {name: list(weights) for name, weights in self.groups.items()},
            "n": len(next(iter(self.whole.values())).loss),
            "untraced": self.untraced,
            "whole": {
                name: {"loss": float(one.loss.mean()), "accuracy": vars(one.accuracy)}
                for name, one in self.whole.items()
            },
            "moves": [row(one) for one in self.moves],
            "most": {name: self.most(name).to_dict() for name in self.whole},
            "sentences": {name: self.sentence(name) for name in self.whole},
            "sentence": self.sentence(),
        }


def in_words(rise: Interval) -> str:
    """A difference of losses and its interval."""
    return f"{rise.value:+.3g} [{rise.low:+.3g}, {rise.high:+.3g}]"


def _ranked(rises: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The largest mean first."""
    return dict(sorted(rises.items(), key=lambda pair: -float(pair[1].mean())))


def _mean(values: Tensor) -> Interval:
    """The mean of paired differences with Student's 95 % interval; all numbers where there is none."""
    n, mean = len(values), float(values.mean())
    if n < 2 or not math.isfinite(mean):
        return Interval(mean, -math.inf, math.inf, n)
    found = difference(values.tolist(), [0.0] * n)
    assert found.low is not None
    assert found.high is not None
    return Interval(found.mean, found.low, found.high, n)


def _safe(found: Interval) -> dict[str, Any]:
    """An interval for JSON."""
    return {key: finite_number(value) for key, value in vars(found).items()}
