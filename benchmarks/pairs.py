"""Several callables timed side by side: interleaved, in a new order every round, so that noise hits all of them."""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

Clock = Literal["cpu", "wall"]


@dataclass(frozen=True)
class Samples:
    """Seconds by variant, one per round in the order of the rounds, without the warm-up.

    Attributes:
        cpu: Processor time of the process, all threads together.
        wall: Time on the clock.
    """

    cpu: dict[str, list[float]]
    wall: dict[str, list[float]]

    def by(self, clock: Clock) -> dict[str, list[float]]:
        return self.cpu if clock == "cpu" else self.wall


class Spread(NamedTuple):
    """Smallest, lower quartile, median, upper quartile, largest."""

    min: float
    lower: float
    median: float
    upper: float
    max: float


def measure(
    variants: Mapping[str, Callable[[], object]],
    rounds: int,
    seed: int = 0,
    synchronize: Callable[[], None] | None = None,
) -> Samples:
    """Run every variant once per round, after one round that does not count.

    Args:
        variants: What to time, by name.
        rounds: At least 1.
        seed: Of the order, which is shuffled every round.
        synchronize: Waits for a device; called before every look at the clocks.
    """
    if rounds < 1:
        raise ValueError(f"rounds must be at least 1, got {rounds}")
    wait = synchronize or (lambda: None)
    rng, names = random.Random(seed), list(variants)
    samples = Samples({name: [] for name in names}, {name: [] for name in names})
    collecting = gc.isenabled()
    try:
        for number in range(rounds + 1):
            rng.shuffle(names)
            gc.collect()  # here, lest it falls into somebody's time
            gc.disable()
            for name in names:
                wait()
                cpu, wall = time.process_time(), time.perf_counter()
                variants[name]()
                wait()
                cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
                if number:
                    samples.cpu[name].append(cpu)
                    samples.wall[name].append(wall)
    finally:
        if collecting:
            gc.enable()
    return samples


def ratios(seconds: Mapping[str, Sequence[float]], of: str, to: str) -> list[float]:
    """The time of one variant over the time of another in the same round, round by round."""
    return [a / b for a, b in zip(seconds[of], seconds[to], strict=True)]


def spread(values: Sequence[float]) -> Spread:
    """Extremes, quartiles and median."""
    return Spread(*(float(q) for q in np.quantile(values, (0, 0.25, 0.5, 0.75, 1))))


def slopes(factor: Sequence[float], amounts: Sequence[Sequence[float]]) -> list[float]:
    """The exponent `b` of the least-squares line `log amount = a + b log factor`, for every row of amounts."""
    x = np.log(factor)
    x -= x.mean()
    return [float(x @ np.log(row) / (x @ x)) for row in amounts]
