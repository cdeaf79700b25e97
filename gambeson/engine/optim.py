"""Learning rate and momentum as functions of the step: nothing to save, nothing to resume."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from gambeson.core.errors import InputError

Schedule = Literal["cyclic", "piecewise", "cosine", "constant"]


def learning_rate(
    schedule: Schedule, step: int, total: int, peak: float, milestones: Sequence[float] = (0.5, 0.75)
) -> float:
    """The learning rate of `step` in `0..total-1`.

    Args:
        schedule: `"cyclic"`: linear from 0 to `peak` at half and back (torch's CyclicLR, triangular, from 0);
            `"piecewise"`: `peak`, a tenth after each milestone; `"cosine"`: `peak (1 + cos(pi t / T)) / 2`; or
            `"constant"`.
        step: Counted from 0.
        total: Steps of the whole training, T.
        peak: Largest learning rate.
        milestones: Fractions of the training, for `"piecewise"`.

    Raises:
        InputError: Unknown schedule.

    Examples:
        >>> [learning_rate("cyclic", t, 4, 0.2) for t in range(4)]
        [0.0, 0.1, 0.2, 0.1]
    """
    if schedule == "cyclic":
        return peak * _triangle(step, total)
    if schedule == "piecewise":
        return peak * 0.1 ** sum(step >= milestone * total for milestone in milestones)
    if schedule == "cosine":
        return peak * (1 + math.cos(math.pi * step / total)) / 2
    if schedule == "constant":
        return peak
    raise InputError(f"unknown schedule {schedule!r}", hint="known: constant, cosine, cyclic, piecewise")


def cycled_momentum(schedule: Schedule, step: int, total: int, momentum: float, low: float) -> float:
    """The momentum of `step`: under the cyclic schedule from `momentum` down to `low` at the peak and back.

    torch's CyclicLR does so by default (0.9 to 0.8), hence so do the releases of LAP, Fast AT and N-FGSM.
    """
    if schedule != "cyclic" or momentum <= low:
        return momentum
    return momentum - (momentum - low) * _triangle(step, total)


def _triangle(step: int, total: int) -> float:
    return 1 - abs(2 * step / total - 1)
