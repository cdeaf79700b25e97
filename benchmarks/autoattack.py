"""AutoAttack against its release: verdicts, time, and images through the model, attack by attack.

    python -m benchmarks.autoattack runs/standard runs/pgd-at runs/trades --test-size 500 --json out.json

Needs the release as the package `pyautoattack` (`pip install --no-deps pyautoattack`). Every run's test images are
taken in parts; ours and the release's turn, which goes first alternates, and a ratio of times is taken part by part.
The release is given the model as torch makes it, in contiguous memory; with `--same-layout` as ours loads it.
The file holds every part as soon as it is through, and the same command goes on from it; runs and settings that are
in it besides stay there.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.report import machine
from benchmarks.verdicts import SIDES, STAGES, summary, text
from gambeson.app import build
from gambeson.core.allocator import keep_memory
from gambeson.core.threat import Threat
from gambeson.data.loader import to_unit
from gambeson.engine.run import write_json
from gambeson.evaluation import autoattack


@dataclass(frozen=True)
class Stage:
    """One attack on one part of the images.

    Attributes:
        attack: Its name.
        left: Images that are correct after it.
        cpu: Processor time, seconds.
        wall: Time on the clock, seconds.
        forwards: Images that went through the model.
        backwards: Images whose gradient came back.
    """

    attack: str
    left: int
    cpu: float
    wall: float
    forwards: int
    backwards: int


class Counted(nn.Module):
    """A model that counts the images that go through it, and back."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.forwards = self.backwards = 0

    def forward(self, x: Tensor) -> Tensor:
        """The model's logits."""
        self.forwards += len(x)
        logits = self.model(x)
        if logits.requires_grad:
            logits.register_hook(self._back)
        return logits

    def _back(self, grad: Tensor) -> None:
        self.backwards += len(grad)


class Meter:
    """Reads the clocks and the counters between the attacks."""

    def __init__(self, model: Counted) -> None:
        self.model, self.stages = model, list[Stage]()
        self._mark()

    def _mark(self) -> None:
        self.cpu, self.wall = time.process_time(), time.perf_counter()
        self.model.forwards = self.model.backwards = 0

    def read(self, attack: str, left: int) -> None:
        """What the attack took since the last reading."""
        cpu, wall = time.process_time() - self.cpu, time.perf_counter() - self.wall
        self.stages.append(Stage(attack, left, cpu, wall, self.model.forwards, self.model.backwards))
        self._mark()


def ours(
    model: Counted, x: Tensor, y: Tensor, threat: Threat, options: argparse.Namespace
) -> tuple[Tensor, list[Stage]]:
    """Gambeson's: which images stand, and the stages; its own counts, since a counting model cannot be folded."""
    meter = Meter(model)
    found = autoattack(
        model.model,
        x,
        y,
        threat,
        num_classes=10,
        seed=options.seed,
        slots=options.batch_size,
        fold=options.fold,
        listen=lambda stage: meter.read(stage.attack, stage.left),
    )
    counted = zip(meter.stages, found.stages, strict=True)
    stages = [replace(one, forwards=stage.forwards, backwards=stage.backwards) for one, stage in counted]
    return found.robust, stages


def theirs(
    model: Counted, x: Tensor, y: Tensor, threat: Threat, options: argparse.Namespace
) -> tuple[Tensor, list[Stage]]:
    """The release's: which images stand, and the stages. Each attack is run on what the one before left."""
    from pyautoattack import AutoAttack

    released = AutoAttack(model, norm=threat.norm, eps=float(threat.eps), seed=options.seed, version="standard")
    released.verbose = False
    meter = Meter(model)
    with torch.no_grad():
        standing = model(x).argmax(1) == y
    for attack in STAGES:
        rows = standing.nonzero().squeeze(1)
        if len(rows):
            released.attacks_to_run = [attack]
            _, labels = released.run_standard_evaluation(x[rows], y[rows], batch_size=options.batch_size)
            standing[rows] = labels == y[rows]
        meter.read(attack, int(standing.sum()))
    return standing, meter.stages


RUNNERS: dict[str, Callable[..., tuple[Tensor, list[Stage]]]] = dict(zip(SIDES, (ours, theirs), strict=True))


def compare(path: Path, options: argparse.Namespace, parts: list[dict[str, Any]], keep: Callable[[], None]) -> None:
    """Both on the same images of a run, part by part.

    Args:
        path: The run.
        options: From the command line.
        parts: What is there already; every further part is appended.
        keep: Called after every part.
    """
    run = build.open_run(path)
    model, *_ = build.load_model(run, options.checkpoint, torch.device("cpu"))
    test, threat = build.splits(run.call).test.head(options.test_size), build.recipe(run.call).threat
    x, y = to_unit(test.x[options.skip :]), test.y[options.skip :].to(torch.int64)
    counted = Counted(model).eval()
    released = model if options.same_layout else copy.deepcopy(model).to(memory_format=torch.contiguous_format)
    models = {"gambeson": counted, "pyautoattack": Counted(released).eval()}
    for number, (images, labels) in enumerate(zip(x.split(options.part), y.split(options.part), strict=True)):
        if number < len(parts):
            continue
        with torch.no_grad():
            clean = int((counted(images).argmax(1) == labels).sum())
        part: dict[str, Any] = {"n": len(labels), "clean": clean, "standing": {}, "stages": {}}
        for name, side in list(RUNNERS.items())[:: -1 if number % 2 else 1]:
            flags, found = side(models[name], images, labels, threat, options)
            part["standing"][name] = flags.tolist()
            part["stages"][name] = [asdict(stage) for stage in found]
            print(f"  part {number + 1}, {name}: {int(flags.sum())} of {len(labels)} stand", file=sys.stderr)
        parts.append(part)
        keep()


def described(path: Path, options: argparse.Namespace) -> dict[str, Any]:
    """What a record of a run depends on."""
    run = build.open_run(path)
    threat = build.recipe(run.call).threat
    return {
        "run": path.name,
        "method": run.call["method"]["name"],
        "data": run.call["data"]["name"],
        "checkpoint": options.checkpoint,
        "norm": threat.norm,
        "eps": float(threat.eps),
        "skip": options.skip,
        "part": options.part,
        "batch_size": options.batch_size,
        "seed": options.seed,
        "fold": options.fold,
        "same_layout": options.same_layout,
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Compare, print the tables; 1 if a robust accuracy differs by more than 2 in 500 images."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.autoattack", description=(__doc__ or "").split("\n")[0])
    add = parser.add_argument
    add("runs", nargs="+", type=Path, metavar="RUN", help="run directories of gambeson")
    add("--test-size", type=int, default=500, help="images (%(default)s)")
    add("--skip", type=int, default=0, help="leave out so many of them, the first ones (%(default)s)")
    add("--part", type=int, default=125, help="images per pair of times (%(default)s)")
    add("--batch-size", type=int, default=125, help="images at a time (%(default)s)")
    add("--checkpoint", default="final", help="best, final or last (%(default)s)")
    add("--threads", type=int, default=1, help="of torch (%(default)s)")
    add("--seed", type=int, default=0, help="of both (%(default)s)")
    add("--no-fold", dest="fold", action="store_false", help="ours searches on the model itself")
    add("--same-layout", action="store_true", help="the release searches on the model as ours loads it")
    add("--json", type=Path, metavar="FILE", help="write everything")
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    keep_memory()
    clock, cpu = "cpu" if options.threads == 1 else "wall", torch.device("cpu")
    kept = json.loads(options.json.read_text())["runs"] if options.json and options.json.is_file() else []
    records: list[dict[str, Any]] = []

    def keep() -> None:
        if options.json:
            write_json(options.json, {"runs": kept})

    for path in options.runs:
        of = {**described(path, options), "clock": clock, "machine": machine(cpu)}
        found = next((one for one in kept if of.items() <= one.items()), None)
        if found is None:
            kept.append(found := {**of, "date": datetime.now(timezone.utc).isoformat(timespec="seconds"), "parts": []})
        compare(path, options, found["parts"], keep)
        found |= summary(found)
        keep()
        records.append(found)
        print(f"\n{text(found)}", flush=True)
    apart = [abs(r["robust"]["gambeson"]["value"] - r["robust"]["pyautoattack"]["value"]) for r in records]
    return 1 if max(apart) > 2 / 500 else 0


if __name__ == "__main__":
    sys.exit(main())
