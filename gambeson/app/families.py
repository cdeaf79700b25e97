"""Which lines of a comparison are one and the same test: what Holm's correction counts."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np

from gambeson.engine.checkpoint import weights_digest
from gambeson.engine.run import Run

Side = tuple[Run, Mapping[str, Any]]
"""A run and one of its outcomes: `y`, `correct`, and `of` with checkpoint, attack, norm, eps and data."""


def distinct(pairs: Sequence[tuple[Side, Side]]) -> list[int]:
    """The family of tests among pairs: for each pair the place of the first one that is the same test.

    A family is all tests of a table, each once. Two lines are one test where they compare the same two weights, under
    the same attack at the same budget, with the same outcomes on the same images: whatever the checkpoints are called,
    and whichever side comes first. So it is with `best` and `final` where the last step was the best one, and with
    `main`, which names checkpoints that may stand elsewhere under their own names. Weights that were attacked twice
    with other outcomes are two tests, since each of them can err by itself; so are different weights that happen to
    answer alike.

    Args:
        pairs: What the lines compare. Weights are read only where all else agrees.

    Raises:
        CheckpointError: Weights cannot be read.
    """
    digest = cache(weights_digest)
    alike: dict[Hashable, list[int]] = {}
    for place, pair in enumerate(pairs):
        alike.setdefault(frozenset(_measured(row) for _, row in pair), []).append(place)
    found = list(range(len(pairs)))
    for places in alike.values():
        first: dict[Hashable, int] = {}
        for place in places if len(places) > 1 else ():
            sides = ((_measured(row), digest(run.checkpoint(row["of"]["checkpoint"]))) for run, row in pairs[place])
            found[place] = first.setdefault(frozenset(sides), place)
    return found


def _measured(row: Mapping[str, Any]) -> Hashable:
    """What was measured and what came out, without the weights; a clean accuracy has no budget."""
    of = row["of"]
    budget = None if of["attack"] == "clean" else (of["norm"], of["eps"])
    return of["attack"], budget, of["data"], _digest(row["y"]), _digest(row["correct"])


def _digest(values: np.ndarray[Any, Any]) -> bytes:
    return hashlib.sha256(np.ascontiguousarray(values).tobytes()).digest()
