"""How many tensor operations a training step dispatches: `python -m benchmarks.operations`.

On a GPU, where the host hands over one operation after the other, their number is a floor under the time of a step.
It needs no clock: the counts are the same on every run and, at any width and batch size, for one architecture.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.case import Bound
from benchmarks.inputs import TASK, random_images, random_labels
from benchmarks.references.steps import Make
from benchmarks.workloads.steps import PAIRS, ours, training
from gambeson.core.streams import Streams
from gambeson.models import create

GOALS = {"lap": Bound("<=", 400)}
"""For a step of ours."""
WAITS = frozenset({"_local_scalar_dense", "equal", "masked_select", "nonzero"})
"""Operations whose result the host has to wait for: `item()`, `float`, `if`, and shapes that depend on values."""


class Recorder(TorchDispatchMode):
    """Counts the operations of torch's own library that are dispatched inside the block.

    `detach` is left out: it makes another view of a tensor and computes nothing.
    """

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "aten" and func.overloadpacket.__name__ != "detach":
            self.counts[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


def operations(function: Callable[[], object]) -> Counter[str]:
    """The operations that a function dispatches, its backward passes included, by name."""
    with Recorder() as recorder:
        function()
    return recorder.counts


def of_a_step(make: Make) -> Counter[str]:
    """The operations of a third step, in which momentum exists, of preact-resnet18."""
    net, count = create("preact-resnet18", TASK, width=16, seed=0), 2
    train = training(make, net, random_images(count, 0), random_labels(count, 0), torch.device("cpu"))
    for _ in range(2):
        train()
    rng = partial(Streams(0).at, step=train.number)
    return operations(lambda: train.step(train.batch, rng))


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table; a missed goal is a result."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.operations", description=__doc__.split(":")[0] + ".")
    parser.parse_args(argv)
    print(f"torch {torch.__version__}, preact-resnet18\n")
    print("| step | gambeson | reference | gambeson waits | goal | |\n|---|---|---|---|---|---|")
    for name, pair in ((name, pair) for name, several in PAIRS.items() for pair in several):
        mine, theirs = of_a_step(ours(pair.recipe)), of_a_step(pair.reference)
        goal = GOALS.get(name)
        verdict = "-" if goal is None else "met" if goal.holds(mine.total()) else "missed"
        waits = sum(mine[wait] for wait in WAITS)
        print(f"| {name}: {pair.what} | {mine.total()} | {theirs.total()} | {waits} | {goal or '-'} | {verdict} |")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
