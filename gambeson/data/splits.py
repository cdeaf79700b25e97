"""Images with labels, their three splits, and the stratified hold-out that makes a validation set."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from gambeson.core.errors import DataError, InputError
from gambeson.data.facts import Facts
from gambeson.data.stored import Images, StoredImages, in_memory


@dataclass(frozen=True, eq=False)
class Examples:
    """Labelled images of one split.

    Attributes:
        x: Images, uint8, shape `(N, C, H, W)`: a tensor, or stored images, which are decoded where they are indexed.
        y: Labels, int64, shape `(N,)`.
        origin: Position of every example among those that were read together, int64, shape `(N,)`: what is kept
            outside per image, such as masks, is found by it. None, at first, for `0..N-1`.
        pool: How many were read together; None, at first, for N.

    Raises:
        InputError: If a dtype or a shape is another one.

    Examples:
        >>> examples = Examples(torch.zeros(3, 1, 8, 8, dtype=torch.uint8), torch.tensor([0, 1, 2]))
        >>> len(examples), examples.head(2).y.tolist()
        (3, [0, 1])
    """

    x: Images
    y: Tensor
    origin: Tensor = None  # type: ignore[assignment]  # filled in
    pool: int = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        if self.x.dtype != torch.uint8 or self.x.ndim != 4:
            raise InputError(f"images must be uint8 (N, C, H, W), got {self.x.dtype} {tuple(self.x.shape)}")
        if self.y.dtype != torch.int64 or self.y.shape != self.x.shape[:1]:
            expected = tuple(self.x.shape[:1])
            raise InputError(f"labels must be int64 {expected}, got {self.y.dtype} {tuple(self.y.shape)}")
        if self.origin is None:
            object.__setattr__(self, "origin", torch.arange(len(self.y)))
        if self.pool is None:
            object.__setattr__(self, "pool", len(self.y))

    def __len__(self) -> int:
        return len(self.y)

    @property
    def pixels(self) -> Tensor:
        """The images as a tensor; stored ones are decoded, with a warning where they take much memory."""
        return in_memory(self.x)

    def to(self, device: torch.device | str) -> Examples:
        """The same examples on `device`."""
        return replace(self, x=self.x.to(device), y=self.y.to(device), origin=self.origin.to(device))

    def subset(self, index: Tensor | slice) -> Examples:
        """The examples at `index`: int64 positions `(n,)`, a boolean mask `(N,)`, or a slice."""
        x = self.x.subset(index) if isinstance(self.x, StoredImages) else self.x[index]
        return replace(self, x=x, y=self.y[index], origin=self.origin[index])

    def head(self, count: int | None) -> Examples:
        """The first `count` examples; all where there are fewer, or None is given."""
        return self if count is None else self.subset(slice(0, max(count, 0)))


@dataclass(frozen=True, eq=False)
class Splits:
    """What `load` returns. Training sees `train`, every selection sees `val`, and `test` is for the final number.

    Attributes:
        train: Training examples, without those held out.
        val: Validation examples; empty where `val_fraction` is 0.
        test: Test examples.
        facts: Classes, size, normalisation and customary settings.
    """

    train: Examples
    val: Examples
    test: Examples
    facts: Facts

    @property
    def sizes(self) -> dict[str, int]:
        """The number of images of every split."""
        return {"train": len(self.train), "val": len(self.val), "test": len(self.test)}


class Pool(NamedTuple):
    """What a reader returns, before the validation set is held out.

    Attributes:
        train: All training examples.
        test: Test examples.
        val: The data set's own validation examples, or None where it has none.
        facts: Facts of the data set.
    """

    train: Examples
    test: Examples
    val: Examples | None
    facts: Facts


def labelled(x: np.ndarray[Any, Any], y: np.ndarray[Any, Any], num_classes: int, source: object) -> Examples:
    """Examples from what a file held, once its labels are known to fit.

    Args:
        x: Images, uint8, shape `(N, C, H, W)`.
        y: Labels of any integer dtype, shape `(N,)`.
        num_classes: Number of classes; labels lie in `[0, num_classes)`.
        source: The file, for the message.

    Returns:
        Examples; the memory is shared where the array is contiguous and writable.

    Raises:
        DataError: If there are no images, not one label an image, or a label outside the range.

    Examples:
        >>> len(labelled(np.zeros((2, 3, 4, 4), np.uint8), np.array([0, 9]), 10, "memory"))
        2
    """
    if len(x) == 0 or y.shape != (len(x),):
        raise DataError(
            f"{source}: images with one label each are needed, got {len(x)} images and labels of shape {y.shape}",
            hint="the images and the labels must come from the same split, whole and in one order",
        )
    y = y.astype(np.int64)
    outside = np.flatnonzero((y < 0) | (y >= num_classes))
    if len(outside):
        raise DataError(
            f"{source}: label {y[outside[0]]} of image {outside[0]} is outside 0..{num_classes - 1}"
            f" ({len(outside)} such labels)",
            hint="the file is damaged or belongs to another data set; get it again",
        )
    return Examples(torch.from_numpy(np.require(x, requirements=["C", "W"])), torch.from_numpy(y))


def hold_out(
    examples: Examples,
    fraction: float,
    num_classes: int,
    seed: int,
    *,
    class_names: Sequence[str] = (),
    both: bool = True,
) -> tuple[Tensor, Tensor]:
    """Split positions into a rest and a held-out part with the classes in equal proportion.

    Every class `c` of `n_c` examples gives `fraction * n_c` of them, rounded by largest remainder, so that the total is
    `round(fraction * N)`. Drawn from a generator of its own: the global random state is neither read nor moved.

    Args:
        examples: Examples to split.
        fraction: Fraction held out, in [0, 1).
        num_classes: Number of classes that both parts must show.
        seed: Seed of the draw.
        class_names: Names by label for the message, or empty for numbers.
        both: Refuse a split that leaves either part without a class; otherwise it is the caller's to judge.

    Returns:
        Positions of the rest and of the held-out examples, int64, both ascending.

    Raises:
        InputError: If `fraction` is outside [0, 1).
        DataError: If a class would be absent from either part and `both` is set.

    Examples:
        >>> examples = Examples(torch.zeros(20, 1, 8, 8, dtype=torch.uint8), torch.arange(20) % 2)
        >>> rest, held = hold_out(examples, 0.2, num_classes=2, seed=0)
        >>> len(rest), examples.y[held].bincount().tolist()
        (16, [2, 2])
    """
    if not 0 <= fraction < 1:
        raise InputError(f"a held-out fraction must be in [0, 1), got {fraction}", hint="5 % is 0.05")
    y = examples.y.cpu()
    if fraction == 0:
        return torch.arange(len(y)), torch.arange(0)
    counts = torch.bincount(y, minlength=num_classes)
    exact = counts.double() * fraction
    take = exact.floor().long()
    largest_remainder = torch.argsort(exact - take, descending=True, stable=True)
    take[largest_remainder[: max(round(len(y) * fraction) - int(take.sum()), 0)]] += 1
    if both:
        _require_all_classes(counts, take, fraction, class_names)

    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))
    order = order[torch.argsort(y[order], stable=True)]  # class by class, shuffled inside
    first = counts.cumsum(0) - counts
    held = torch.arange(len(y)) - first[y[order]] < take[y[order]]
    return order[~held].sort().values, order[held].sort().values


def _require_all_classes(counts: Tensor, take: Tensor, fraction: float, names: Sequence[str]) -> None:
    absent = ((take == 0) | (take == counts)).nonzero().flatten().tolist()
    if not absent:
        return
    named = ", ".join(f"{names[c] if names else c} ({int(counts[c])} images)" for c in absent[:5])
    named += f" and {len(absent) - 5} more" if len(absent) > 5 else ""
    fewest = int(counts.min())
    if fewest < 2:
        advice = "every class needs at least 2 images: add some, or remove the class"
    else:
        least = math.ceil(100 / fewest) / 100
        advice = f"hold out a fraction of at least {least:g}, though not nearly all, or nothing (val_fraction=0)"
    raise DataError(
        f"holding out {fraction:.3g} of the images leaves a part without any image of class {named}",
        hint=f"{advice}; or give the data set a val split of its own",
    )
