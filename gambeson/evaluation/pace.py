"""How far an attack of an ensemble is, for whoever waits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Pace:
    """How far an attack of an ensemble is, in this process.

    Attributes:
        ensemble: What the evaluation calls the ensemble.
        attack: The attack that runs.
        standing: Examples that it was given.
        through: How many of them it is through with.
        fell: How many of these it fooled.
        steps: Steps that it has made, of a batch each.
        most: Steps that it makes if it fools none of them; 0 before the first.
    """

    ensemble: str
    attack: str
    standing: int
    through: int = 0
    fell: int = 0
    steps: int = 0
    most: int = 0


class PaceKeeper:
    """Makes of what `autoattack` tells what `evaluate` tells: images done over all attacks, and the pace of each.

    Args:
        ensemble: What the evaluation calls the ensemble.
        last: Its last attack, after which an image is done; before it is, once it falls.
        progress: Called with the number of images done.
        listen: Called with the pace.
    """

    def __init__(
        self,
        ensemble: str,
        last: str,
        progress: Callable[[int], None] | None = None,
        listen: Callable[[Pace], None] | None = None,
    ) -> None:
        self._ensemble, self._last, self._progress, self._listen = ensemble, last, progress, listen

    def begin(self, attack: str, standing: int) -> None:
        """An attack begins on the examples that stand."""
        self._pace = Pace(self._ensemble, attack, standing)
        self._tell()

    def advance(self, attack: str, through: int, fell: int) -> None:
        """It is through with some more, of which some fell."""
        if self._progress:
            self._progress(through if attack == self._last else fell)
        self._pace = replace(self._pace, through=self._pace.through + through, fell=self._pace.fell + fell)
        self._tell()

    def tick(self, most: int) -> None:
        """It has made a step, of at most so many."""
        self._pace = replace(self._pace, steps=self._pace.steps + 1, most=most)
        self._tell()

    def _tell(self) -> None:
        if self._listen:
            self._listen(self._pace)
