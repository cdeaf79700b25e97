"""Mean and spread of a few numbers, and the interval of a paired difference."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gambeson.core.errors import InputError


@dataclass(frozen=True)
class Spread:
    """Numbers in short.

    Attributes:
        n: How many.
        mean: Their mean.
        std: Their standard deviation with n - 1 in the denominator; None for a single number.
        min: The smallest.
        max: The largest.
    """

    n: int
    mean: float
    std: float | None
    min: float
    max: float


@dataclass(frozen=True)
class Difference:
    """The mean of paired differences.

    Attributes:
        mean: Their mean.
        low: Lower end of the 95 % interval; None for a single pair.
        high: Upper end; None for a single pair.
        values: The differences, pair by pair.
    """

    mean: float
    low: float | None
    high: float | None
    values: tuple[float, ...]

    @property
    def excludes_zero(self) -> bool:
        """Whether zero lies outside the interval; False without one."""
        return self.low is not None and self.high is not None and not self.low <= 0 <= self.high


def spread(values: Sequence[float]) -> Spread:
    """Mean, standard deviation and range.

    Raises:
        InputError: There are no numbers.

    Examples:
        >>> spread([1.0, 2.0, 3.0])
        Spread(n=3, mean=2.0, std=1.0, min=1.0, max=3.0)
    """
    array = np.asarray(values, dtype=np.float64)
    if array.size == 0:
        raise InputError("a spread needs at least one number")
    std = float(array.std(ddof=1)) if array.size > 1 else None
    return Spread(array.size, float(array.mean()), std, float(array.min()), float(array.max()))


def student(values: Sequence[float]) -> tuple[float | None, float | None]:
    """Student's 95 % interval of a mean, `mean -+ t s / sqrt(n)`; None for both ends of a single number.

    Examples:
        >>> low, high = student([2.0, 3.0, 4.0])
        >>> round(low, 2), round(high, 2)
        (0.52, 5.48)
    """
    found = spread(values)
    if found.std is None:
        return None, None
    from scipy.stats import t

    half = float(t.ppf(0.975, found.n - 1)) * found.std / math.sqrt(found.n)
    return found.mean - half, found.mean + half


def difference(a: Sequence[float], b: Sequence[float]) -> Difference:
    """The mean of `a - b`, pair by pair, with Student's 95 % interval `mean -+ t s / sqrt(n)`.

    Args:
        a: One number per pair.
        b: As many, in the same order.

    Raises:
        InputError: No pairs, or not as many of one as of the other.

    Examples:
        >>> found = difference([3.0, 4.0, 5.0], [1.0, 1.0, 1.0])
        >>> found.mean, round(found.low, 2), round(found.high, 2)
        (3.0, 0.52, 5.48)
    """
    if len(a) != len(b) or len(a) == 0:
        raise InputError(f"a paired difference needs as many numbers on both sides, got {len(a)} and {len(b)}")
    values = tuple(float(one - other) for one, other in zip(a, b, strict=True))
    low, high = student(values)
    return Difference(spread(values).mean, low, high, values)
