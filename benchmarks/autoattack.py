"""AutoAttack against its release: verdicts, time, and images through the model, attack by attack.

    python -m benchmarks.autoattack runs/standard runs/pgd-at runs/trades --test-size 500 --json out.json

Needs the release as the package `pyautoattack` (`pip install --no-deps pyautoattack`). Every run's test images are
taken in parts; ours and the release's turn, which goes first alternates, and a ratio of times is taken part by part.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.cli import settle_allocator
from benchmarks.pairs import Spread, spread
from benchmarks.report import machine, quartiles
from gambeson.app import build
from gambeson.core.threat import Threat
from gambeson.data.loader import to_unit
from gambeson.engine.run import write_json
from gambeson.evaluation import autoattack, wilson
from gambeson.evaluation.ensembles import create_ensemble

STAGES = tuple(search.name for search in create_ensemble("standard"))
"""The attacks of the version `standard`, in the order of both."""


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


def ours(model: Counted, x: Tensor, y: Tensor, threat: Threat, seed: int, batch: int) -> tuple[Tensor, list[Stage]]:
    """Gambeson's: which images stand, and the stages."""
    meter = Meter(model)
    found = autoattack(
        model,
        x,
        y,
        threat,
        num_classes=10,
        seed=seed,
        slots=batch,
        listen=lambda stage: meter.read(stage.attack, stage.left),
    )
    return found.robust, meter.stages


def theirs(model: Counted, x: Tensor, y: Tensor, threat: Threat, seed: int, batch: int) -> tuple[Tensor, list[Stage]]:
    """The release's: which images stand, and the stages. Each attack is run on what the one before left."""
    from pyautoattack import AutoAttack

    released = AutoAttack(model, norm=threat.norm, eps=float(threat.eps), seed=seed, version="standard")
    released.verbose = False
    meter = Meter(model)
    with torch.no_grad():
        standing = model(x).argmax(1) == y
    for attack in STAGES:
        rows = standing.nonzero().squeeze(1)
        if len(rows):
            released.attacks_to_run = [attack]
            _, labels = released.run_standard_evaluation(x[rows], y[rows], batch_size=batch)
            standing[rows] = labels == y[rows]
        meter.read(attack, int(standing.sum()))
    return standing, meter.stages


SIDES: dict[str, Callable[..., tuple[Tensor, list[Stage]]]] = {"gambeson": ours, "pyautoattack": theirs}


def compare(path: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Both on the same images of a run, part by part."""
    run = build.open_run(path)
    model, task, checkpoint, step = build.load_model(run, options.checkpoint, torch.device("cpu"))
    test, threat = build.splits(run.call).test.head(options.test_size), build.recipe(run.call).threat
    x, y = to_unit(test.x), test.y.to(torch.int64)
    counted = Counted(model).eval()
    with torch.no_grad():
        clean = torch.cat([counted(part).argmax(1) for part in x.split(options.batch_size)]) == y
    standing: dict[str, list[Tensor]] = {name: [] for name in SIDES}
    stages: dict[str, list[list[Stage]]] = {name: [] for name in SIDES}
    for number, (images, labels) in enumerate(zip(x.split(options.part), y.split(options.part), strict=True)):
        order = list(SIDES.items())[:: -1 if number % 2 else 1]
        for name, side in order:
            flags, found = side(counted, images, labels, threat, options.seed, options.batch_size)
            standing[name].append(flags)
            stages[name].append(found)
            print(f"  part {number + 1}, {name}: {int(flags.sum())} of {len(labels)} stand", file=sys.stderr)
    robust = {name: torch.cat(parts) for name, parts in standing.items()}
    return {
        "run": path.name,
        "method": run.call["method"]["name"],
        "checkpoint": checkpoint,
        "step": step,
        "n": len(y),
        "classes": task.num_classes,
        "norm": threat.norm,
        "eps": float(threat.eps),
        "clean": vars(wilson(int(clean.sum()), len(y))),
        "robust": {name: vars(wilson(int(flags.sum()), len(y))) for name, flags in robust.items()},
        "differing": int((robust["gambeson"] != robust["pyautoattack"]).sum()),
        "stages": {name: [[asdict(stage) for stage in part] for part in parts] for name, parts in stages.items()},
    }


def total(found: dict[str, Any], side: str, key: str, stages: Sequence[str] = STAGES) -> list[float]:
    """A number of some attacks together, part by part."""
    return [sum(stage[key] for stage in part if stage["attack"] in stages) for part in found["stages"][side]]


def ratios(found: dict[str, Any], clock: str) -> dict[str, Spread]:
    """The release's time over ours, part by part; and our preview's over our whole."""
    own, other = total(found, "gambeson", clock), total(found, "pyautoattack", clock)
    few = total(found, "gambeson", clock, STAGES[:2])
    return {
        "pyautoattack / gambeson": spread([b / a for a, b in zip(own, other, strict=True)]),
        "preview / whole": spread([a / b for a, b in zip(few, own, strict=True)]),
    }


def text(found: dict[str, Any], clock: str) -> str:
    """The table of a run, in Markdown."""
    n = found["n"]
    lines = [
        f"## {found['run']} ({found['method']}), {found['norm']} eps {255 * found['eps']:g}/255, n = {n}",
        "",
        f"clean accuracy {100 * found['clean']['value']:.1f} %; verdicts differ for {found['differing']} of {n} images",
        "",
        "| after | accuracy, %: ours | release | seconds: ours | release | forwards: ours | release"
        " | backwards: ours | release |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for attack in (*STAGES, "all"):
        chosen = STAGES if attack == "all" else (attack,)
        last = STAGES[-1] if attack == "all" else attack
        row = [attack]
        for key, form in (("left", "{:.1f}"), (clock, "{:.0f}"), ("forwards", "{:,.0f}"), ("backwards", "{:,.0f}")):
            for side in SIDES:
                value = sum(total(found, side, key, (last,) if key == "left" else chosen))
                row.append(form.format(100 * value / n if key == "left" else value))
        lines.append(f"| {' | '.join(row)} |")
    lines.append("")
    for name, value in ratios(found, clock).items():
        ends = f"{value.min:.2f} to {value.max:.2f}"
        lines.append(f"{name}, part by part: {quartiles(value, 2)}, {ends}  ")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Compare, print the tables; 1 if a robust accuracy differs by more than 2 in 500 images."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.autoattack", description=(__doc__ or "").split("\n")[0])
    add = parser.add_argument
    add("runs", nargs="+", type=Path, metavar="RUN", help="run directories of gambeson")
    add("--test-size", type=int, default=500, help="images (%(default)s)")
    add("--part", type=int, default=125, help="images per pair of times (%(default)s)")
    add("--batch-size", type=int, default=125, help="images at a time (%(default)s)")
    add("--checkpoint", default="final", help="best, final or last (%(default)s)")
    add("--threads", type=int, default=1, help="of torch (%(default)s)")
    add("--seed", type=int, default=0, help="of both (%(default)s)")
    add("--json", type=Path, metavar="FILE", help="write everything")
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    settle_allocator()
    clock = "cpu" if options.threads == 1 else "wall"
    records = []
    for path in options.runs:
        records.append(compare(path, options))
        print(f"\n{text(records[-1], clock)}", flush=True)
        if options.json:
            date = datetime.now(timezone.utc).isoformat(timespec="seconds")
            where = machine(torch.device("cpu"))
            write_json(options.json, {"date": date, "clock": clock, "machine": where, "runs": records})
    apart = [abs(r["robust"]["gambeson"]["value"] - r["robust"]["pyautoattack"]["value"]) for r in records]
    return 1 if max(apart) > 2 / 500 else 0


if __name__ == "__main__":
    sys.exit(main())
