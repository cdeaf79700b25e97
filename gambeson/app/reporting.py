"""`gambeson report`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gambeson.app.options import ReportOptions
from gambeson.app.parsing import Parser, UsageError, options_of, split_words
from gambeson.core.errors import FileError, GambesonError, InputError

if TYPE_CHECKING:
    from gambeson.engine.run import Run

ENDING = ".html"
LARGEST = 64
"""Example images at most."""


def report(args: list[str]) -> int:
    """`gambeson report RUN [RUN...] [options]`."""
    parser = Parser(
        "gambeson report RUN [RUN...]",
        "Write one self-contained page about a run, or about several side by side, and the same as JSON.",
    )
    parser.add(ReportOptions)
    if "-h" in args or "--help" in args:
        parser.parse(["--help"])
    words, rest = split_words(args, parser.flags)
    options = options_of(ReportOptions, parser.parse(rest))
    if not words:
        raise UsageError("report needs a run directory", hint="gambeson report runs/digits-n-lap-1")
    if not 0 <= options.examples <= LARGEST:
        raise InputError(f"--examples must be between 0 and {LARGEST}, got {options.examples}")
    from gambeson.app import build

    runs = [build.open_run(Path(word)) for word in dict.fromkeys(words)]
    page, record = write(
        runs,
        Path(options.out) if options.out else None,
        examples=options.examples,
        data_dir=options.data_dir,
        device=options.device,
    )
    print(page)
    print(f"wrote {page} and {record}", file=sys.stderr)
    return 0


def at_the_end(run: Run, data_dir: str | None = None, device: str = "auto") -> None:
    """Write the page of a run that has just ended, and say where it is, or why there is none."""
    try:
        page, _ = write([run], data_dir=data_dir, device=device)
    except GambesonError as error:
        print(f"no report: {error.message}", file=sys.stderr)
    else:
        print(f"report: {page}")


def write(
    runs: Sequence[Run],
    out: Path | None = None,
    *,
    examples: int = 8,
    data_dir: str | None = None,
    device: str = "auto",
) -> tuple[Path, Path]:
    """Write the page of runs, and the JSON beside it, with a progress bar, or lines off a terminal.

    Args:
        runs: At least one.
        out: The page; default `report.html` in the run, of several `report-NAME-NAME.html` beside the first.
        examples: Test images to attack for the page, 0 for none.
        data_dir: Folder with the data set's files, if it has moved.
        device: Where to attack.

    Returns:
        The two files.

    Raises:
        InputError: The name of the page has another ending than `.html`.
        FileError: The page cannot be written; that its folder is missing is said before any work.
    """
    import json

    from gambeson.app import build, show
    from gambeson.app.report.against import against, labels, overview
    from gambeson.app.report.examples import examples as attacked
    from gambeson.app.report.page import data, html
    from gambeson.app.report.records import read
    from gambeson.app.report.summary import part

    page = out or _default(runs)
    record = page.with_suffix(".json")
    if page.suffix.lower() != ".html":
        raise InputError(f"the page {page} must end in .html", hint="such as --out report.html")
    if not page.parent.is_dir():
        raise FileError(f"cannot write {page}: there is no folder {page.parent}", hint="make it first")
    with show.progress() as bar:
        task = bar.add_task("reading records", total=2 * len(runs) + 1)
        records = [read(run) for run in runs]
        names = labels(records)
        parts = []
        for one, name in zip(records, names, strict=True):
            bar.update(task, description=f"attacking examples of {name}")
            more = []
            if examples and one.checkpoint in one.steps:
                build.use_threads(one.call)
                try:
                    more.append(attacked(one, examples, data_dir, device))
                except GambesonError as error:
                    one.problems.append(f"no examples: {error.message}")
                    print(f"no examples of {one.name}: {error.message}", file=sys.stderr)
            bar.update(task, advance=1, description=f"drawing {name}")
            parts.append(part(one, more))
            bar.advance(task)
        bar.update(task, description="writing the page")
        shared = against(records) if len(records) > 1 else []
        if len(parts) > 1:
            shared.insert(0, overview(parts, names))
        title = names[0] if len(names) == 1 else " against ".join(names)
        text, kept = html(title, parts, shared, names, record.name), data(parts, shared)
    try:
        _replace(page, text)
        _replace(record, json.dumps(kept, indent=2, allow_nan=False) + "\n")
    except OSError as error:
        raise FileError(f"cannot write {page}: {error.strerror}", hint=f"is there a folder {page.parent}?") from None
    return page, record


def _default(runs: Sequence[Run]) -> Path:
    first = runs[0].path
    if len(runs) == 1:
        return first / f"report{ENDING}"
    stem = "-".join(["report", *[run.path.resolve().name for run in runs]])
    return first.parent / (f"{stem}{ENDING}" if len(stem) < 100 else f"report-{len(runs)}-runs{ENDING}")


def _replace(path: Path, text: str) -> None:
    """Write so that the file is old or new and whole at every moment."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)
