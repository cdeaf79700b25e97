"""The command `gambeson`: parse, call one function, print. Nothing heavy is imported before it is needed."""

from __future__ import annotations

import json
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from types import ModuleType
from typing import Any, TextIO

from gambeson.core.errors import GambesonError, GambesonWarning, ProcessError, nearest

COMMANDS = {
    "demo": "train, attack, fine-tune and report on digits, in a few minutes: gambeson demo",
    "train": "train a model: gambeson train METHOD [options], or --config FILE",
    "evaluate": "measure a run's clean and robust accuracy: gambeson evaluate RUN --attack clean,fgsm,pgd-50-10",
    "doctor": "check a model and its data before evaluating it: gambeson doctor RUN, or FILE --model NAME --data NAME",
    "diagnose": "look inside a run: cam, criticality, eps, landscape, masking, overfitting, shortcuts, ...",
    "corruptions": "accuracy out of distribution, under common corruptions: gambeson corruptions RUN",
    "finetune": "improve a robust model: gambeson finetune rift RUN",
    "interpolate": "measure the models on the line between two runs: gambeson interpolate RUN RUN",
    "import": "make a run of another's checkpoint: gambeson import FILE --model wrn-34-10 --data cifar10",
    "report": "one page about a run, or several side by side: gambeson report RUN [RUN...]",
    "sweep": "recipes and seeds from one file, and the table over seeds: gambeson sweep FILE",
    "resume": "go on with an interrupted run: gambeson resume RUN",
    "runs": "runs list, or runs compare RUN RUN...",
    "list": "list methods, attacks, models, data, corruptions or recipes",
}

SHARED = ("train", "resume", "evaluate")
"""Commands whose work several processes can share."""

USAGE = """usage: gambeson COMMAND ...

Train, fine-tune, attack and measure adversarially robust image classifiers.

{commands}

`gambeson COMMAND --help` says more; `gambeson train METHOD --help` shows a method's own options.
Start with: gambeson train n-lap
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code: 0, an error's (2 for wrong usage, else 1), 128 + signal when stopped."""
    args = list(sys.argv[1:] if argv is None else argv)
    try:
        code = _run(args)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # `gambeson list methods | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _run(args: list[str]) -> int:
    """Run a command; an error becomes words on standard error, and with --json an object on standard output too."""
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _note
            return _dispatch(args)
    except SystemExit as done:  # the parser printed its help
        return int(done.code or 0)
    except GambesonError as error:
        _print_error(args, error, error.message, error.hint, error.exit_code)
        return _say(f"gambeson: {error}", error.exit_code, shared=not isinstance(error, ProcessError))
    except KeyboardInterrupt as stop:
        words = str(stop) or "interrupted"
        _print_error(args, stop, words, None, 130)
        return _say(words, 130)
    except BrokenPipeError:
        raise
    except Exception as error:  # a fault of the program or the machine: the traceback follows
        _print_error(args, error, str(error), None, 1)
        raise


def _print_error(args: Sequence[str], error: BaseException, words: str, hint: str | None, code: int) -> None:
    """With --json, say what went wrong as an object on standard output; of several processes the first does."""
    if _wants_json(args) and os.environ.get("RANK", "0") == "0":
        found = {"error": words, "hint": hint, "type": type(error).__name__, "exit_code": code}
        print(json.dumps(found, indent=2))


def _wants_json(args: Sequence[str]) -> bool:
    wanted = False
    for arg, following in zip(args, [*args[1:], ""], strict=True):
        name, equals, value = arg.partition("=")
        if name == "--json":
            wanted = (value if equals else following).lower() != "false"
    return wanted


def _dispatch(args: list[str]) -> int:
    if not args or args[0] in ("-h", "--help"):
        width = max(map(len, COMMANDS))
        print(USAGE.format(commands="\n".join(f"  {name:<{width}}  {text}" for name, text in COMMANDS.items())), end="")
        return 0 if args else 2
    if args[0] == "--version":
        from importlib.metadata import version

        print(f"gambeson {version('gambeson')}")
        return 0
    if args[0] not in COMMANDS:
        from gambeson.app.parsing import UsageError

        raise UsageError(f"unknown command {args[0]!r}", hint=nearest(args[0], COMMANDS))
    if "-h" in args or "--help" in args:
        _defer_torch()
    if args[0] not in SHARED:
        from gambeson.app.processes import require_one

        require_one(f"gambeson {args[0]}")
    from gambeson.app import commands
    from gambeson.core.allocator import keep_memory

    keep_memory()
    run: Callable[[list[str]], int] = getattr(commands, args[0] if args[0] in commands.__all__ else f"{args[0]}_")
    return run(args[1:])


class _Deferred(ModuleType):
    """A stand-in that becomes the real module when an attribute is used."""

    def __getattr__(self, name: str) -> Any:
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        return getattr(import_module(self.__name__), name)


def _defer_torch() -> None:
    """Make `import torch` cost nothing until it is used: help needs the signatures of the methods, not torch.

    The standard library's LazyLoader does not serve: a second `import torch` reads the module's `__spec__`, which loads
    it.
    """
    sys.modules.setdefault("torch", _Deferred("torch"))


def _note(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """A warning of the library as a note in one line; any other as Python shows it."""
    if issubclass(category, GambesonWarning):
        print(f"gambeson: note: {message}", file=sys.stderr)
    else:
        print(warnings.formatwarning(message, category, filename, lineno, line), end="", file=file or sys.stderr)


def _say(text: str, code: int, *, shared: bool = True) -> int:
    """Print an error; one that several processes may have met (`shared`) is said once."""
    from gambeson.app.processes import say_once

    say = partial(print, file=sys.stderr, flush=True)
    say_once(text, say) if shared else say(text)
    return code


if __name__ == "__main__":
    sys.exit(main())
