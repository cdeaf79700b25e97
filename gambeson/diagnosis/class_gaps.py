"""Clean and robust accuracy by class, and two checkpoints of a training on the same images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch

from gambeson.core.errors import InputError
from gambeson.evaluation.evaluate import Report
from gambeson.evaluation.statistics import Interval, mcnemar, paired_difference, wilson


@dataclass(frozen=True)
class ClassGap:
    """The accuracies of one class.

    Attributes:
        name: Of the class.
        clean: Accuracy without attack, with its Wilson 95 % interval.
        robust: Accuracy under the attack, likewise.
        gap: Share of its images that are right without the attack and wrong under it, likewise.
    """

    name: str
    clean: Interval
    robust: Interval
    gap: Interval


@dataclass(frozen=True)
class ClassGaps:
    """The accuracies by class.

    Attributes:
        attack: Its name.
        rows: The classes that have images, in their order.
    """

    attack: str
    rows: tuple[ClassGap, ...]

    @property
    def worst(self) -> ClassGap:
        """The class of the lowest accuracy under the attack; of equals the first."""
        return min(self.rows, key=lambda row: row.robust.value)

    @property
    def widest(self) -> ClassGap:
        """The class of the largest gap; of equals the first."""
        return max(self.rows, key=lambda row: row.gap.value)

    def to_dict(self) -> dict[str, Any]:
        """Everything, for JSON."""
        rows = {row.name: {key: asdict(getattr(row, key)) for key in ("clean", "robust", "gap")} for row in self.rows}
        return {"attack": self.attack, "worst": self.worst.name, "widest": self.widest.name, "classes": rows}


def class_gaps(report: Report, attack: str) -> ClassGaps:
    """Clean accuracy, accuracy under an attack and the gap between them, by class.

    Args:
        report: An evaluation; what is wrong without attack counts as wrong under every attack there.
        attack: One of its attacks.

    Raises:
        InputError: The report has no such attack.
    """
    if attack not in report.outcomes:
        raise InputError(f"no attack {attack!r}", hint=f"the evaluation has {', '.join(report.outcomes)}")
    rows = []
    for number, name in enumerate(report.class_names):
        own = report.y == number
        n = int(own.sum())
        if n:
            clean, robust = report.outcomes["clean"][own], report.outcomes[attack][own]
            counts = (int(clean.sum()), int(robust.sum()), int((clean & ~robust).sum()))
            rows.append(ClassGap(name, *(wilson(count, n) for count in counts)))
    return ClassGaps(attack, tuple(rows))


@dataclass(frozen=True)
class Paired:
    """Two checkpoints of a training under one attack, on the same images.

    Attributes:
        attack: Its name.
        only_best: Images that only the best checkpoint gets right.
        only_final: Images that only the last weights get right.
        difference: Accuracy of the best minus that of the last, with Tango's 95 % interval.
        p: Of McNemar's exact test.
    """

    attack: str
    only_best: int
    only_final: int
    difference: Interval
    p: float

    def to_dict(self) -> dict[str, Any]:
        """Everything, for JSON."""
        return asdict(self)


def compare_best_and_final(reports: Mapping[str, Report], attack: str) -> Paired | None:
    """The `best` against the `final` weights under an attack; None without the outcomes of both on the same images.

    Args:
        reports: Evaluations by checkpoint.
        attack: An attack that they have.
    """
    best, final = reports.get("best"), reports.get("final")
    if best is None or final is None or not torch.equal(best.y, final.y):
        return None
    one, two = best.outcomes[attack], final.outcomes[attack]
    only_best, only_final = int((one & ~two).sum()), int((two & ~one).sum())
    difference = paired_difference(only_best, only_final, len(one))
    return Paired(attack, only_best, only_final, difference, mcnemar(only_best, only_final))


def strongest_common(reports: Mapping[str, Report]) -> str | None:
    """The attack of all evaluations under which the last of them is least accurate; None if they share none."""
    if not reports:
        return None
    last = list(reports.values())[-1]
    common = [
        name for name in last.outcomes if name != "clean" and all(name in one.outcomes for one in reports.values())
    ]
    return min(common, key=lambda name: last.accuracy(name).value, default=None)
