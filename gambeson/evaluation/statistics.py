"""Intervals for accuracies, and the paired comparison of models on the same examples."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from gambeson.core.errors import InputError

Z95 = 1.959963984540054
"""The 97.5 % quantile of the standard normal distribution."""


@dataclass(frozen=True)
class Interval:
    """An accuracy, or another number, with its interval.

    Attributes:
        value: Share of correct examples; a difference of two such shares; a statistic of several numbers.
        low: Lower end.
        high: Upper end.
        n: Number of examples, or of the numbers.

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


def paired_difference(only_a: int, only_b: int, n: int, z: float = Z95) -> Interval:
    """The difference of two models' accuracies on the same examples, with Tango's score interval, 95 % by default.

    The interval holds every difference d that the score test does not reject, `|T(d)| <= z`, with

        T(d) = (only_a - only_b - n d) / sqrt(n (2 q + d (1 - d)))
        q    = (sqrt(w^2 + 8 n only_b d (1 - d)) - w) / (4 n),   w = (2 n - only_a + only_b) d - only_a - only_b

    where q is the likeliest probability that only b is right if the accuracies differ by d. At d = 0 it is McNemar's
    asymptotic test; `mcnemar` is the exact one, which rejects less often, so that now and then an interval leaves out 0
    although the exact test does not reject.

    Args:
        only_a: Examples that only the first model gets right.
        only_b: Examples that only the second gets right.
        n: Examples, all of them.
        z: Quantile of the standard normal distribution.

    Returns:
        Accuracy of the first minus that of the second, in [-1, 1].

    Raises:
        InputError: No examples, or more differing ones than examples.

    Examples:
        >>> print(paired_difference(12, 2, 50))
        20.0 % [6.1, 34.5]

    References:
        Tango, "Equivalence test and confidence interval for the difference in proportions for the paired-sample
        design", Statistics in Medicine 1998. Compared with others, and recommended, in Fagerland, Lydersen, Laake,
        "Recommended tests and confidence intervals for paired binomial proportions", Statistics in Medicine 2014.
    """
    if n < 1 or min(only_a, only_b) < 0 or only_a + only_b > n:
        raise InputError(
            "a paired difference needs only_a >= 0, only_b >= 0 and only_a + only_b <= n with n >= 1, got"
            f" only_a={only_a}, only_b={only_b}, n={n}"
        )
    value = (only_a - only_b) / n

    def score(d: float) -> float:
        w = (2 * n - only_a + only_b) * d - only_a - only_b
        q = (math.sqrt(w * w + 8 * n * only_b * d * (1 - d)) - w) / (4 * n) if d > -1 else 1.0
        variance = n * (2 * q + d * (1 - d))
        # At -1 and 1 nothing varies: every other difference is excluded.
        return (only_a - only_b - n * d) / math.sqrt(variance) if variance > 0 else math.copysign(math.inf, value - d)

    def end(inside: float, outside: float) -> float:
        for _ in range(100):  # the score falls as d grows
            middle = (inside + outside) / 2
            inside, outside = (middle, outside) if abs(score(middle)) <= z else (inside, middle)
        return inside

    # Where all examples differ the same way the end is exact.
    return Interval(value, -1.0 if value == -1 else end(value, -1.0), 1.0 if value == 1 else end(value, 1.0), n)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values: rejecting those below 0.05 errs at all with a probability of at most 5 %.

    Of m p-values in ascending order the i-th, from 0, becomes `max_{j <= i} min(1, (m - j) p_j)`. No assumption about
    how the tests depend on each other. The p-values are a family: those of all tests that are read together, each once.
    A test that is given twice makes m larger, and the others are rejected less often than the level allows.

    Args:
        p_values: One per different test, in [0, 1].

    Returns:
        The adjusted ones, in the same order.

    Raises:
        InputError: A number outside [0, 1].

    Examples:
        >>> holm([0.01, 0.04, 0.03])
        [0.03, 0.06, 0.06]

    References:
        Holm, "A simple sequentially rejective multiple test procedure", Scandinavian Journal of Statistics 1979.
    """
    wrong = [p for p in p_values if not 0 <= p <= 1]
    if wrong:
        raise InputError(f"p-values lie in [0, 1], got {wrong[0]:g}")
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, position in enumerate(sorted(range(len(p_values)), key=lambda k: p_values[k])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[position]))
        adjusted[position] = largest
    return adjusted
