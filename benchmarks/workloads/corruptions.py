"""The 19 common corruptions on a set of CIFAR-sized images, eleven of them against one pillow image at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import torch
from torch import Tensor

from benchmarks.case import Bound, Case, Check, Ratio, Setup
from benchmarks.inputs import cifar_images, random_images
from benchmarks.references import corruptions as reference
from benchmarks.references.corruptions import Array, Legacy, Row
from gambeson.core.streams import Streams
from gambeson.data.corruptions import CORRUPTIONS, TABLES, corrupt, table_name
from gambeson.data.corruptions.draws import BLOCK, Draws

SEVERITY = 3
# Truncation makes a level of the last bit of a value that lies on a whole number: for 2 % of those of `saturate`.
NEAR, EQUAL, CHANGED = Bound("<=", 1), Bound(">=", 0.96), Bound(">=", 0.02)


class Replayed:
    """The numbers that `corrupt` draws for one image, in the same order.

    Args:
        draws: Of the image's block; the calls of all its images are kept in `calls`.
        calls: What the block's earlier images asked for.
        number: The image's place in the block.
    """

    def __init__(self, draws: Draws, calls: list[Array], number: int) -> None:
        self.draws, self.calls, self.number, self.asked = draws, calls, number, 0

    def normal(self, *shape: int) -> Array:
        return self._next(lambda: self.draws.normal(*shape))

    def uniform(self, *shape: int, low: float, high: float) -> Array:
        return self._next(lambda: self.draws.uniform(*shape, low=low, high=high))

    def pairs(self, low: int, high: int, rounds: int, side: int) -> Iterator[Array]:
        return iter(self._next(lambda: self.draws.integers(low, high, rounds, side, side, 2)).reshape(-1, 2))

    def _next(self, draw: Callable[[], Array]) -> Array:
        if self.asked == len(self.calls):
            self.calls.append(draw())
        self.asked += 1
        return self.calls[self.asked - 1][self.number]


def cases(setup: Setup) -> Iterator[Case]:
    """Images of CIFAR-10 where they lie, else random ones; on the CPU, whatever the device."""
    real = cifar_images(setup.batch_size)
    x = random_images(setup.batch_size, setup.seed) if real is None else real
    images = "random images" if real is None else "images of CIFAR-10"
    levels = (x * 255).round().to(torch.uint8)
    yield _paired(levels, f"{len(x)} {images} of 32x32, severity {SEVERITY}")
    yield _alone(levels, f"{len(x)} {images} of 32x32, severity {SEVERITY}")


def replayed(x: Tensor, name: str) -> Array:
    """The reference on images uint8 `(N, 3, S, S)` with the draws of `corrupt`, `(N, 3, S, S)`."""
    found = []
    for block, images in enumerate(x.split(BLOCK)):
        draws, calls = Draws(Streams(0).at(f"corruption/{name}/{SEVERITY}", block), len(images)), list[Array]()
        found.append(reference.corrupted(_pictures(images), name, _row(x, name), partial(Replayed, draws, calls)))
    return np.concatenate(found).transpose(0, 3, 1, 2)


def _paired(x: Tensor, what: str) -> Case:
    pictures, legacy = _pictures(x), Legacy(0)

    def loop(name: str) -> Array:
        return reference.corrupted(pictures, name, _row(x, name), lambda _: legacy)

    def guard() -> list[Check]:
        checks = []
        for name in reference.FUNCTIONS:
            ours, wanted = corrupt(x, name, SEVERITY).numpy().astype(int), replayed(x, name).astype(int)
            checks.append(Check(f"largest difference of a level, {name}", int(np.abs(ours - wanted).max()), NEAR))
            checks.append(Check(f"share of equal values, {name}", float((ours == wanted).mean()), EQUAL))
            checks.append(_changed(x, name))
        return checks

    ours = {name: partial(corrupt, x, name, SEVERITY) for name in reference.FUNCTIONS}
    loops = {f"{name}, one by one (reference)": partial(loop, name) for name in ours}
    ratios = (Ratio(f"reference / ours, {name}", other, name) for name, other in zip(ours, loops, strict=True))
    return Case(f"corruptions: {what}", {**ours, **loops}, None, guard, tuple(ratios), images=len(x))


def _alone(x: Tensor, what: str) -> Case:
    names = [name for name in CORRUPTIONS if name not in reference.FUNCTIONS]
    ours = {name: partial(corrupt, x, name, SEVERITY) for name in names}
    title = f"corruptions without a reference: {what}"
    return Case(title, ours, None, lambda: [_changed(x, name) for name in names], (), images=len(x))


def _changed(x: Tensor, name: str) -> Check:
    share = float((corrupt(x, name, SEVERITY) != x).float().mean())
    return Check(f"share of values that are changed, {name}", share, CHANGED)


def _pictures(x: Tensor) -> Array:
    return np.ascontiguousarray(x.permute(0, 2, 3, 1).numpy())


def _row(x: Tensor, name: str) -> Row:
    return TABLES[table_name(x.shape[-1])][name][SEVERITY - 1]
