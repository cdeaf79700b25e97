"""`gambeson runs` and `gambeson list`."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gambeson.app.options import RunsOptions
from gambeson.app.parsing import Parser, UsageError, options_of, split_words
from gambeson.app.recipes import recipes_folder
from gambeson.core.errors import FileError, nearest
from gambeson.methods import METHODS


def runs(args: list[str]) -> int:
    """`gambeson runs list` and `gambeson runs compare RUN RUN...`."""
    parser = Parser("gambeson runs list|compare [RUN...]", "List the runs of a folder, or compare runs side by side.")
    parser.add(RunsOptions)
    if "-h" in args or "--help" in args:
        print(parser.format_help(), end="")
        return 0
    words, rest = split_words(args, parser.flags)
    options = options_of(RunsOptions, parser.parse(rest))
    if not words or words[0] not in ("list", "compare"):
        hint = nearest(words[0], ("list", "compare")) if words else None
        raise UsageError("runs needs `list`, or `compare` and at least two runs", hint=hint)
    from gambeson.app import build, compare, show, side_by_side

    if words[0] == "list":
        if len(words) > 1:
            raise UsageError(f"runs list takes no further words, got {' '.join(words[1:])}", hint="use --root FOLDER")
        if not Path(options.root).is_dir() and options.root != RunsOptions.root:
            raise FileError(f"there is no folder {options.root}")
        rows = compare.overview(Path(options.root))
        print(json.dumps(rows, indent=2)) if options.json else show.overview(rows, options.root)
        return 0
    found = [build.open_run(Path(word)) for word in words[1:]]
    if options.plot and found:
        from gambeson.app.plots import curves

        curves(found, Path(options.plot))
        print(f"wrote {options.plot}", file=sys.stderr)
    if len(found) == 1 and options.plot:
        return 0
    if len(found) < 2:
        raise UsageError("runs compare needs at least two runs, or one with --plot FILE")
    comparison = compare.compare(found)
    print(json.dumps(comparison, indent=2)) if options.json else side_by_side.comparison(comparison)
    return 0


def list_(args: list[str]) -> int:
    """`gambeson list methods|attacks|models|data|corruptions|recipes`."""
    topics: dict[str, Callable[[], dict[str, str]]] = {
        "methods": lambda: {name: summary(f) for name, f in METHODS.items()},
        "attacks": _attacks,
        "models": _models,
        "data": _data,
        "corruptions": _corruptions,
        "recipes": _recipes,
    }
    if "-h" in args or "--help" in args:
        print(f"usage: gambeson list {{{','.join(topics)}}}\n\nPrint the names that the other commands understand.")
        return 0
    for word in args:
        if word not in topics:
            raise UsageError(f"cannot list {word!r}", hint=nearest(word, topics))
    from gambeson.app import show

    for topic in args or topics:
        show.names(topic, topics[topic]())
    return 0


def summary(function: Callable[..., Any]) -> str:
    """The first paragraph of a docstring, in one line."""
    return " ".join((function.__doc__ or "").split("\n\n")[0].split())


def _attacks() -> dict[str, str]:
    from gambeson.evaluation import ATTACKS

    return ATTACKS


def _models() -> dict[str, str]:
    from gambeson.models import MODELS

    return {name: entry.summary for name, entry in MODELS.items()}


def _data() -> dict[str, str]:
    from gambeson.data import DATASETS

    return dict(DATASETS)


def _corruptions() -> dict[str, str]:
    from gambeson.data import CORRUPTIONS

    return CORRUPTIONS


def _recipes() -> dict[str, str]:
    root = recipes_folder()
    found = {}
    for path in root.rglob("*.yaml"):
        first = path.read_text().splitlines()[0]
        found[str(path.relative_to(root).with_suffix(""))] = first.lstrip("# ")
    return dict(sorted(found.items()))
