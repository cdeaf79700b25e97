"""When a training collapsed: the looks of its sentinel, the moment of the verdict, and what other detectors say."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from gambeson.engine.sentinel import EVENT


@dataclass(frozen=True)
class Look:
    """A look of the sentinel at the probe batch.

    Attributes:
        step: After so many steps.
        epoch: The same in epochs.
        fgsm: Accuracy under FGSM.
        pgd: Accuracy under PGD-10.
        collapsed: The verdict.
        aae: Share of abnormal adversarial examples; None in older metrics.
        alignment: Gradient alignment; None in older metrics, and where no image has two gradients.
    """

    step: int
    epoch: float
    fgsm: float
    pgd: float
    collapsed: bool
    aae: float | None = None
    alignment: float | None = None

    @property
    def gap(self) -> float:
        """`fgsm - pgd`."""
        return self.fgsm - self.pgd


@dataclass(frozen=True)
class Collapse:
    """The first collapse of a training.

    Attributes:
        look: The first look with that verdict: the collapse lies between it and the look before.
        healthy: The look before; None where the first look of all has the verdict.
        recovered: The first of the looks with which the training ends and that have neither the verdict nor a gap of 20
            points; None where there are none.
        count: Looks with the verdict.
    """

    look: Look
    healthy: Look | None
    recovered: Look | None
    count: int

    def to_dict(self) -> dict[str, Any]:
        """Everything, for JSON."""

        def at(look: Look | None) -> dict[str, Any] | None:
            return {**asdict(look), "gap": look.gap} if look else None

        parts = {"healthy": at(self.healthy), "recovered": at(self.recovered), "looks": self.count}
        return {"step": self.look.step, "epoch": self.look.epoch, "look": at(self.look), **parts}


@dataclass(frozen=True)
class Detection:
    """What one detector of catastrophic overfitting says of a training.

    Attributes:
        detector: Its name.
        rule: What it fires at.
        source: Where it is from.
        judged: Looks that have what it needs.
        look: The first at which it fires, or None.
    """

    detector: str
    rule: str
    source: str
    judged: int
    look: Look | None

    def to_dict(self) -> dict[str, Any]:
        """Everything, for JSON."""
        at = {"step": self.look.step if self.look else None, "epoch": self.look.epoch if self.look else None}
        return {**{key: getattr(self, key) for key in ("detector", "rule", "source", "judged")}, **at}


def read_number(row: Mapping[str, Any], key: str, low: float = 0.0, high: float = 1.0) -> float | None:
    """A number of a row of metrics; None where it is missing, no number, or outside `[low, high]`."""
    value = row.get(key)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if low <= value <= high else None


def read_place(row: Mapping[str, Any]) -> tuple[int, float] | None:
    """The step and the epoch of a row of metrics; None where they are not ones."""
    step, epoch = read_number(row, "step", high=math.inf), read_number(row, "epoch", high=1e9)
    if step is None or epoch is None or not step.is_integer():
        return None
    return int(step), epoch


def read_looks(rows: Iterable[Mapping[str, Any]]) -> tuple[tuple[Look, ...], int]:
    """The looks in the metrics of a training, and how many rows of looks are damaged and were left out.

    A look is damaged that lacks its place or one of its accuracies, has a number out of range, or does not come after
    the one before it.
    """
    looks: list[Look] = []
    damaged = 0
    for row in rows:
        if not row.keys() & {"probe/fgsm_acc", "probe/pgd10_acc"}:
            continue
        look = _look(row)
        if look is None or (looks and look.step <= looks[-1].step):
            damaged += 1
        else:
            looks.append(look)
    return tuple(looks), damaged


def _look(row: Mapping[str, Any]) -> Look | None:
    place = read_place(row)
    fgsm, pgd = read_number(row, "probe/fgsm_acc"), read_number(row, "probe/pgd10_acc")
    aae, alignment = read_number(row, "probe/aae"), read_number(row, "probe/alignment", -1.001, 1.001)
    garbled = (aae is None) != (row.get("probe/aae") is None)
    garbled |= (alignment is None) != (row.get("probe/alignment") is None)
    if place is None or fgsm is None or pgd is None or garbled:
        return None
    return Look(*place, fgsm, pgd, row.get("event") == EVENT, aae, alignment)


def find_collapse(looks: Sequence[Look]) -> Collapse | None:
    """The first collapse, or None.

    Examples:
        >>> found = find_collapse([Look(0, 0.0, 0.5, 0.5, False), Look(50, 0.5, 0.9, 0.1, True)])
        >>> (found.healthy.step, found.look.step, found.recovered)
        (0, 50, None)
    """
    verdicts = [look.collapsed for look in looks]
    if not any(verdicts):
        return None
    first = verdicts.index(True)
    # The verdict alone would call a model healthy whose PGD accuracy has crept up to a quarter of its FGSM accuracy.
    distorted = [look.collapsed or look.gap >= 0.2 for look in looks]
    end = len(looks) - distorted[::-1].index(True)  # the first look after the last distorted one
    healthy, recovered = (looks[first - 1] if first else None), (looks[end] if end < len(looks) else None)
    return Collapse(looks[first], healthy, recovered, sum(verdicts))


def _window(looks: Sequence[Look], at: int) -> Sequence[Look]:
    """The looks before this one that are at most an epoch older, or else the one before it."""
    recent = [look for look in looks[:at] if look.epoch >= looks[at].epoch - 1]
    return recent or looks[max(0, at - 1) : at]


def _gap(looks: Sequence[Look], at: int) -> bool:
    return looks[at].gap > 0.2


def _half(looks: Sequence[Look], at: int) -> bool:
    highest = max(look.pgd for look in looks[: at + 1])
    return highest >= 0.2 and looks[at].pgd < highest / 2


def _fall(looks: Sequence[Look], at: int) -> bool:
    return any(look.pgd - looks[at].pgd > 0.2 for look in _window(looks, at))


def _misaligned(looks: Sequence[Look], at: int) -> bool:
    here = looks[at].alignment
    before = [look.alignment for look in _window(looks, at) if look.alignment is not None]
    return here is not None and bool(before) and here < max(before) / 2


def _abnormal(looks: Sequence[Look], at: int) -> bool:
    share = looks[at].aae
    return share is not None and share >= 0.1


Rule = Callable[[Sequence[Look], int], bool]

DETECTORS: dict[str, tuple[Rule, str, str, str]] = {
    "sentinel": (
        lambda looks, at: looks[at].collapsed,
        "fgsm",
        "FGSM 20 points above PGD-10, and PGD-10 below half its maximum or a quarter of FGSM",
        "gambeson.engine.sentinel.has_collapsed",
    ),
    "gap": (_gap, "fgsm", "FGSM more than 20 points above PGD-10", "ours"),
    "half": (_half, "pgd", "PGD-10 below half its maximum so far, of at least 20 points", "ours"),
    "wong": (
        _fall,
        "pgd",
        "PGD-10 more than 20 points lower than within the epoch before",
        "Wong, Rice, Kolter, ICLR 2020, whose code stops there (PGD-5, the first batch of every epoch)",
    ),
    "alignment": (
        _misaligned,
        "alignment",
        "gradient alignment less than half of what it was within the epoch before",
        "Andriushchenko, Flammarion, NeurIPS 2020 (the symptom; the threshold is ours)",
    ),
    "aae": (
        _abnormal,
        "aae",
        "abnormal adversarial examples on at least 10 % of the images",
        "Lin, Yu, Han, Su, Liu, NeurIPS 2023 (the symptom; the threshold is ours)",
    ),
}
"""By name: the rule at a look, the number that it needs, what it says, and where it is from."""


def detect(looks: Sequence[Look]) -> tuple[Detection, ...]:
    """What every detector says of a training, each judged for itself on the looks that have its number."""
    found = []
    for name, (rule, needs, said, source) in DETECTORS.items():
        able = [look for look in looks if getattr(look, needs) is not None]
        first = next((look for at, look in enumerate(able) if rule(able, at)), None)
        found.append(Detection(name, said, source, len(able), first))
    return tuple(found)
