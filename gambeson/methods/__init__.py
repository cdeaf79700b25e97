"""Training methods: each a documented function that returns a `Recipe`. `METHODS` lists them all."""

from __future__ import annotations

from collections.abc import Callable

from gambeson.core.errors import InputError, nearest
from gambeson.methods.classic import mart, pgd_at, score, standard, trades
from gambeson.methods.flatness import at_awp, mart_awp, trades_awp
from gambeson.methods.pixel import part, part_m, part_t
from gambeson.methods.recipe import Recipe
from gambeson.methods.single_step import (
    fgsm,
    free_at,
    grad_align,
    multi_grad,
    n_fgsm,
    n_lap,
    r_lap,
    rs_fgsm,
    v_lap,
    zero_grad,
)

__all__ = [
    "ALIASES",
    "METHODS",
    "Recipe",
    "at_awp",
    "fgsm",
    "free_at",
    "grad_align",
    "mart",
    "mart_awp",
    "method",
    "multi_grad",
    "n_fgsm",
    "n_lap",
    "part",
    "part_m",
    "part_t",
    "pgd_at",
    "r_lap",
    "rs_fgsm",
    "score",
    "standard",
    "trades",
    "trades_awp",
    "v_lap",
    "zero_grad",
]

METHODS: dict[str, Callable[..., Recipe]] = {
    "standard": standard,
    "fgsm": fgsm,
    "rs-fgsm": rs_fgsm,
    "n-fgsm": n_fgsm,
    "v-lap": v_lap,
    "r-lap": r_lap,
    "n-lap": n_lap,
    "free-at": free_at,
    "grad-align": grad_align,
    "zero-grad": zero_grad,
    "multi-grad": multi_grad,
    "pgd-at": pgd_at,
    "trades": trades,
    "mart": mart,
    "score": score,
    "at-awp": at_awp,
    "trades-awp": trades_awp,
    "mart-awp": mart_awp,
    "part": part,
    "part-t": part_t,
    "part-m": part_m,
}
"""Every training method by the name that the command line uses."""

ALIASES = {"v-fgsm": "fgsm", "r-fgsm": "rs-fgsm", "madry": "pgd-at"}
"""Other names in use for the same methods."""


def method(name: str) -> tuple[str, Callable[..., Recipe]]:
    """The table's name and the function of a method; underscores and aliases are understood.

    Raises:
        InputError: Unknown name; the hint names the nearest ones.

    Examples:
        >>> method("v_fgsm")[0]
        'fgsm'
    """
    key = name.lower().replace("_", "-")
    key = ALIASES.get(key, key)
    if key not in METHODS:
        raise InputError(f"unknown method {name!r}", hint=nearest(key, [*METHODS, *ALIASES]))
    return key, METHODS[key]
