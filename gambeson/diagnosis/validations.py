"""The validations of a training, from its metrics, and how far the last lies below the best: robust overfitting."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from gambeson.diagnosis.collapse import read_number, read_place


@dataclass(frozen=True)
class Validation:
    """A validation, or a line of the training's own accuracy.

    Attributes:
        step: After so many steps.
        epoch: The same in epochs.
        clean: Accuracy without attack; None for a line of training on adversarial images.
        robust: Accuracy under PGD-10, in training under its own attack; None where nothing was attacked.
    """

    step: int
    epoch: float
    clean: float | None
    robust: float | None


@dataclass(frozen=True)
class RobustOverfitting:
    """The best and the last validation under PGD-10.

    Attributes:
        best: The one that the checkpoint `best` is from: the highest robust accuracy, of equals the highest clean one,
            then the first.
        last: The last one.
    """

    best: Validation
    last: Validation

    @property
    def drop(self) -> float:
        """Robust accuracy of the best minus that of the last; never negative, since the best was chosen by it."""
        assert self.best.robust is not None
        assert self.last.robust is not None
        return self.best.robust - self.last.robust

    def to_dict(self) -> dict[str, Any]:
        """Everything, for JSON."""
        return {"best": asdict(self.best), "last": asdict(self.last), "drop": self.drop}


def read_lines(rows: Sequence[Mapping[str, Any]], clean: str, robust: str) -> tuple[tuple[Validation, ...], int]:
    """The rows with one of two accuracies, and how many of them are damaged."""
    found: list[Validation] = []
    damaged = 0
    for row in rows:
        given = [key for key in (clean, robust) if key in row]
        if not given:
            continue
        place, values = read_place(row), [read_number(row, key) for key in given]
        if place is None or None in values or (found and place[0] <= found[-1].step):
            damaged += 1
            continue
        found.append(Validation(*place, read_number(row, clean), read_number(row, robust)))
    return tuple(found), damaged


def best_and_last(validations: Sequence[Validation]) -> RobustOverfitting | None:
    """The best and the last validation under attack; None where there is none."""
    attacked = [one for one in validations if one.robust is not None and one.clean is not None]
    if not attacked:
        return None
    return RobustOverfitting(max(attacked, key=lambda one: (one.robust, one.clean)), attacked[-1])
