"""`gambeson train` and `gambeson resume`."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gambeson.app import presets
from gambeson.app.listing import summary
from gambeson.app.measuring import check_attacks, measure, save_report
from gambeson.app.options import ResumeOptions, TrainOptions
from gambeson.app.parsing import Parser, UsageError, flags_of, options_of, parse_run, peek, split_words
from gambeson.app.recipes import defaults_from, find_recipe, read_yaml, recipes_folder
from gambeson.app.reporting import at_the_end
from gambeson.app.tuning import go_on
from gambeson.core.errors import UnhealthyError
from gambeson.engine.settings import Settings
from gambeson.methods import METHODS, method

if TYPE_CHECKING:
    from gambeson.data import Examples
    from gambeson.engine.run import Run
    from gambeson.engine.trainer import Trainer
    from gambeson.evaluation.evaluate import Report


@dataclass(frozen=True)
class Asked:
    """A command line of `gambeson train` as values.

    Attributes:
        name: The method.
        arguments: Its arguments; `eps` is None where the data set's budget is meant.
        options: What to train on, and where the result goes.
        settings: How to train.
        values: All of it by option name.
    """

    name: str
    arguments: dict[str, Any]
    options: TrainOptions
    settings: Settings
    values: dict[str, Any]


def train(args: list[str]) -> int:
    """`gambeson train METHOD [options]`."""
    asked = understand(args)
    from gambeson.app.processes import together

    with together(asked.options.device) as (rank, device):
        run, code = _train(args, asked, device)
    return _report(run, code, device) if rank == 0 else code


def _train(args: list[str], asked: Asked, device: str) -> tuple[Run, int]:
    """Make the run and train, alone or as one of several processes, of which the first makes it."""
    from gambeson.app import build, show
    from gambeson.core.processes import agreed, rank_and_world, wait_for_all
    from gambeson.data.stored import StoredImages
    from gambeson.engine.run import Run

    options, values = asked.options, asked.values
    free = Run.free_path(Path("runs"), f"{build.data_stem(options.data)}-{asked.name}")
    folder = agreed(Path(options.run) if options.run else free)
    Run.require_new(folder)
    where = build.device(device)
    call = {**call_of(asked), "device": str(where)}
    build.use_threads(call)
    if options.tensorboard:
        show.tensorboard_writer()
    data = build.splits(call)
    build.settle_data(call, data)
    if asked.arguments["eps"] is None:
        asked.arguments["eps"] = data.facts.eps
    trainer = build.trainer(call, data, where)
    kept = {"tensorboard": options.tensorboard, "report": options.report}
    record = {"command": ["gambeson", "train", *args], **kept, **call}
    wait_for_all()  # whoever refuses has done so
    first = rank_and_world()[0] == 0
    if first and isinstance(data.test.x, StoredImages):
        looked_at = data.val, data.test.head(options.test_size)
        show.checking(sum(map(len, looked_at)))
        build.require_decodable(*looked_at)
    wait_for_all()
    if not first:
        run = Run(folder, record)
    else:
        run = Run.create(folder, record)
        show.training(run, trainer, data)
        if options.data.startswith("folder:"):
            show.chosen({key: value for key, value in presets.training(options.data).items() if values[key] == value})
    return run, _fit(run, trainer, data.test, data.facts.class_names)


def understand(args: list[str]) -> Asked:
    """The words after `gambeson train` as values; nothing is read but the recipe.

    Raises:
        UsageError: They are not of the command's form.
        InputError: A setting is outside what is allowed, or there is no such recipe.
        FileError: The recipe cannot be read.
        SystemExit: They ask for help, which is printed.
    """
    config = peek(args, "config")
    file = find_recipe(config) if config else None
    content = read_yaml(file, recipes_folder()) if file else {}
    if "finetune" in content:
        how = content["finetune"]
        raise UsageError(f"{file} is a recipe for fine-tuning", hint=f"gambeson finetune {how} RUN --config {config}")
    words, rest = split_words(args, train_flags())
    if not words and "method" not in content:
        if "-h" in args or "--help" in args:
            print(_train_help(), end="")
            raise SystemExit(0)
        raise UsageError(f"which method? known: {', '.join(METHODS)}", hint="gambeson train n-lap")
    if len(words) > 1:
        raise UsageError(f"train takes one method, got {' '.join(words)}", hint="options begin with --")
    name, function = method(words[0] if words else str(content["method"]))
    parser, method_names = train_parser(name, function, peek(args, "data") or str(content.get("data", "digits")))
    if file:
        parser.set_defaults(defaults_from(parser, file, {k: v for k, v in content.items() if k != "method"}))
    values = parser.parse(rest)
    arguments = {key: values[key] for key in method_names}
    if "eps" not in content and peek(args, "eps") is None:
        arguments["eps"] = None
    return Asked(name, arguments, options_of(TrainOptions, values), options_of(Settings, values), values)


def call_of(asked: Asked) -> dict[str, Any]:
    """The record of the training that is asked for, checked as far as that needs no data.

    Raises:
        InputError: A wrong budget, unknown attacks, or no test images.
    """
    from gambeson.app import build

    call = build.make_call(asked.name, asked.arguments, asked.options, asked.settings)
    if asked.arguments["eps"] is not None:
        build.recipe(call)  # a wrong budget is said before any data is read
    check_attacks(asked.options.attack, asked.options.test_size)
    return call


def resume(args: list[str]) -> int:
    """`gambeson resume RUN`."""
    description = "Go on with an interrupted run, to the bit as if it had not been interrupted."
    path, options = parse_run("resume", description, ResumeOptions, args)
    from gambeson.app import build
    from gambeson.app.processes import require_one, together

    run = build.open_run(path)
    if "finetune" in run.call:
        require_one("gambeson resume of a fine-tuning")
        return go_on(run, options.data_dir, options.device)
    build.require_training(run)
    with together(options.device) as (rank, device):
        code = _resume(run, options.data_dir, device)
    return _report(run, code, device) if rank == 0 else code


def _resume(run: Run, data_dir: str | None, device: str) -> int:
    """Go on, alone or as one of several processes."""
    from gambeson.app import build, show
    from gambeson.core.processes import rank_and_world

    build.use_threads(run.call)
    data = build.splits(run.call, data_dir)
    trainer = build.trainer(run.call, data, build.device(device))
    with run.locked() if rank_and_world()[0] == 0 else nullcontext():
        trainer.resume(run)
    if rank_and_world()[0] == 0:
        show.resuming(run, trainer)
    return _fit(run, trainer, data.test, data.facts.class_names)


def train_parser(name: str, function: Callable[..., Any], data: str) -> tuple[Parser, list[str]]:
    """The parser of `gambeson train NAME` with the data set's presets as defaults, and the method's argument names."""
    parser = Parser(f"gambeson train {name}", (function.__doc__ or "").split("\n\n")[0].replace("%", "%%"))
    parser.add_argument("--config", metavar="FILE", help="recipe in YAML; options on the command line win")
    names = parser.add(function, **presets.METHOD.get((data, name), {}))
    parser.say(
        "eps",
        "Budget, fraction of the pixel range, as 8/255 or 0.03; default the data set's (digits 0.2, CIFAR 8/255).",
    )
    usual = presets.training(data)
    parser.add(Settings, **usual)
    parser.add(TrainOptions, **usual)
    return parser, names


def train_flags() -> set[str]:
    """Options without a value, of any method: needed before it is known which word is the method."""
    schemas: list[Callable[..., Any]] = [*METHODS.values(), Settings, TrainOptions]
    return set().union(*map(flags_of, schemas))


def _fit(run: Run, trainer: Trainer, test: Examples, class_names: Sequence[str]) -> int:
    """Train to the end and measure; of several processes the first one prints and writes."""
    from gambeson.app import build, show
    from gambeson.engine.interruption import Interrupted

    first = trainer.rank == 0
    try:
        with show.training_progress(run, trainer) if first else nullcontext() as listen:
            trainer.fit(run, listen)
    except Interrupted as stopped:
        if first:
            print(f"{stopped}; saved. Go on with: gambeson resume {shlex.quote(str(run.path))}", file=sys.stderr)
        return 128 + stopped.signum
    test = test.head(run.call["test_size"])
    reports: list[tuple[str, Report]] = []
    for name in dict.fromkeys(["best" if run.checkpoint("best").is_file() else "final", "final"]):
        if reports and trainer.best and trainer.best["step"] == trainer.total:
            report, step = reports[0][1], trainer.total  # the last weights are the best ones
        else:
            model, _, name, step = build.load_model(run, name, trainer.device)
            threat = trainer.recipe.threat
            measured = partial(measure, model, test.x, test.y)
            try:
                attacks, kept = run.call["attack"], run.path / "autoattack"
                report = measured(attacks, threat, class_names, quiet=not first, ledger=kept)
            except UnhealthyError as refusal:  # the run is complete: what needs no attack is measured
                if first:
                    show.refused(name, refusal)
                report = measured("clean", threat, class_names, quiet=not first)
        if first:
            found = {"checkpoint": name, "step": step, "data": run.call["data"]["name"], "split": "test"}
            save_report(run, report, found)
        reports.append((name, report))
    if first:
        show.final(run, trainer, reports)
    return 0


def _report(run: Run, code: int, device: str) -> int:
    """Write the page of a run that has come to its end; the exit code."""
    if code == 0 and run.call.get("report"):
        at_the_end(run, run.call["data"]["dir"], device)
    return code


def _train_help() -> str:
    width = max(map(len, METHODS))
    lines = [f"  {name:<{width}}  {summary(function)}" for name, function in METHODS.items()]
    return (
        "usage: gambeson train METHOD [options]\n       gambeson train --config FILE [options]\n\n"
        "Train a model; `gambeson train METHOD --help` shows all options.\n\nmethods:\n" + "\n".join(lines) + "\n"
    )
