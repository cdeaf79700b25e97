"""The command line of the benchmarks."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path

import torch

from benchmarks import document
from benchmarks.case import Setup, run
from benchmarks.pairs import Clock
from benchmarks.report import CLOCKS, head, machine, record, roof, text
from benchmarks.roofline import measure_rates
from benchmarks.workloads import WORKLOADS
from gambeson.core.allocator import keep_memory
from gambeson.engine.run import write_json

DESCRIPTION = (
    "Timings, paired in one process; `document FILE...` writes the tables of docs/performance.md from records."
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run workloads and print what came; 1 if a guard failed, for then there is no result. A missed goal is one."""
    words = sys.argv[1:] if argv is None else list(argv)
    if words[:1] == ["document"]:
        return document.main(words[1:])
    parser = _parser()
    options = parser.parse_args(words)
    if options.list:
        width = max(map(len, WORKLOADS))
        print("\n".join(f"{name:{width}}  {workload.summary}" for name, workload in WORKLOADS.items()))
        return 0
    for name in ("rounds", "batch_size", "threads"):
        if getattr(options, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1, got {getattr(options, name)}")
    unknown = [name for name in options.workloads if name not in WORKLOADS]
    if unknown:
        parser.error(f"no workload {', '.join(unknown)}; there are {', '.join(WORKLOADS)}")
    torch.set_num_threads(options.threads)
    keep_memory()
    device = torch.device(options.device)
    # With several threads the processor time counts the waiting ones too; of a GPU's work it counts nothing.
    steady = device.type == "cpu" and options.threads == 1
    clock: Clock = options.clock or ("cpu" if steady else "wall")
    setup = Setup(options.batch_size, device, options.seed, options.full, options.compile)
    content = {
        "command": shlex.join(["python", "-m", "benchmarks", *words]),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "clock": clock,
        "rounds": options.rounds,
        "order_seed": options.order_seed,
        "seed": options.seed,
        "batch_size": options.batch_size,
        "machine": machine(device),
        "load_before": _load(),
    }
    bf16 = [torch.bfloat16] * (options.bf16 or device.type == "cuda")
    content["roofline"] = [rate._asdict() for rate in measure_rates(device, [torch.float32, *bf16])]
    print(head(content))
    cases, complete = [], True
    for name in options.workloads or WORKLOADS:
        for case in WORKLOADS[name].cases(setup):
            print(f"... {case.title}", file=sys.stderr, flush=True)
            result = run(case, options.rounds, options.order_seed, device)
            complete &= result.valid
            cases.append(record(name, result))
            print(f"\n{text(result, clock, roof(content))}", flush=True)
    content |= {"load_after": _load(), "cases": cases}
    print("\nThe best rate is the best of float32; memory is that of a call beyond what was there before it.")
    print("A goal is met where three quarters of the rounds keep it.")
    print(f"Load average before and after: {content['load_before']} and {content['load_after']}.")
    if options.json:
        write_json(options.json, content)
    return 0 if complete else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=DESCRIPTION)
    add = parser.add_argument
    add("workloads", nargs="*", metavar="WORKLOAD", help="which; all without one")
    add("--list", action="store_true", help="say what there is, and stop")
    add("--rounds", type=int, default=9, help="rounds after the warm-up (%(default)s)")
    add("--batch-size", type=int, default=64, help="images per batch (%(default)s)")
    add("--compile", action="store_true", help="training steps also with compiled forwards; compiling takes minutes")
    add("--full", action="store_true", help="the papers' widths instead of a quarter of them")
    add("--device", default="cpu", help="%(default)s, or cuda")
    add("--threads", type=int, default=1, help="of torch (%(default)s: the steadiest on a shared machine)")
    add("--clock", choices=list(CLOCKS), help="of the tables; cpu for one thread, else wall; --json has both")
    add("--bf16", action="store_true", help="best rates of bfloat16 too (minutes on a CPU without it)")
    add("--seed", type=int, default=0, help="of weights and images (%(default)s)")
    add("--order-seed", type=int, default=0, help="of the order in every round (%(default)s)")
    add("--json", type=Path, metavar="FILE", help="write all samples")
    return parser


def _load() -> list[float] | None:
    return [round(value, 2) for value in os.getloadavg()] if hasattr(os, "getloadavg") else None
