"""`gambeson sweep`: recipes and seeds from one file, run here or on a cluster, with the table at the end."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gambeson.app.options import SweepOptions
from gambeson.app.parsing import Parser, UsageError, options_of, require_positive, split_words
from gambeson.core.errors import FileError, GambesonError, InputError, RunError, require_known

if TYPE_CHECKING:
    from gambeson.app.sweep_local import Outcome
    from gambeson.app.sweep_plan import Plan

EXECUTORS = ("local", "slurm")
FORM = """the file, of which only seeds and rows (or a grid) are needed:
  seeds: [0, 1, 2]
  attack: clean,pgd-10                        # the columns of the table
  common: {data: digits, epochs: 10}          # options of all trainings; a row's own win, and win over a recipe's
  grid: {eps: [0.1, 2/10]}                    # every combination of values makes a row of each training
  rows:
    N-FGSM: n-fgsm --lr 0.1                   # the words after `gambeson train`
    N-LAP: {method: n-lap, beta: 0.005}       # or a table: a method or a recipe, and options
    PART: {recipe: part/cifar10-part-s1, steps: 2}
    RiFT: {base: N-LAP, finetune: rift --lr 0.01}   # the words after `gambeson finetune`, on N-LAP of the same seed
  pairs: [[N-LAP, N-FGSM]]                    # differences, seed by seed
  ood: --set standard15                       # the words after `gambeson corruptions RUN`: one more column
  threads: 1                                  # of every command
  jobs: 2                                     # commands at a time
  slurm: {partition: gpu, timeout_min: 600}   # for --executor slurm
"""


def sweep(args: list[str]) -> int:
    """`gambeson sweep FILE [options]`."""
    parser = Parser(
        "gambeson sweep FILE",
        "Run every row of a YAML file with every seed, some at a time, and print the table: mean, spread and interval"
        " over seeds. The same command goes on with what was interrupted, and skips what is done.",
    )
    parser.add(SweepOptions)
    if "-h" in args or "--help" in args:
        print(f"{parser.format_help()}\n{FORM}", end="")
        return 0
    words, rest = split_words(_joined(args, "slurm"), parser.flags)
    options = options_of(SweepOptions, parser.parse(rest))
    if len(words) != 1:
        raise UsageError(f"sweep needs one file, got {len(words)}", hint="gambeson sweep docs/results/digits.yaml")
    require_positive(options, "jobs")
    require_known("executor", options.executor, EXECUTORS)
    if options.slurm and options.executor != "slurm":
        raise InputError("--slurm is for another executor", hint="--executor slurm")
    for name in ("jobs", "devices"):
        if getattr(options, name) is not None and options.executor == "slurm":
            raise InputError(f"--{name} is for runs on this machine, SLURM has its own", hint="such as --slurm nodes=1")
    forms = [name for name in ("json", "markdown", "csv") if getattr(options, name)]
    if len(forms) > 1:
        raise InputError(f"one form at a time, got --{' and --'.join(forms)}", hint="the folder has all of them")

    from gambeson.app import sweep_jobs
    from gambeson.app.sweep_plan import plan_of

    plan = plan_of(Path(words[0]), Path(options.root) if options.root else None, options.only)
    devices = _devices(options.devices, plan)
    if plan.root.exists() and not plan.root.is_dir():
        raise FileError(f"{plan.root} is no folder", hint="name another with --root")
    sweep_jobs.require_own(plan)
    if options.table and not options.dry_run:
        return _print(plan, options)
    sweep_jobs.require_data_there(plan)
    if options.dry_run:
        _dry_run(plan, devices, options.json)
        return 0
    if options.executor == "slurm":
        return _submit(plan, options)
    from gambeson.app.sweep_board import board
    from gambeson.app.sweep_local import carry_out

    with _held(plan.root), board(plan, options.json) as shown:
        outcome = carry_out(plan, options.jobs or max(plan.slots, len(devices)), devices, shown)
    if outcome.signum is not None:
        return _stopped(plan, outcome, args)
    code = _print(plan, options, outcome)
    return 1 if outcome.failed else code


def _joined(args: Sequence[str], option: str) -> list[str]:
    """Arguments with the values of an option that is given several times in one."""
    values: list[str] = []
    left: list[str] = []
    rest = list(args)
    while rest:
        arg = rest.pop(0)
        name, equals, value = arg.partition("=")
        if name == f"--{option}" and (equals or rest):
            values.append(value if equals else rest.pop(0))
        else:
            left.append(arg)
    return [*left, *([f"--{option}={','.join(values)}"] if values else [])]


def _devices(text: str | None, plan: Plan) -> list[str]:
    """The devices that are handed out; nothing is put on them here."""
    if text is None:
        return []
    import torch

    from gambeson.app.parsing import peek

    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise InputError("--devices names no device", hint="such as --devices cuda:0,cuda:1")
    for name in names:
        kind, _, number = name.partition(":")
        there = torch.cuda.device_count() if kind == "cuda" else 1
        if kind not in ("cpu", "cuda", "mps") or (number and not number.isdecimal()):
            raise InputError(f"unknown device {name!r}", hint="use cpu, cuda, cuda:N or mps")
        if int(number or 0) >= there:
            raise GambesonError(f"device {name!r} is not there: this machine has {there} CUDA devices")
    for job in plan.jobs:
        if peek(job.command, "device") is not None:
            raise InputError(f"row {job.label!r} says --device, and --devices hands them out")
    return names


@contextmanager
def _held(root: Path) -> Iterator[None]:
    """Hold the folder: two sweeps would begin the same runs."""
    from gambeson.engine.run import Run

    root.mkdir(parents=True, exist_ok=True)
    lock = Run(root, {})
    if lock.held:
        raise RunError(f"another sweep runs in {root}", hint="`gambeson sweep FILE --table` shows how far it is")
    with lock.locked():
        yield


def _dry_run(plan: Plan, devices: Sequence[str], as_json: bool) -> None:
    """The commands that would be run, in order."""
    from gambeson.app.sweep_jobs import commands, state

    jobs: list[dict[str, Any]] = [
        {
            "label": job.label,
            "seed": job.seed,
            "run": str(job.path),
            "state": state(job, plan),
            "commands": [["gambeson", *words] for words in commands(job, plan)],
        }
        for job in plan.jobs
    ]
    if as_json:
        print(json.dumps({"sweep": str(plan.file), "root": str(plan.root), "jobs": jobs}, indent=2))
        return
    for job in jobs:
        for words in job["commands"]:
            print(shlex.join(words))
    count = sum(bool(job["commands"]) for job in jobs)
    handed = f", on {', '.join(devices)}" if devices else ""
    print(f"{count} of {len(jobs)} runs are to be made in {plan.root}{handed}; nothing was run", file=sys.stderr)


def _submit(plan: Plan, options: SweepOptions) -> int:
    from gambeson.app.sweep_slurm import parameters_of, submit

    with _held(plan.root):
        jobs, _ = submit(plan, parameters_of(options.slurm, plan.slurm))
    print(f"submitted {len(jobs)} jobs; their logs are in {plan.root}", file=sys.stderr)
    command = ["gambeson", "sweep", str(plan.file), "--root", str(plan.root), "--table"]
    print(f"to see how far they are: {shlex.join(command)}", file=sys.stderr)
    return 0


def _print(plan: Plan, options: SweepOptions, outcome: Outcome | None = None) -> int:
    """Collect the tables, write them into the folder, and print them in the form that is asked for."""
    from gambeson.app import sweep_slurm, sweep_text
    from gambeson.app.sweep_table import collect

    found = collect(plan, options.interval)
    ids = sweep_slurm.submitted(plan)
    queue = sweep_slurm.queue(plan) if ids and outcome is None else {}
    found["failed"] = [
        {"label": job.label, "seed": job.seed, "why": why, "log": str(job.log)}
        for job, why in (outcome.failed if outcome else {}).items()
    ]
    failed = {str(job.path) for job in outcome.failed} if outcome else set()
    for job in found["jobs"]:
        job["state"] = "failed" if job["run"] in failed else job["state"]
    _write(plan.root, found)
    if options.json:
        print(json.dumps({**found, **({"slurm": queue} if queue else {})}, indent=2))
    elif options.markdown:
        print(sweep_text.markdown(found))
    elif options.csv:
        print(sweep_text.comma_separated(found), end="")
    else:
        sweep_text.states(found, queue)
        sweep_text.tables(found)
    if found["rows"]:
        print(f"wrote {plan.root / 'table.md'}, table.csv and table.json", file=sys.stderr)
    if outcome is not None and outcome.failed:
        print(f"{len(outcome.failed)} of {len(plan.jobs)} runs failed:", file=sys.stderr)
        for one, why in outcome.failed.items():
            print(f"  {one.name}: {why}{f' ({one.log})' if one.log.is_file() else ''}", file=sys.stderr)
    return 0


def _write(root: Path, found: dict[str, Any]) -> None:
    """The tables in the folder of the runs, where there is something to say."""
    from gambeson.app import sweep_text
    from gambeson.engine.run import write_json

    if not found["rows"]:
        return
    write_json(root / "table.json", found)
    (root / "table.md").write_text(sweep_text.markdown(found) + "\n")
    (root / "table.csv").write_text(sweep_text.comma_separated(found))


def _stopped(plan: Plan, outcome: Outcome, args: Sequence[str]) -> int:
    """What is left of a sweep that was told to stop, and how it goes on."""
    import signal

    signum = outcome.signum or signal.SIGINT
    left = len(plan.jobs) - len(outcome.done)
    print(
        f"stopped by {signal.Signals(signum).name}: {len(outcome.done)} of {len(plan.jobs)} runs are done, {left} are"
        f" not. Go on with: {shlex.join(['gambeson', 'sweep', *args])}",
        file=sys.stderr,
    )
    for job in outcome.stopped:
        if not (job.path / "run.json").is_file():  # it had not begun to train
            continue
        print(f"  {job.name}: gambeson resume {shlex.quote(str(job.path))}", file=sys.stderr)
    return 128 + signum
