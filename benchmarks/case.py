"""What a workload consists of: variants to time, the guard that they compute the same, and the ratios of interest."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch

from benchmarks.costs import Cost, measure_cost
from benchmarks.pairs import Clock, Samples, Spread, measure, ratios, slopes, spread


class Bound(NamedTuple):
    """A goal for a number, such as `>= 6`."""

    sign: Literal[">=", "<="]
    value: float

    def holds(self, value: float) -> bool:
        """NaN keeps no bound."""
        return value >= self.value if self.sign == ">=" else value <= self.value

    def __str__(self) -> str:
        return f"{self.sign} {self.value:g}"


class Check(NamedTuple):
    """One finding of a guard."""

    label: str
    value: float
    bound: Bound
    note: str = ""

    @property
    def passed(self) -> bool:
        return self.bound.holds(self.value)


class Ratio(NamedTuple):
    """The time of one variant over that of another, and the goal for it, where there is one."""

    label: str
    of: str
    to: str
    bound: Bound | None = None

    def met(self, values: Spread) -> bool | None:
        """Whether three quarters of the rounds keep the bound: the quartile on its far side decides."""
        if self.bound is None:
            return None
        return self.bound.holds(values.lower if self.bound.sign == ">=" else values.upper)


class Factor(NamedTuple):
    """What differs between the variants of a case: its name, and its value by variant, in increasing order."""

    name: str
    values: dict[str, float]


@dataclass(frozen=True)
class Case:
    """One setting of a workload.

    Attributes:
        title: The setting in words.
        variants: What is timed, by name.
        unit: The variant that is one plain forward of the same batch in evaluation mode; None where there is no model.
        guard: Compares what the variants compute; no ratio is reported unless every check passes.
        ratios: What is reported beside the times.
        images: How many images one call handles, of every variant or by variant; None where that says nothing.
        factor: Where the variants are one computation at several values of a factor: growth is reported.
    """

    title: str
    variants: dict[str, Callable[[], object]]
    unit: str | None
    guard: Callable[[], list[Check]]
    ratios: tuple[Ratio, ...]
    images: int | dict[str, int] | None = None
    factor: Factor | None = None

    def images_of(self, variant: str) -> int | None:
        """Images that one call of a variant handles."""
        return self.images[variant] if isinstance(self.images, dict) else self.images


class Growth(NamedTuple):
    """Exponents `b` of `cost ~ factor^b`, fitted through all values of a factor.

    Attributes:
        seconds: Of the time, a fit for every round.
        flops: Of the operations; None where there are none.
        peak: Of the memory; None where there is none.
    """

    seconds: Spread
    flops: float | None
    peak: float | None


@dataclass(frozen=True)
class Setup:
    """What every workload is told: images per batch, device, seed, whether to use the papers' sizes, and to compile."""

    batch_size: int
    device: torch.device
    seed: int
    full: bool
    compile: bool = False


class Workload(NamedTuple):
    """A row of the list of workloads."""

    summary: str
    cases: Callable[[Setup], Iterator[Case]]


class GuardError(Exception):
    """A ratio was asked for although the variants do not compute the same."""


@dataclass(frozen=True)
class Result:
    """What came of a case: the guard's findings and, if all of them passed, the samples and the costs by variant."""

    case: Case
    checks: list[Check]
    samples: Samples | None
    costs: dict[str, Cost] = field(default_factory=dict)

    @property
    def valid(self) -> bool:
        return self.samples is not None

    def seconds(self, clock: Clock) -> dict[str, list[float]]:
        """Seconds by variant.

        Raises:
            GuardError: The guard failed.
        """
        if self.samples is None:
            failed = ", ".join(check.label for check in self.checks if not check.passed)
            raise GuardError(f"{self.case.title}: no times and no ratios, the guard failed ({failed})")
        return self.samples.by(clock)

    def ratio(self, of: str, to: str, clock: Clock) -> Spread:
        """The spread of the ratio round by round.

        Raises:
            GuardError: The guard failed.
        """
        return spread(ratios(self.seconds(clock), of, to))

    def growth(self, clock: Clock) -> Growth:
        """How time, operations and memory grow with the factor of the case.

        Raises:
            GuardError: The guard failed.
        """
        assert self.case.factor is not None
        seconds, values = self.seconds(clock), self.case.factor.values
        rounds = list(zip(*(seconds[name] for name in values), strict=True))
        costs = [self.costs[name] for name in values]

        def exponent(amounts: list[int]) -> float | None:
            return slopes(list(values.values()), [amounts])[0] if min(amounts) > 0 else None

        return Growth(
            spread(slopes(list(values.values()), rounds)),
            exponent([cost.flops for cost in costs]),
            exponent([cost.peak for cost in costs]),
        )


def run(case: Case, rounds: int, seed: int = 0, device: torch.device | None = None) -> Result:
    """The guard first; operations, memory and the clocks only if it passes."""
    checks = case.guard()
    if not checks or not all(check.passed for check in checks):
        return Result(case, checks, None)
    synchronize = torch.cuda.synchronize if device is not None and device.type == "cuda" else None
    costs = {name: measure_cost(function, device) for name, function in case.variants.items()}
    return Result(case, checks, measure(case.variants, rounds, seed, synchronize), costs)
