import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from gambeson.core.errors import InputError
from gambeson.evaluation import Interval, mcnemar, wilson

counts = st.integers(1, 5000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))


@given(counts, st.sampled_from([0.9, 0.95, 0.99]))
def test_wilson_agrees_with_scipy(count: tuple[int, int], level: float) -> None:
    correct, n = count
    z = {0.9: 1.6448536269514722, 0.95: 1.959963984540054, 0.99: 2.5758293035489004}[level]
    found = wilson(correct, n, z)
    expected = binomtest(correct, n).proportion_ci(level, method="wilson")
    assert found.low == pytest.approx(expected.low, abs=1e-12)
    assert found.high == pytest.approx(expected.high, abs=1e-12)
    assert 0 <= found.low <= found.value <= found.high <= 1


@pytest.mark.parametrize(
    ("correct", "n", "low", "high"),
    [(0, 10, 0.0, 0.27753279), (10, 10, 0.72246721, 1.0), (50, 100, 0.40383153, 0.59616847), (1, 1, 0.20654931, 1.0)],
)
def test_wilson_by_published_values(correct: int, n: int, low: float, high: float) -> None:
    found = wilson(correct, n)
    assert found == Interval(correct / n, pytest.approx(low, abs=1e-8), pytest.approx(high, abs=1e-8), n)


def test_the_ends_are_exact_at_none_and_at_all() -> None:
    assert wilson(0, 7).low == 0
    assert wilson(7, 7).high == 1


@pytest.mark.parametrize(("correct", "n"), [(0, 0), (-1, 10), (11, 10)])
def test_impossible_counts_are_refused(correct: int, n: int) -> None:
    with pytest.raises(InputError, match=f"got {correct} of {n}"):
        wilson(correct, n)


def test_an_interval_prints_as_percent() -> None:
    assert str(wilson(50, 100)) == "50.0 % [40.4, 59.6]"


@given(st.integers(0, 300), st.integers(0, 300))
def test_mcnemar_is_the_binomial_test(only_a: int, only_b: int) -> None:
    expected = binomtest(only_a, only_a + only_b).pvalue if only_a + only_b else 1.0
    assert mcnemar(only_a, only_b) == pytest.approx(expected, rel=1e-9)
    assert mcnemar(only_a, only_b) == mcnemar(only_b, only_a)


def test_mcnemar_for_many_examples() -> None:
    assert mcnemar(5000, 5200) == pytest.approx(binomtest(5000, 10200).pvalue, rel=1e-8)
    assert mcnemar(0, 0) == mcnemar(8, 8) == 1.0
    assert math.isclose(mcnemar(0, 5), 2 / 2**5)
