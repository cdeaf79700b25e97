"""Grids of budgets as they are written on a command line."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

from gambeson.core.errors import InputError

MOST = 1_000
"""Budgets in a grid at most."""


def parse_budgets(text: str) -> tuple[float, ...]:
    """A grid of budgets from `0,2/255,4/255` or `0:16/255:2/255` (start, end, step); 0 is added.

    Returns:
        The budgets, ascending, each once.

    Raises:
        InputError: Not numbers or fractions, negative ones, none above 0, more than 1,000, or a step that does not lead
            from the start to the end.

    Examples:
        >>> parse_budgets("0:3/255:1/255") == (0, 1 / 255, 2 / 255, 3 / 255)
        True
        >>> parse_budgets("0.1, 0.05")
        (0.0, 0.05, 0.1)
    """
    words = [word for word in text.strip().removeprefix("[").removesuffix("]").replace(" ", "").split(",") if word]
    ends = words[0].split(":") if len(words) == 1 else []
    try:
        # Fractions, so that 3 steps of 2/255 are 6/255 to the last bit.
        numbers = [_fraction(word) for word in (ends if len(ends) == 3 else words)]
    except (ValueError, ZeroDivisionError):
        raise InputError(
            f"a grid of budgets is made of numbers or fractions, got {text!r}",
            hint="such as 0,2/255,4/255 or 0:16/255:2/255 (start, end, step)",
        ) from None
    if len(ends) == 3:
        start, end, step = numbers
        if step <= 0 or end < start or (end - start) % step != 0:
            raise InputError(
                f"the grid {text!r} does not go from {float(start):g} to {float(end):g} in steps of {float(step):g}"
            )
        count = (end - start) // step + 1
        if count > MOST:
            raise InputError(f"a grid has at most {MOST:,} budgets, got {count:,}", hint="take larger steps")
        numbers = [start + k * step for k in range(count)]
    return check_budgets([float(number) for number in numbers])


def check_budgets(grid: Sequence[float]) -> tuple[float, ...]:
    """The grid in ascending order, each budget once, with 0.

    Raises:
        InputError: A budget that is negative or not finite, or none above 0.
    """
    if not all(0 <= eps < math.inf for eps in grid) or not any(grid):
        raise InputError(
            f"a grid of budgets needs finite numbers from 0, one of them above 0, got {list(grid)}",
            hint="eight grey levels are 8/255",
        )
    return tuple(sorted({0.0, *map(float, grid)}))


def _fraction(word: str) -> Fraction:
    """A number or a ratio of two; a ValueError for anything else."""
    numerator, *denominator = word.split("/")
    (divisor,) = denominator or ["1"]
    return Fraction(numerator) / Fraction(divisor)
