"""Spread and paired differences against numbers worked out by hand."""

from __future__ import annotations

import pytest

from gambeson.core.errors import InputError
from gambeson.diagnosis.spread import difference, spread


def test_a_spread_by_hand() -> None:
    found = spread([2.0, 4.0, 9.0])  # mean 5, squares 9 + 1 + 16 = 26, over n - 1: 13

    assert (found.n, found.mean, found.min, found.max) == (3, 5.0, 2.0, 9.0)
    assert found.std == pytest.approx(13**0.5)


def test_one_number_has_no_standard_deviation() -> None:
    assert spread([0.25]).std is None
    with pytest.raises(InputError, match="at least one number"):
        spread([])


def test_a_difference_by_hand() -> None:
    found = difference([5.0, 3.0, 9.0], [4.0, 1.0, 6.0])  # 1, 2, 3: mean 2, s = 1; t of 2 degrees is 4.302653
    half = 4.302653 / 3**0.5

    assert found.values == (1.0, 2.0, 3.0)
    assert (found.mean, found.low, found.high) == pytest.approx((2.0, 2 - half, 2 + half))
    assert not found.excludes_zero  # 2 - 2.48 < 0


def test_the_sign_is_of_the_first_minus_the_second() -> None:
    up, down = difference([1.0, 1.1, 1.2], [0.0, 0.1, 0.21]), difference([0.0, 0.1, 0.21], [1.0, 1.1, 1.2])

    assert up.mean > 0 > down.mean
    assert up.excludes_zero
    assert down.excludes_zero


def test_pairs_are_kept_together() -> None:
    """The seeds differ much, the setups by exactly 0.01: paired, the interval has no width."""
    found = difference([0.11, 0.51, 0.91], [0.10, 0.50, 0.90])

    assert found.low == pytest.approx(0.01)
    assert found.high == pytest.approx(0.01)
    assert found.excludes_zero


def test_one_pair_has_no_interval_and_excludes_nothing() -> None:
    found = difference([3.0], [1.0])

    assert (found.mean, found.low, found.high) == (2.0, None, None)
    assert not found.excludes_zero


@pytest.mark.parametrize(("a", "b"), [([], []), ([1.0], [1.0, 2.0])])
def test_what_is_not_paired_is_refused(a: list[float], b: list[float]) -> None:
    with pytest.raises(InputError, match="as many numbers on both sides"):
        difference(a, b)
