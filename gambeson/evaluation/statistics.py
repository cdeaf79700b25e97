"""Intervals for accuracies and the paired comparison of two models on the same examples."""

from __future__ import annotations

import math
from dataclasses import dataclass

from gambeson.core.errors import InputError

Z95 = 1.959963984540054
"""The 97.5 % quantile of the standard normal distribution."""


@dataclass(frozen=True)
class Interval:
    """An accuracy with its interval.

    Attributes:
        value: Share of correct examples.
        low: Lower end.
        high: Upper end.
        n: Number of examples.

    Examples:
        >>> print(wilson(50, 100))
        50.0 % [40.4, 59.6]
    """

    value: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{100 * self.value:.1f} % [{100 * self.low:.1f}, {100 * self.high:.1f}]"


def wilson(correct: int, n: int, z: float = Z95) -> Interval:
    """The Wilson score interval of `correct` successes in `n` trials, 95 % by default.

    `(p + z^2/2n -+ z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n)`.

    Raises:
        InputError: No trials, or more successes than trials.

    References:
        Wilson, "Probable inference, the law of succession, and statistical inference", JASA 1927.
    """
    if n < 1 or not 0 <= correct <= n:
        raise InputError(f"an accuracy needs 0 <= correct <= n and n >= 1, got {correct} of {n}")
    p = correct / n
    centre = p + z * z / (2 * n)
    spread = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    # At 0 and at n the end is exact; rounding would leave 1e-18 beside it.
    low = 0.0 if correct == 0 else (centre - spread) / scale
    high = 1.0 if correct == n else (centre + spread) / scale
    return Interval(p, low, high, n)


def mcnemar(only_a: int, only_b: int) -> float:
    """Two-sided exact McNemar p-value: do two models differ on the same examples?

    Args:
        only_a: Examples that only the first model gets right.
        only_b: Examples that only the second gets right.

    Returns:
        `min(1, 2 P(X <= min(only_a, only_b)))`, X binomial with `only_a + only_b` trials and probability 1/2.

    Examples:
        >>> round(mcnemar(10, 2), 4)
        0.0386

    References:
        McNemar, Psychometrika 1947; exact form: Edwards 1948.
    """
    n, k = only_a + only_b, min(only_a, only_b)
    if n == 0:
        return 1.0
    log_terms = [
        math.lgamma(n + 1) - math.lgamma(i + 1) - math.lgamma(n - i + 1) - n * math.log(2) for i in range(k + 1)
    ]
    return min(1.0, 2 * math.fsum(math.exp(term) for term in log_terms))
