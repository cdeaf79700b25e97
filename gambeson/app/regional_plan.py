"""The runs of the regional experiment: their budgets, their calls, and whether an existing run is one of them."""

from __future__ import annotations

import inspect
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from gambeson.app.options import RegionsOptions, TrainOptions
from gambeson.core.errors import InputError, RunError
from gambeson.engine.settings import Settings
from gambeson.methods import METHODS

if TYPE_CHECKING:
    from gambeson.core.threat import Linf
    from gambeson.data import Splits
    from gambeson.engine.run import Run


class Planned(NamedTuple):
    """A run of the experiment: its setup and seed, its directory, and the call that makes it."""

    setup: str
    seed: int
    path: Path
    call: dict[str, Any]


class Budgets(NamedTuple):
    """The budgets of the experiment: of three quarters, of the fourth, and of the attacks on the test set."""

    eps: float
    eps_low: float
    threat: Linf


def parse_seeds(text: str) -> tuple[int, ...]:
    """Seeds from `0,1,2` or `[0, 1, 2]`.

    Raises:
        InputError: Not whole numbers from 0, none, or one twice.

    Examples:
        >>> parse_seeds("0,1,2")
        (0, 1, 2)
    """
    words = [word.strip() for word in text.strip().removeprefix("[").removesuffix("]").split(",")]
    if not all(word.isdecimal() for word in words):
        raise InputError(f"seeds are whole numbers from 0, got {text!r}", hint="--seeds 0,1,2")
    seeds = tuple(map(int, words))
    if len(set(seeds)) < len(seeds):
        raise InputError(f"a seed that is given twice is one experiment, not two; got {text!r}")
    return seeds


def budgets_of(options: RegionsOptions, data: Splits) -> Budgets:
    """The budgets that were asked for, else 1.5 times, 0.75 times and once the data set's.

    Raises:
        InputError: One is out of range, or the images have no four equal quarters.
    """
    from gambeson.core.threat import Linf
    from gambeson.diagnosis.regions import scaled

    size, eps = data.facts.size, data.facts.eps
    if size % 2:
        raise InputError(f"images of {size} pixels have no four equal quarters", hint=f"--size {size + 1}, for folders")
    high = scaled(eps, 1.5) if options.eps is None else options.eps
    low = scaled(eps, 0.75) if options.eps_low is None else options.eps_low
    if low > high:
        raise InputError(f"the low budget must not exceed the other, got eps_low {low:g} and eps {high:g}")
    return Budgets(high, low, Linf(eps if options.eval_eps is None else options.eval_eps))


def plan(
    options: RegionsOptions,
    budgets: Budgets,
    training: TrainOptions,
    settings: Settings,
    seeds: tuple[int, ...],
    device: str,
) -> list[Planned]:
    """The runs, seed by seed: the calls that `gambeson train part` would make.

    The control is `part` too, with a mask that no pixel is in: its steps have the same size.
    """
    from gambeson.app.build import make_call
    from gambeson.diagnosis import SETUPS
    from gambeson.diagnosis.regions import mean_budget

    common = {key: p.default for key, p in inspect.signature(METHODS["part"]).parameters.items()}
    common |= {"eps": budgets.eps, "steps": options.steps, "rel_step_size": options.rel_step_size, "warmup": 0}
    planned = []
    for seed in seeds:
        for setup, corner in SETUPS.items():
            quarter = {"eps_low": budgets.eps_low, "mask": f"quadrant:{corner}"}
            control = {"eps_low": mean_budget(budgets.eps, budgets.eps_low), "mask": "uniform"}
            arguments = {**common, **(quarter if corner else control)}
            call = make_call("part", arguments, training, replace(settings, seed=seed))
            path = Path(options.root) / f"{setup}-seed-{seed}"
            planned.append(Planned(setup, seed, path, {**call, "device": device, "tensorboard": False}))
    return planned


def require_same(run: Run, call: dict[str, Any]) -> None:
    """Refuse a run that another call made. Where and how it computes, the data's folder and the final attacks
    may differ.

    Raises:
        RunError: It differs; every differing field is named.
    """
    from gambeson.app.show import short
    from gambeson.core.tables import differences

    def training(one: dict[str, Any]) -> dict[str, Any]:
        data = {key: value for key, value in one["data"].items() if key not in ("dir", "verify", "workers")}
        return {**{key: one.get(key) for key in ("method", "model", "ema", "settings")}, "data": data}

    different = differences(training(run.call), training(call), short)
    if different:
        raise RunError(
            f"{run.path} is another training: {'; '.join(different)}",
            hint="give the options of that training, or another --root",
        )
