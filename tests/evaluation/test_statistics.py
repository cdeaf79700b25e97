import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import brentq, minimize_scalar
from scipy.stats import binom, binomtest

from gambeson.core.errors import InputError
from gambeson.evaluation import Interval, holm, mcnemar, paired_difference, wilson

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


# the paired difference


@pytest.mark.parametrize(
    ("only_a", "only_b", "n", "z", "low", "high", "digits"),
    [
        (12, 2, 50, 1.959964, 0.0611, 0.3447, 4),  # Newcombe's spreadsheet to Tango (1998)
        (1, 7, 21, 1.959964, -0.517, -0.026, 3),  # Fagerland, Lydersen, Laake (2014), airway hyper-responsiveness
        (28, 25, 618, 1.644854, -0.0148, 0.0247, 4),  # R, PropCIs::scoreci.mp(25, 28, 618, 0.9)
    ],
)
def test_the_interval_of_a_difference_by_published_values(
    only_a: int, only_b: int, n: int, z: float, low: float, high: float, digits: int
) -> None:
    found = paired_difference(only_a, only_b, n, z)
    assert found.value == (only_a - only_b) / n
    assert (round(found.low, digits), round(found.high, digits)) == (low, high)
    assert found.n == n


def by_definition(only_a: int, only_b: int, n: int, z: float) -> tuple[float, float]:
    """The differences that the score test does not reject; what is likeliest under each is searched, not solved."""

    def score(d: float) -> float:
        def loss(q: float) -> float:  # q: only b is right, q + d: only a
            cells = ((only_a, q + d), (only_b, q), (n - only_a - only_b, 1 - d - 2 * q))
            return -sum(count * math.log(max(p, 1e-300)) for count, p in cells if count)

        found = minimize_scalar(loss, bounds=(max(0.0, -d), (1 - d) / 2), method="bounded", options={"xatol": 1e-13})
        variance = (found.x + (found.x + d)) - d * d  # of the difference of one pair
        return (only_a - only_b - n * d) / math.sqrt(n * variance)

    value = (only_a - only_b) / n
    return brentq(lambda d: score(d) - z, -1 + 1e-9, value), brentq(lambda d: score(d) + z, value, 1 - 1e-9)


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 200), st.sampled_from([1.644854, 1.959964, 2.575829]))
def test_the_interval_of_a_difference_is_the_inverted_score_test(only_a: int, only_b: int, more: int, z: float) -> None:
    n = only_a + only_b + more
    found = paired_difference(only_a, only_b, n, z)
    assert (found.low, found.high) == pytest.approx(by_definition(only_a, only_b, n, z), abs=2e-6)


@given(st.integers(0, 500), st.integers(0, 500), st.integers(0, 10_000))
def test_a_difference_stays_in_its_range_and_is_mirrored(only_a: int, only_b: int, more: int) -> None:
    n = max(1, only_a + only_b + more)
    found, mirrored = paired_difference(only_a, only_b, n), paired_difference(only_b, only_a, n)
    assert -1 <= found.low <= found.value <= found.high <= 1
    assert found.low < found.high
    assert (mirrored.low, mirrored.high) == pytest.approx((-found.high, -found.low), abs=1e-12)
    # McNemar's asymptotic test is the same test at 0.
    statistic = (only_a - only_b) ** 2 / (only_a + only_b) if only_a + only_b else 0.0
    if abs(statistic - 1.959963984540054**2) > 1e-6:
        assert (found.low <= 0 <= found.high) == (statistic < 1.959963984540054**2)


def test_the_ends_of_a_difference_where_the_examples_agree() -> None:
    z2 = 1.959963984540054**2
    found = paired_difference(0, 0, 30)  # the score equation then is n d^2 = z^2 d (1 - d)
    assert (found.low, found.high) == pytest.approx((-z2 / (30 + z2), z2 / (30 + z2)), abs=1e-12)
    assert paired_difference(5, 0, 5).high == 1
    assert paired_difference(0, 5, 5).low == -1
    assert paired_difference(5, 0, 5).low > 0


def test_the_interval_of_a_difference_covers_as_often_as_it_says() -> None:
    """Summed over everything that can happen to 40 examples, of which 20 and 10 % differ."""
    n, p_a, p_b = 40, 0.2, 0.1
    covered = total = 0.0
    for only_a in range(n + 1):
        for only_b in range(n + 1 - only_a):
            chance = binom.pmf(only_a, n, p_a) * binom.pmf(only_b, n - only_a, p_b / (1 - p_a))
            if chance > 1e-7:
                found = paired_difference(only_a, only_b, n)
                covered += chance * (found.low <= p_a - p_b <= found.high)
                total += chance
    assert total > 0.999
    assert covered / total == pytest.approx(0.95, abs=0.01)


@pytest.mark.parametrize(("only_a", "only_b", "n"), [(0, 0, 0), (-1, 0, 5), (0, -1, 5), (3, 3, 5)])
def test_impossible_differences_are_refused(only_a: int, only_b: int, n: int) -> None:
    with pytest.raises(InputError, match=f"got only_a={only_a}, only_b={only_b}, n={n}"):
        paired_difference(only_a, only_b, n)


# Holm


def test_holm_by_hand() -> None:
    """0.01 * 4, then 0.02 * 3, then 0.022 * 2 which is below the one before it, then 0.9."""
    assert holm([0.022, 0.01, 0.9, 0.02]) == pytest.approx([0.06, 0.04, 0.9, 0.06])
    assert holm([0.4]) == [0.4]
    assert holm([]) == []
    assert holm([0.6, 0.7]) == [1.0, 1.0]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12), st.floats(0.001, 0.2))
def test_holm_rejects_what_the_sequential_procedure_rejects(p_values: list[float], alpha: float) -> None:
    adjusted, m = holm(p_values), len(p_values)
    rejected = 0
    for step, p in enumerate(sorted(p_values)):
        if p > alpha / (m - step):
            break
        rejected += 1
    close = any(abs(value - alpha) < 1e-12 for value in adjusted)
    assert close or sum(value <= alpha for value in adjusted) == rejected
    ranked = [adjusted[k] for k in sorted(range(m), key=lambda k: p_values[k])]
    assert all(one <= other for one, other in pairwise(ranked))
    assert all(min(1, p) <= value <= 1 for p, value in zip(p_values, adjusted, strict=True))


def test_holm_errs_in_at_most_five_percent_of_all_families() -> None:
    rng = np.random.default_rng(0)
    families = [holm(list(rng.random(5))) for _ in range(4000)]
    share = np.mean([min(family) < 0.05 for family in families])
    assert 0.04 < share < 0.06


@pytest.mark.parametrize("p", [-0.1, 1.5, math.nan])
def test_what_is_no_p_value_is_refused(p: float) -> None:
    with pytest.raises(InputError, match=r"p-values lie in \[0, 1\]"):
        holm([0.5, p])
