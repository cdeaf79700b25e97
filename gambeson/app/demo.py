"""`gambeson demo`: the whole way once, on the handwritten digits that scikit-learn brings."""

from __future__ import annotations

import shlex
import sys
import time
from importlib import import_module
from pathlib import Path

from gambeson.app.options import DemoOptions
from gambeson.app.parsing import Parser, UsageError, options_of, require_positive, split_words


def demo(args: list[str]) -> int:
    """`gambeson demo [options]`."""
    parser = Parser(
        "gambeson demo",
        "Train N-LAP on digits, attack it with AutoAttack, fine-tune it with RiFT, and write a report: a few minutes on"
        " two cores. Every step is a command that you can give yourself, and is printed as such.",
    )
    parser.add(DemoOptions)
    words, rest = split_words(args, parser.flags)
    options = options_of(DemoOptions, parser.parse(rest))
    if words:
        raise UsageError(f"demo takes no {words[0]!r}", hint="gambeson demo --run FOLDER")
    require_positive(options, "test_size")
    from gambeson.engine.run import Run

    folder = Path(options.run) if options.run else Run.free_path(Path("runs"), "demo")
    Run.require_new(folder, hint="name another folder with --run")
    began = time.monotonic()
    for command in steps(folder, options.test_size, options.device):
        print(f"\n$ gambeson {shlex.join(command)}", flush=True)
        name, *words = command
        code: int = getattr(import_module("gambeson.app.commands"), name)(words)
        if code:
            return code
    print(f"took {time.monotonic() - began:.0f} s; open {folder / 'report.html'} in a browser", file=sys.stderr)
    return 0


def steps(folder: Path, test_size: int, device: str) -> list[list[str]]:
    """The commands, in order."""
    base, tuned = str(folder / "n-lap"), str(folder / "n-lap-rift")
    where = ["--device", device]
    return [
        ["train", "n-lap", "--data", "digits", "--run", base, "--no-report", *where],
        ["evaluate", base, "--attack", "autoattack", "--test-size", str(test_size), *where],
        ["finetune", "rift", base, "--run", tuned, "--no-report", *where],
        ["evaluate", tuned, "--checkpoint", "final", "--attack", "autoattack", "--test-size", str(test_size), *where],
        ["report", base, tuned, "--out", str(folder / "report.html"), *where],
    ]
