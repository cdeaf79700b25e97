"""Bootstrap intervals against scipy, against sums written out, and how often they hold the truth."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from scipy.stats import bootstrap as scipy_bootstrap

from gambeson.core.errors import InputError
from gambeson.core.streams import Streams
from gambeson.evaluation import Interval, bootstrap, bootstrap_runs

SEEDS = (0.512, 0.497, 0.530, 0.508, 0.521)


@pytest.mark.parametrize("method", ["bca", "percentile"])
def test_it_is_the_interval_of_scipy(method: str) -> None:
    rng = np.random.default_rng(Streams(3).number("bootstrap"))
    wanted = scipy_bootstrap(
        (np.asarray(SEEDS),), np.mean, n_resamples=500, method={"bca": "BCa"}.get(method, method), random_state=rng
    ).confidence_interval
    found = bootstrap(SEEDS, n_resamples=500, seed=3, method=method)
    assert found == Interval(pytest.approx(np.mean(SEEDS)), wanted.low, wanted.high, 5)
    assert found.low < found.value < found.high


def test_the_percentiles_are_those_of_all_draws() -> None:
    """Of 4 numbers there are 256 draws; many resamples come to the quantiles of these."""
    values = (1.0, 2.0, 4.0, 8.0)
    means = [np.mean(draw) for draw in itertools.product(values, repeat=4)]
    found = bootstrap(values, n_resamples=40_000, method="percentile")
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(means, (0.025, 0.975))), abs=0.26)
    assert found.value == 3.75


def test_a_statistic_of_the_users_choice() -> None:
    def spread(values: np.ndarray) -> float:
        return float(max(values) - min(values))

    found = bootstrap(SEEDS, spread, n_resamples=300, method="percentile")
    assert found.value == pytest.approx(0.033)
    assert 0 <= found.low < found.high <= 0.033 + 1e-12


def test_draws_are_addressed_by_the_seed() -> None:
    assert bootstrap(SEEDS, n_resamples=99) == bootstrap(SEEDS, n_resamples=99)
    assert bootstrap(SEEDS, n_resamples=99) != bootstrap(SEEDS, n_resamples=99, seed=1)
    outcomes = np.random.default_rng(0).random((3, 40)) < 0.5
    assert bootstrap_runs(outcomes, n_resamples=99) == bootstrap_runs(outcomes, n_resamples=99)
    assert bootstrap_runs(outcomes, n_resamples=99) != bootstrap_runs(outcomes, n_resamples=99, seed=1)


def test_equal_numbers_have_an_interval_without_width() -> None:
    assert bootstrap([0.5, 0.5, 0.5]) == Interval(0.5, 0.5, 0.5, 3)


def test_what_bca_is_not_defined_for_is_said() -> None:
    values = [0.0, 0.0, 0.0, 0.0, 0.0, 1.0]
    with pytest.raises(InputError, match="the bca interval of this statistic is not defined") as error:
        bootstrap(values, np.median, n_resamples=99)
    assert error.value.hint == 'method="percentile"'
    assert bootstrap(values, np.median, n_resamples=99, method="percentile").value == 0


def test_the_interval_of_few_seeds_is_as_narrow_as_the_docstring_says() -> None:
    rng = np.random.default_rng(0)
    held = 0
    for trial in range(300):
        found = bootstrap(rng.standard_normal(5), n_resamples=400, seed=trial, method="percentile")
        held += found.low <= 0 <= found.high
    assert held / 300 == pytest.approx(0.83, abs=0.06)


@pytest.mark.parametrize(
    ("values", "settings", "message"),
    [
        ([0.5], {}, r"at least two numbers, got an array of shape \(1,\)"),
        ([[0.5, 0.6]], {}, r"at least two numbers, got an array of shape \(1, 2\)"),
        ([0.5, float("nan")], {}, "finite numbers"),
        ([0.5, 0.6], {"n_resamples": 0}, "at least one draw, got n_resamples=0"),
        ([0.5, 0.6], {"method": "basic"}, "unknown method 'basic'"),
    ],
)
def test_what_cannot_be_drawn_is_refused(values: list, settings: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        bootstrap(values, **settings)


# seeds and examples


def test_draws_of_seeds_and_examples_cross() -> None:
    """Two seeds and three examples: all 4 * 27 draws, written out."""
    outcomes = np.array([[1.0, 0.0, 0.0], [1.0, 1.0, 0.0]])
    means = [
        np.mean([[outcomes[s, e] for e in examples] for s in seeds])
        for seeds in itertools.product(range(2), repeat=2)
        for examples in itertools.product(range(3), repeat=3)
    ]
    found = bootstrap_runs(outcomes, n_resamples=20_000)
    assert (found.value, found.n) == (0.5, 3)
    assert (found.low, found.high) == tuple(np.quantile(means * 1000, (0.025, 0.975)))
    assert (found.low, found.high) == (0, 1)


def test_equal_columns_are_counted_together_without_a_difference() -> None:
    """The spread of draws is that of drawing seeds and examples one by one."""
    rng = np.random.default_rng(0)
    outcomes = rng.random((3, 60)) < np.linspace(0.1, 0.9, 60)
    draws = [outcomes[rng.integers(0, 3, 3)][:, rng.integers(0, 60, 60)].mean() for _ in range(4000)]
    found = bootstrap_runs(torch.from_numpy(outcomes), n_resamples=4000)
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(draws, (0.025, 0.975))), abs=0.012)


def test_seeds_that_share_their_hard_examples_leave_the_test_set_uncertain() -> None:
    """Five equal seeds are no more than one: the interval is that of the examples, however many seeds there are."""
    one = np.arange(400) % 2 == 0
    found = bootstrap_runs(np.stack([one] * 5))
    assert found.high - found.low == pytest.approx(2 * 1.96 * 0.5 / 20, abs=0.01)
    assert bootstrap([row.mean() for row in np.stack([one] * 5)]).low == 0.5


def test_the_interval_holds_the_mean_of_other_seeds_and_examples() -> None:
    """A model's skill and an example's ease are normal; the truth is the mean over all of both."""
    rng, held = np.random.default_rng(0), 0
    for trial in range(200):
        values = 0.3 * rng.standard_normal((8, 1)) + rng.standard_normal((1, 100)) + rng.standard_normal((8, 100))
        found = bootstrap_runs(values, n_resamples=300, seed=trial)
        held += found.low <= 0 <= found.high
    assert 0.88 < held / 200 < 0.99


@pytest.mark.parametrize(
    ("outcomes", "settings", "message"),
    [
        ([[True, False]], {}, r"at least two seeds and one example, \(S, N\), got an array of shape \(1, 2\)"),
        ([True, False], {}, r"got an array of shape \(2,\)"),
        (np.zeros((2, 0)), {}, r"got an array of shape \(2, 0\)"),
        ([[1.0, float("inf")], [0.0, 0.0]], {}, "finite numbers"),
        ([[1.0, 0.0], [0.0, 0.0]], {"n_resamples": 0}, "at least one draw"),
    ],
)
def test_runs_that_cannot_be_drawn_are_refused(outcomes: object, settings: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        bootstrap_runs(outcomes, **settings)
