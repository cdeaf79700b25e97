"""Intervals by resampling for runs of several seeds: over the seeds, and over seeds and examples."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import numpy as np

from gambeson.core.errors import InputError, require_known
from gambeson.core.streams import Streams
from gambeson.evaluation.statistics import Interval

Method = Literal["bca", "percentile"]
"""How the ends are read off the resampled statistics; BCa corrects for bias and skewness."""


def bootstrap(
    values: Sequence[float],
    statistic: Callable[..., Any] = np.mean,
    *,
    n_resamples: int = 9_999,
    seed: int = 0,
    method: Method = "bca",
) -> Interval:
    """A statistic of a few numbers, such as the accuracies of several seeds, with its bootstrap 95 % interval.

    The numbers are drawn with replacement, as many as there are, and the statistic is taken of each draw. Of few
    numbers the interval is too narrow: for the mean of 3, 5 or 10 normal numbers the percentile interval holds the true
    mean in 74, 83 and 90 % of all experiments (3,000 simulated ones each), not in 95.

    Args:
        values: The numbers, at least two.
        statistic: Maps an array to a number; with an `axis` argument, as numpy's functions have, it is called once.
        n_resamples: Number of draws.
        seed: Seed of the draws.
        method: `"bca"` or `"percentile"`.

    Returns:
        The statistic of the numbers as they are, and the interval; without width if all numbers are equal.

    Raises:
        InputError: Fewer than two numbers or no draws, numbers that are not finite, or a statistic for which BCa is not
            defined.

    Examples:
        >>> bootstrap([0.51, 0.53, 0.49, 0.52, 0.50], method="percentile").value
        0.51

    References:
        Efron, "Better bootstrap confidence intervals", Journal of the American Statistical Association 1987; computed
        by `scipy.stats.bootstrap`.
    """
    array = np.asarray(values, dtype=np.float64)
    require_known("method", method, get_args(Method))
    if array.ndim != 1 or array.size < 2:
        raise InputError(f"an interval over seeds needs at least two numbers, got an array of shape {array.shape}")
    _check(array, n_resamples)
    value = float(statistic(array))
    if np.ptp(array) == 0:
        return Interval(value, value, value, array.size)
    from scipy.stats import bootstrap as scipy_bootstrap

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what is not defined is said below
        found = scipy_bootstrap(
            (array,),
            statistic,
            n_resamples=n_resamples,
            batch=max(1, 10_000_000 // array.size),
            method={"bca": "BCa", "percentile": "percentile"}[method],
            random_state=np.random.default_rng(Streams(seed).number("bootstrap")),
        ).confidence_interval
    low, high = float(found.low), float(found.high)
    if not np.isfinite([low, high]).all():
        raise InputError(
            f"the {method} interval of this statistic is not defined for {array.tolist()}", hint='method="percentile"'
        )
    return Interval(value, low, high, array.size)


def bootstrap_runs(outcomes: Any, *, n_resamples: int = 9_999, seed: int = 0) -> Interval:
    """The mean accuracy of several seeds on the same examples, with a 95 % interval over both seeds and examples.

    Seeds and examples are drawn with replacement, independently of each other, and the draw is the mean over the cells
    where they cross: an example that is hard for one seed is mostly hard for the others, so that examples must not be
    drawn anew for each seed. The interval says how the mean would vary with other seeds *and* another test set;
    `bootstrap` of the accuracies leaves the test set as it is.

    Args:
        outcomes: Whether each example was right, or a number for each, by seed: shape `(S, N)`, tensor or array.
        n_resamples: Number of draws.
        seed: Seed of the draws.

    Returns:
        The mean and its percentile interval, rather too wide than too narrow; `n` is the number of examples.

    Raises:
        InputError: Fewer than two seeds, no examples, no draws, or numbers that are not finite.

    Examples:
        >>> bootstrap_runs([[True, True, False, True], [True, False, False, True]]).value
        0.625

    References:
        Owen, "The pigeonhole bootstrap", Annals of Applied Statistics 2007, https://arxiv.org/abs/0712.1111
    """
    array = np.asarray(outcomes, dtype=np.float64)
    if array.ndim != 2 or array.shape[0] < 2 or array.shape[1] < 1:
        raise InputError(
            f"outcomes are needed for at least two seeds and one example, (S, N), got an array of shape {array.shape}"
        )
    _check(array, n_resamples)
    seeds, n = array.shape
    rng = np.random.default_rng(Streams(seed).number("bootstrap"))
    # Examples with the same outcomes at all seeds are counted together: few columns, however many examples.
    columns, counts = np.unique(array, axis=1, return_counts=True)
    means = np.empty(n_resamples)
    size = max(1, 10_000_000 // columns.shape[1])
    for start in range(0, n_resamples, size):
        count = min(size, n_resamples - start)
        by_seed = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=count) @ columns
        by_example = rng.multinomial(n, counts / n, size=count)
        means[start : start + count] = (by_seed * by_example).sum(1) / (seeds * n)
    low, high = np.quantile(means, (0.025, 0.975))
    return Interval(float(array.mean()), float(low), float(high), n)


def _check(array: np.ndarray, n_resamples: int) -> None:
    if n_resamples < 1:
        raise InputError(f"a bootstrap needs at least one draw, got n_resamples={n_resamples}")
    if not np.isfinite(array).all():
        raise InputError("a bootstrap needs finite numbers, got NaN or infinite ones")
