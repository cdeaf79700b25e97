"""What the terminal shows: progress while training, tables afterwards."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import zip_longest
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from gambeson.app.heartbeat import heartbeat, reached
from gambeson.core.errors import GambesonError
from gambeson.data import Splits
from gambeson.data.stored import StoredImages
from gambeson.engine.history import epoch_means
from gambeson.engine.run import Run
from gambeson.engine.trainer import Trainer
from gambeson.evaluation import Interval, Report, Stage
from gambeson.parts.budget_state import BudgetState

Listener = Callable[[dict[str, Any]], None]
STAMP = "[bold]selected on test[/bold]: these numbers are optimistic"


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Leave it to the command line, which ends quietly; rich would exit with code 1."""
        raise BrokenPipeError


out = _Console(highlight=False)
err = _Console(stderr=True, highlight=False)


def training(run: Run, trainer: Trainer, data: Splits) -> None:
    """What is about to be trained."""
    settings, call = trainer.settings, run.call
    given = {key: value for key, value in call["method"]["args"].items() if value is not None}
    arguments = ", ".join(f"{key}={short(value)}" for key, value in given.items())
    parameters = sum(p.numel() for p in trainer.model.parameters())
    out.print(f"[bold]{call['method']['name']}[/bold]({arguments})", soft_wrap=True)
    out.print(
        f"{escape(data.facts.name)}: {len(data.train):,} train, {len(data.val):,} val, {len(data.test):,} test,"
        f" {_shape(data)}; {call['model']['name']} with {parameters:,} parameters on {trainer.device};"
        f" {settings.epochs} {'epochs' if settings.epochs > 1 else 'epoch'}, batch {settings.batch_size},"
        f" {settings.schedule} lr to {settings.lr:g}, seed {settings.seed}",
        soft_wrap=True,
    )
    if isinstance(data.train.x, StoredImages):
        out.print(_streaming_line(data.train.x, data), soft_wrap=True)
    for part in trainer.parts:
        if isinstance(part, BudgetState):
            out.print(_budget_line(part), soft_wrap=True)
    out.print(f"run directory: {escape(str(run.path))}", soft_wrap=True)
    if settings.compile:
        out.print("compiling: the first step takes minutes; small models and short trainings are faster without")
    if len(data.val) == 0:
        out.print("no validation split: the last weights are kept, nothing is selected")


def checking(count: int) -> None:
    """Say that the images of the other splits are looked at first."""
    err.print(
        f"{count:,} images of validation and test are decoded once, so that a damaged one is found now", soft_wrap=True
    )


def chosen(settings: Mapping[str, Any]) -> None:
    """Say which settings were chosen by the number and the size of the images."""
    if settings:
        options = ", ".join(f"--{key.replace('_', '-')} {short(value)}" for key, value in settings.items())
        out.print(f"chosen by the number and the size of the images: {options}", soft_wrap=True)


def _streaming_line(x: StoredImages, data: Splits) -> str:
    """How a folder is streamed, and what that changes: the normalisation, where it is of a sample."""
    who = f"by {x.workers} worker {'process' if x.workers == 1 else 'processes'}" if x.workers else "by the training"
    measured = data.facts.measured_on
    sample = f"; mean and std are those of {measured:,} of the training images" if measured else ""
    whole = f"{x.nbytes / 1e9:.2f} GB" if x.nbytes >= 1e8 else f"{x.nbytes / 1e6:.2f} MB"
    return f"streamed: images are decoded {who} when a batch needs them ({whole} of training images decoded){sample}"


def _budget_line(part: BudgetState) -> str:
    """What a budget per pixel does, with everything that was left to defaults."""
    spec = part.spec
    words = [f"budget per pixel: {short(spec.eps_low)} outside of the mask {escape(repr(spec.mask))}"]
    if part.site is not None:
        words.append(f"{spec.cam.method} of {escape(part.site.layer)}")
        words.append(
            f"every {spec.refresh} epochs" if spec.refresh > 1 else "every epoch" if spec.refresh else "every batch"
        )
    if spec.assign != "own":
        words.append(f"of other images ({spec.assign})")
    return ", ".join([*words, f"warm-up {part.warmup} {'epoch' if part.warmup == 1 else 'epochs'}"])


def resuming(run: Run, trainer: Trainer) -> None:
    """Where a run goes on."""
    if trainer.step >= trainer.total:
        out.print(f"{escape(str(run.path))} is complete ({trainer.total} steps); evaluating again", soft_wrap=True)
    else:
        out.print(f"{escape(str(run.path))}: going on from step {trainer.step} of {trainer.total}", soft_wrap=True)


@contextmanager
def progress(quiet: bool = False, *, lines: bool = True) -> Iterator[Progress]:
    """A progress bar on standard error that leaves no trace; off a terminal a line now and then instead.

    Args:
        quiet: Show nothing.
        lines: Off a terminal, say how far the work is every half minute.
    """
    columns = (
        TextColumn("{task.description}", markup=False),  # names of runs may hold brackets
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=err, transient=True, disable=quiet or not err.is_terminal) as bar:
        if quiet or err.is_terminal or not lines:
            yield bar
            return
        with heartbeat(lambda line: err.print(escape(line), soft_wrap=True), partial(reached, bar)):
            yield bar


@contextmanager
def training_progress(run: Run, trainer: Trainer, split: str = "val") -> Iterator[Listener]:
    """A listener for `Trainer.fit`: a live bar on a terminal, a line per epoch elsewhere, events on both.

    Args:
        run: What is trained.
        trainer: What trains it.
        split: Where the trainer's validation images come from.
    """
    board = tensorboard_writer()(str(run.path / "tensorboard")) if run.call.get("tensorboard") else None
    seen: dict[str, Any] = {}
    validated = len(trainer.val) > 0
    lines: list[dict[str, Any]] = []  # of the training, in this epoch
    began = trainer.step
    with progress(lines=False) as bar:  # off a terminal there is a line per epoch
        task = bar.add_task("training", total=trainer.total, completed=trainer.step)

        def listen(row: dict[str, Any]) -> None:
            nonlocal began
            seen.update(row)
            if len(row) == 1:
                bar.update(task, completed=row["step"])
                return
            if "train/loss" in row:
                lines.append(row)
                seen.update({"train/loss": epoch_means(lines, began)[-1]["train/loss"]})
                if float(row["epoch"]).is_integer():
                    began = row["step"]
                    lines.clear()
            if board is not None:
                for key, value in row.items():
                    if isinstance(value, (int, float)) and key not in ("step", "epoch", "seconds"):
                        board.add_scalar(key, value, row["step"])
            if "event" in row:
                err.print(f"[bold red]{row['event']}[/bold red] at step {row['step']}{_probe(row)}")
            bar.update(task, description=_line(seen, split))
            last = "val/clean_acc" in row if validated else "train/loss" in row and float(row["epoch"]).is_integer()
            if last and not err.is_terminal:
                err.print(f"epoch {row['epoch']:.0f}/{trainer.settings.epochs}  {_line(seen, split)}", soft_wrap=True)

        yield listen
    if board is not None:
        board.close()


def report(found: Report, title: str, *, per_class: bool = False) -> None:
    """The table of an evaluation."""
    out.print(f"{escape(title)}, {budget(found)}", soft_wrap=True)
    table = new_table("attack", "accuracy, % [95 %]")
    for name in found.outcomes:
        table.add_row(name, interval(found.accuracy(name)))
    if len(found.outcomes) > 2:
        table.add_row("worst of all", interval(found.worst()), style="bold")
    print_table(table)
    if found.settings.get("ensembles"):
        print_table(_stage_table(found.settings["ensembles"]))
        _say_precision(found.settings["ensembles"])
    if "aa-preview" in found.outcomes:
        out.print("aa-preview is an upper bound of the accuracy under AutoAttack, and is not AutoAttack", style="dim")
    if per_class:
        print_table(_class_table(found))
    warn_of_failures(found)


def stage(name: str, found: Stage) -> None:
    """A line about an attack of an ensemble that is through."""
    fooled = f"{found.attack} fooled {found.fell:,} of {found.standing:,} in {found.seconds:.1f} s"
    kept = f"; of the {found.standing:,}, {found.kept:,} had been attacked before" if found.kept else ""
    err.print(f"{name}: {fooled}, {found.left:,} left{kept}", soft_wrap=True)


def _say_precision(ensembles: Mapping[str, Mapping[str, Any]]) -> None:
    """Name the ensembles that searched on a folded copy, or in less than the model's precision."""
    folded = [name for name, found in ensembles.items() if found.get("folded")]
    if folded:
        count = ensembles[folded[0]]["folded"]
        said = f"searched on a copy with {count} BatchNorms folded into convolutions; the model confirmed every fall"
        out.print(f"{', '.join(folded)} {said}", style="dim", soft_wrap=True)
    reduced = [name for name, found in ensembles.items() if found.get("search_dtype")]
    if reduced:
        names, one = ", ".join(reduced), ensembles[reduced[0]]
        said = f"searched in {one['search_dtype']}; every fall was confirmed in {one['confirmed_in']}"
        out.print(f"{names} {said}", soft_wrap=True)


def _stage_table(ensembles: Mapping[str, Mapping[str, Any]]) -> Table:
    """What every attack of every ensemble did."""
    table = new_table(
        "ensemble", "attack", "attacked", "fell", "accuracy, %", "forwards", "backwards", "seconds", left=2
    )
    for name, found in ensembles.items():
        for one in found["stages"]:
            counts = [f"{one[key]:,}" for key in ("standing", "fell")]
            passes = [f"{one[key]:,}" for key in ("forwards", "backwards")]
            accuracy = f"{100 * one['left'] / found['n']:.1f}"
            table.add_row(name, one["attack"], *counts, accuracy, *passes, f"{one['seconds']:.1f}")
    return table


def warn_of_failures(found: Report) -> None:
    """Say for how many examples an attack returned no image."""
    for name, count in found.settings.get("failed", {}).items():
        err.print(
            f"[bold red]{name} returned NaN or infinite pixels for {count} examples[/bold red]; their clean images were"
            " judged. The model's gradient is broken: this accuracy means little."
        )


def refused(name: str, refusal: GambesonError) -> None:
    """Say why the weights of a finished training were not attacked."""
    err.print(f"[bold red]{name} was not attacked[/bold red]: {escape(refusal.message)}", soft_wrap=True)
    if refusal.hint:
        err.print(f"hint: {escape(refusal.hint)}", soft_wrap=True)


def final(run: Run, trainer: Trainer, reports: Sequence[tuple[str, Report]]) -> None:
    """The table at the end of a training."""
    first = reports[0][1]
    attacks = list(dict.fromkeys(name for _, found in reports for name in found.outcomes))
    out.print(f"\naccuracy on the test set, {budget(first)}")
    table = new_table("weights", *[f"{name}, % [95 %]" for name in attacks])
    for label, found in reports:
        note = f"best (step {trainer.best['step']})" if label == "best" and trainer.best else label
        table.add_row(note, *[interval(found.accuracy(name)) if name in found.outcomes else "-" for name in attacks])
    print_table(table)
    for _, found in reports:
        warn_of_failures(found)
    note = "[..]: Wilson 95 % intervals."
    if reports[0][0] == "best":
        by = "PGD-10" if trainer.select == "val/pgd10_acc" else "clean"
        note += f" `best` was selected by {by} accuracy on the validation split, never on test."
    out.print(note, style="dim", markup=False, soft_wrap=True)
    out.print(f"trained in {trainer.elapsed:.1f} s. Next:", style="dim")
    for command in (
        f"gambeson evaluate {shlex.quote(str(run.path))} --attack pgd-50-10 --per-class",
        f"gambeson runs compare {shlex.quote(str(run.path))} ANOTHER",
    ):
        out.print(f"  {escape(command)}", soft_wrap=True)


def overview(rows: Sequence[Mapping[str, Any]], root: str) -> None:
    """The table of `runs list`."""
    if not rows:
        out.print(
            f"no runs in {escape(root)}; start one with `gambeson train n-lap`, or name their folder with --root",
            soft_wrap=True,
        )
        return
    head = ("run", "method", "data", "state", "val\nclean", "val\npgd-10", "test\nclean", "test\nworst")
    cells_of = []
    for row in rows:
        shown = [value for key, value in row.items() if key not in ("model", "selection")]
        cells = [f"{100 * value:.1f}" if isinstance(value, float) else value for value in shown]
        cells[0] += " *" * (row["selection"] == "test")
        cells_of.append(["-" if cell is None else str(cell) for cell in cells])
    if len(rows) > MANY:
        _long(head, cells_of, left=4)
    else:
        table = new_table(*head, left=4)
        for cells in cells_of:
            table.add_row(*map(escape, cells))
        print_table(table)
    if any(row["selection"] == "test" for row in rows):
        out.print(f"* {STAMP}", soft_wrap=True)


def stamp(selection: Mapping[str, Any] | None, name: str | None = None) -> None:
    """Say beside the numbers of a run, of several the one called `name`, that it was selected on the test set."""
    if selection and selection.get("split") == "test":
        out.print(f"{escape(name)}: {STAMP}" if name else STAMP, soft_wrap=True)


def names(topic: str, rows: Mapping[str, str]) -> None:
    """A list of names with what they are."""
    out.print(f"[bold]{topic}[/bold]")
    width = max(map(len, rows), default=0)
    for name, text in rows.items():
        out.print(f"  {name:<{width}}  {escape(text)}", soft_wrap=True)


def _shape(data: Splits) -> str:
    return f"{data.facts.channels}x{data.facts.size}x{data.facts.size}"


MANY = 200
"""Rows of a table beyond which its lines are made here: rich takes two milliseconds a row."""


def _long(head: Sequence[str], rows: Sequence[Sequence[str]], left: int) -> None:
    """A long table, in the form of `print_table`."""
    titles = [list(line) for line in zip_longest(*[title.split("\n")[::-1] for title in head], fillvalue="")][::-1]
    widths = [max(map(len, column)) for column in zip(*titles, *rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        sides = [str.ljust if place < left else str.rjust for place in range(len(cells))]
        return "  ".join(side(cell, width) for side, cell, width in zip(sides, cells, widths, strict=True)).rstrip()

    rule = "─" * (sum(widths) + 2 * (len(widths) - 1))
    print("\n".join(["", *map(line, titles), rule, *map(line, rows), ""]), file=out.file)


def print_table(table: Table) -> None:
    """Print a table at the width it needs: on a narrow terminal lines wrap, but no number is cut."""
    needed = out.measure(table, options=out.options.update(max_width=10_000)).maximum
    (out if needed <= out.width else _Console(width=needed, highlight=False)).print(table)


def new_table(*columns: str, left: int = 1) -> Table:
    """A table with its first `left` columns aligned at the left, the others, of numbers, at the right."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for number, column in enumerate(columns):
        table.add_column(escape(column), justify="left" if number < left else "right", no_wrap=True)
    return table


def budget(found: Report) -> str:
    """The norm, eps and n of a report."""
    return f"{found.settings['norm']} eps {short(found.settings['eps'])}, n = {len(found.y)}"


def interval(found: Interval) -> str:
    """An accuracy and its interval in percent."""
    return escape(f"{100 * found.value:.1f} [{100 * found.low:.1f}, {100 * found.high:.1f}]")


def _class_table(found: Report) -> Table:
    table = new_table("class", *[f"{name}, % [95 %]" for name in found.outcomes])
    columns = [found.per_class(name) for name in found.outcomes]
    for number, label in enumerate(found.class_names):
        table.add_row(escape(label), *[interval(row) if (row := column[number]) else "-" for column in columns])
    return table


def _line(seen: Mapping[str, Any], split: str) -> str:
    parts = []
    if "train/loss" in seen:
        parts.append(f"loss {seen['train/loss']:.3f}")
    if "val/clean_acc" in seen and "val/pgd10_acc" not in seen:
        parts.append(f"{split} clean {seen['val/clean_acc']:.1%}")
    if "val/pgd10_acc" in seen:
        parts.append(f"{split} clean {seen['val/clean_acc']:.1%} pgd-10 {seen['val/pgd10_acc']:.1%}")
    if "probe/gap" in seen:
        parts.append(f"fgsm-pgd gap {100 * seen['probe/gap']:.0f}")
    return "  ".join(parts) or "training"


def _probe(row: Mapping[str, Any]) -> str:
    if "probe/gap" not in row:
        return ""
    return (
        f": FGSM accuracy {row['probe/fgsm_acc']:.1%}, PGD-10 accuracy {row['probe/pgd10_acc']:.1%} on the probe batch"
    )


def short(value: Any) -> str:
    """A value for a line of text: a budget of whole grey levels as a fraction of 255."""
    if isinstance(value, float):
        grey = value * 255
        return f"{round(grey)}/255" if 0 < grey <= 33 and abs(grey - round(grey)) < 1e-9 else f"{value:g}"
    return str(value)


def tensorboard_writer() -> Any:
    """TensorBoard's SummaryWriter.

    Raises:
        GambesonError: TensorBoard is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise GambesonError("TensorBoard is not installed", hint="pip install 'gambeson[tensorboard]'") from None
    return SummaryWriter
