"""What a workload consists of: variants to time, the guard that they compute the same, and the ratios of interest."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch

from benchmarks.pairs import Clock, Samples, Spread, measure, ratios, spread


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


@dataclass(frozen=True)
class Case:
    """One setting of a workload.

    Attributes:
        title: The setting in words.
        variants: What is timed, by name.
        unit: The variant that is one plain forward of the same batch in evaluation mode.
        guard: Compares what the variants compute; no ratio is reported unless every check passes.
        ratios: What is reported beside the times.
    """

    title: str
    variants: dict[str, Callable[[], object]]
    unit: str
    guard: Callable[[], list[Check]]
    ratios: tuple[Ratio, ...]


@dataclass(frozen=True)
class Setup:
    """What every workload is told: images per batch, device, seed, and whether to use the papers' sizes."""

    batch_size: int
    device: torch.device
    seed: int
    full: bool


class Workload(NamedTuple):
    """A row of the list of workloads."""

    summary: str
    cases: Callable[[Setup], Iterator[Case]]


class GuardError(Exception):
    """A ratio was asked for although the variants do not compute the same."""


@dataclass(frozen=True)
class Result:
    """What came of a case: the guard's findings and, if all of them passed, the samples."""

    case: Case
    checks: list[Check]
    samples: Samples | None

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


def run(case: Case, rounds: int, seed: int = 0, device: torch.device | None = None) -> Result:
    """The guard first; the clocks only if it passes."""
    checks = case.guard()
    if not checks or not all(check.passed for check in checks):
        return Result(case, checks, None)
    synchronize = torch.cuda.synchronize if device is not None and device.type == "cuda" else None
    return Result(case, checks, measure(case.variants, rounds, seed, synchronize))
