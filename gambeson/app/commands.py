"""The commands: each reads its words, calls the library and prints. Torch is imported only once there is work to do."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gambeson.app import presets
from gambeson.app.options import EvaluateOptions, ResumeOptions, RunsOptions, TrainOptions
from gambeson.app.parsing import Parser, UsageError, flags_of, peek, read_yaml, split_words
from gambeson.core.errors import InputError, nearest
from gambeson.engine.settings import Settings
from gambeson.methods import METHODS, method

if TYPE_CHECKING:
    from gambeson.engine.run import Run
    from gambeson.engine.trainer import Trainer
    from gambeson.evaluation.evaluate import Report

Args = list[str]


def train(args: Args) -> int:
    """`gambeson train METHOD [options]`."""
    config = peek(args, "config")
    file = find_recipe(config) if config else None
    content = read_yaml(file, recipes_folder()) if file else {}
    words, rest = split_words(args, _train_flags())
    if not words and "method" not in content:
        if "-h" in args or "--help" in args:
            print(_train_help(), end="")
            return 0
        raise UsageError(f"which method? known: {', '.join(METHODS)}", hint="gambeson train n-lap")
    name, function = method(words[0] if words else str(content["method"]))
    if len(words) > 1:
        raise UsageError(f"train takes one method, got {' '.join(words)}", hint="options begin with --")
    parser, method_names = train_parser(name, function, peek(args, "data") or str(content.get("data", "digits")))
    if file:
        rest = _without(rest, "config")
        parser.set_defaults(_checked(parser, file, {k: v for k, v in content.items() if k != "method"}))
    values = parser.parse(rest)

    from gambeson.app import build, show
    from gambeson.engine.run import Run

    options = TrainOptions(**{f.name: values[f.name] for f in fields(TrainOptions)})
    settings = Settings(**{f.name: values[f.name] for f in fields(Settings)})
    arguments = {key: values[key] for key in method_names}
    if "eps" not in content and peek(args, "eps") is None:
        arguments["eps"] = None
    folder = Path(options.run) if options.run else build.new_run_path(Path("runs"), f"{_stem(options.data)}-{name}")
    Run.require_new(folder)
    where = build.device(options.device)
    call = {**build.make_call(name, arguments, options, settings), "device": str(where)}
    if arguments["eps"] is not None:
        build.recipe(call)  # a wrong budget is said before any data is read
    _check_attacks(options.attack, options.test_size)
    if options.tensorboard:
        show.tensorboard_writer()
    data = build.splits(call)
    if arguments["eps"] is None:
        arguments["eps"] = data.facts.eps
    trainer = build.trainer(call, data, where)
    run = Run.create(folder, {"command": ["gambeson", "train", *args], "tensorboard": options.tensorboard, **call})
    show.training(run, trainer, data)
    return _fit(run, trainer, data.test.x, data.test.y, data.facts.class_names)


def resume(args: Args) -> int:
    """`gambeson resume RUN`."""
    parser = Parser(
        "gambeson resume RUN", "Go on with an interrupted run, to the bit as if it had not been interrupted."
    )
    parser.add(ResumeOptions)
    path, rest = _one_path(args, parser, "resume")
    options = ResumeOptions(**_only(parser.parse(rest), ResumeOptions))
    from gambeson.app import build, show

    run = build.open_run(Path(path))
    data = build.splits(run.call, options.data_dir)
    trainer = build.trainer(run.call, data, build.device(options.device))
    with run.locked():
        trainer.resume(run)
    show.resuming(run, trainer)
    return _fit(run, trainer, data.test.x, data.test.y, data.facts.class_names)


def evaluate(args: Args) -> int:
    """`gambeson evaluate RUN [options]`."""
    parser = Parser(
        "gambeson evaluate RUN", "Measure clean and robust accuracy; outcomes per example are kept in the run."
    )
    parser.add(EvaluateOptions)
    path, rest = _one_path(args, parser, "evaluate")
    options = EvaluateOptions(**_only(parser.parse(rest), EvaluateOptions))
    _check_attacks(options.attack, options.test_size)
    from gambeson.app import build, show
    from gambeson.core.threat import create_threat
    from gambeson.data import load

    if options.split not in ("test", "val"):
        raise InputError(f"unknown split {options.split!r}", hint="known: test, val")
    if options.batch_size < 1:
        raise InputError(f"batch_size must be at least 1, got {options.batch_size}")
    run = build.open_run(Path(path))
    threat = build.recipe(run.call).threat
    if options.eps is not None or options.norm is not None:
        threat = create_threat(options.norm or threat.norm, float(threat.eps) if options.eps is None else options.eps)
    model, task, name = build.load_model(run, options.checkpoint, build.device(options.device))
    if options.data:
        size = task.size if options.data.startswith("folder:") else None
        splits = load(options.data, options.data_dir, size=size, val_fraction=0 if options.split == "test" else 0.05)
    else:
        splits = build.splits(run.call, options.data_dir)
    facts = splits.facts
    if (facts.num_classes, facts.channels, facts.size) != (task.num_classes, task.channels, task.size):
        raise InputError(
            f"the checkpoint takes {task.channels}x{task.size}x{task.size} images of {task.num_classes} classes,"
            f" {facts.name} has {facts.channels}x{facts.size}x{facts.size} images of {facts.num_classes}"
        )
    examples = splits.test if options.split == "test" else splits.val
    if len(examples) == 0:
        raise InputError(
            f"the {options.split} split is empty: the run held nothing out", hint="evaluate the test split"
        )
    if options.test_size is not None:
        examples = examples.head(options.test_size)
    report = measure(
        model,
        examples.x,
        examples.y,
        options.attack,
        threat,
        facts.class_names,
        options.batch_size,
        options.seed,
        options.json,
    )
    described = {"checkpoint": name, "data": facts.name, "split": options.split}
    record = save_report(run, report, described)
    if options.json:
        print(json.dumps(record, indent=2))
    else:
        show.report(
            report, f"{run.path.name}, checkpoint {name}, {facts.name} {options.split}", per_class=options.per_class
        )
    return 0


def runs(args: Args) -> int:
    """`gambeson runs list` and `gambeson runs compare RUN RUN...`."""
    parser = Parser("gambeson runs list|compare [RUN...]", "List the runs of a folder, or compare runs side by side.")
    parser.add(RunsOptions)
    if "-h" in args or "--help" in args:
        print(parser.format_help(), end="")
        return 0
    words, rest = split_words(args, parser.flags)
    options = RunsOptions(**_only(parser.parse(rest), RunsOptions))
    if not words or words[0] not in ("list", "compare"):
        raise UsageError("runs needs `list`, or `compare` and at least two runs")
    from gambeson.app import build, compare, show

    if words[0] == "list":
        if len(words) > 1:
            raise UsageError(f"runs list takes no further words, got {' '.join(words[1:])}", hint="use --root FOLDER")
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
    print(json.dumps(comparison, indent=2)) if options.json else show.comparison(comparison)
    return 0


def list_(args: Args) -> int:
    """`gambeson list methods|attacks|models|data|recipes`."""
    topics: dict[str, Callable[[], dict[str, str]]] = {
        "methods": lambda: {name: _summary(f) for name, f in METHODS.items()},
        "attacks": _attacks,
        "models": _models,
        "data": _data,
        "recipes": _recipes,
    }
    if "-h" in args or "--help" in args:
        print(f"usage: gambeson list {{{','.join(topics)}}}\n\nPrint the names that the other commands understand.")
        return 0
    if len(args) > 1 or (args and args[0] not in topics):
        wrong = args[-1] if len(args) > 1 else args[0]
        raise UsageError(f"cannot list {wrong!r}", hint=nearest(wrong, topics))
    from gambeson.app import show

    for topic in args or topics:
        show.names(topic, topics[topic]())
    return 0


def train_parser(name: str, function: Callable[..., Any], data: str) -> tuple[Parser, list[str]]:
    """The parser of `gambeson train NAME` with the data set's presets as defaults, and the method's argument names."""
    parser = Parser(f"gambeson train {name}", (function.__doc__ or "").split("\n\n")[0].replace("%", "%%"))
    parser.add_argument("--config", metavar="FILE", help="recipe in YAML; options on the command line win")
    names = parser.add(function, **presets.METHOD.get((data, name), {}))
    parser.say(
        "eps",
        "Budget, fraction of the pixel range, as 8/255 or 0.03; default the data set's (digits 0.2, CIFAR 8/255).",
    )
    parser.add(Settings, **presets.TRAINING.get(data, {}))
    parser.add(TrainOptions, **presets.TRAINING.get(data, {}))
    return parser, names


def find_recipe(name: str) -> Path:
    """A recipe file by path, or by its name below the recipes that come along (`lap/cifar10-n-eps8`)."""
    path = Path(name)
    if path.is_file():
        return path
    for inside in (recipes_folder() / name, recipes_folder() / f"{name}.yaml"):
        if inside.is_file():
            return inside
    return path


def recipes_folder() -> Path:
    """Where the recipes that come along lie: in the installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parents[1]
    return package / "recipes" if (package / "recipes").is_dir() else package.parent / "recipes"


def measure(
    model: Any,
    x: Any,
    y: Any,
    attacks: str,
    threat: Any,
    class_names: Sequence[str],
    batch_size: int = 256,
    seed: int = 0,
    quiet: bool = False,
) -> Report:
    """Evaluate with a progress bar on the terminal."""
    from gambeson.app import show
    from gambeson.evaluation import evaluate as run_evaluation

    names = [word.strip() for word in attacks.split(",") if word.strip()]
    with show.progress(quiet) as bar:
        total = len(y) * len({"clean", *names})
        task = bar.add_task("evaluating", total=total)
        return run_evaluation(
            model,
            x,
            y,
            names,
            threat,
            num_classes=len(class_names),
            class_names=class_names,
            batch_size=batch_size,
            seed=seed,
            progress=lambda done: bar.advance(task, done),
        )


def save_report(run: Run, report: Report, described: dict[str, Any]) -> dict[str, Any]:
    """Keep a report in the run: JSON, and the outcomes per example beside it. Nothing older is overwritten."""
    import numpy as np

    from gambeson.engine.run import versions, write_json

    record = {**described, **report.to_dict(), "versions": versions()}
    stem = f"{described['checkpoint']}-{described['split']}-" + "-".join(report.outcomes).replace("clean-", "")
    folder, number = run.path / "evaluations", 1
    while (folder / f"{stem}-{number}.json").exists():
        number += 1
    arrays = {"y": report.y.numpy(), **{name: correct.numpy() for name, correct in report.outcomes.items()}}
    np.savez_compressed(folder / f"{stem}-{number}.npz", allow_pickle=False, **arrays)
    write_json(folder / f"{stem}-{number}.json", record)
    return record


def _fit(run: Run, trainer: Trainer, x: Any, y: Any, class_names: Sequence[str]) -> int:
    from gambeson.app import build, show
    from gambeson.engine.trainer import Interrupted

    try:
        with show.training_progress(run, trainer) as listen:
            trainer.fit(run, listen)
    except Interrupted as stopped:
        print(f"{stopped}; saved. Go on with: gambeson resume {run.path}", file=sys.stderr)
        return 128 + stopped.signum
    count = run.call["test_size"]
    reports: list[tuple[str, Report]] = []
    for name in dict.fromkeys(["best" if run.checkpoint("best").is_file() else "final", "final"]):
        if reports and trainer.best and trainer.best["step"] == trainer.total:
            report = reports[0][1]  # the last weights are the best ones
        else:
            model, _, name = build.load_model(run, name, trainer.device)
            report = measure(model, x[:count], y[:count], run.call["attack"], trainer.recipe.threat, class_names)
        save_report(run, report, {"checkpoint": name, "data": run.call["data"]["name"], "split": "test"})
        reports.append((name, report))
    show.final(run, trainer, reports)
    return 0


def _check_attacks(names: str, size: int | None) -> None:
    from gambeson.evaluation import parse_attack

    if size is not None and size < 1:
        raise InputError(f"--test-size must be at least 1, got {size}")

    for name in names.split(","):
        if name.strip():
            parse_attack(name)


def _checked(parser: Parser, file: Path, content: dict[str, Any]) -> dict[str, Any]:
    known = {action.dest for action in parser._actions} - {"help", "config", "print_config"}
    for key in content:
        if str(key).replace("-", "_") not in known:
            raise UsageError(f"{file}: unknown setting {key!r}", hint=nearest(str(key), known))
    words = [f"--{key}={_word(value)}" for key, value in content.items()]
    values = parser.parse(words)
    return {key.replace("-", "_"): values[key.replace("-", "_")] for key in content}


def _word(value: Any) -> str:
    return json.dumps(value) if not isinstance(value, str) else value


def _without(args: Args, option: str) -> Args:
    result, skip = [], False
    for arg in args:
        if skip:
            skip = False
        elif arg == f"--{option}":
            skip = True
        elif not arg.startswith(f"--{option}="):
            result.append(arg)
    return result


def _only(values: dict[str, Any], schema: type) -> dict[str, Any]:
    return {f.name: values[f.name] for f in fields(schema)}


def _one_path(args: Args, parser: Parser, command: str) -> tuple[str, Args]:
    if "-h" in args or "--help" in args:
        return "", ["--help"]
    words, rest = split_words(args, parser.flags)
    if len(words) != 1:
        raise UsageError(
            f"{command} needs one run directory, got {len(words)}", hint=f"gambeson {command} runs/digits-n-lap-1"
        )
    return words[0], rest


def _stem(data: str) -> str:
    kind, _, path = data.partition(":")
    return f"{kind}-{Path(path).stem}" if path else kind


def _summary(function: Callable[..., Any]) -> str:
    return (function.__doc__ or "").strip().splitlines()[0]


def _train_flags() -> set[str]:
    """Options without a value, of any method: needed before it is known which word is the method."""
    schemas: list[Callable[..., Any]] = [*METHODS.values(), Settings, TrainOptions]
    return set().union(*map(flags_of, schemas))


def _train_help() -> str:
    width = max(map(len, METHODS))
    lines = [f"  {name:<{width}}  {_summary(function)}" for name, function in METHODS.items()]
    return (
        "usage: gambeson train METHOD [options]\n       gambeson train --config FILE [options]\n\n"
        "Train a model; `gambeson train METHOD --help` shows all options.\n\nmethods:\n" + "\n".join(lines) + "\n"
    )


def _attacks() -> dict[str, str]:
    from gambeson.evaluation import ATTACKS

    return ATTACKS


def _models() -> dict[str, str]:
    from gambeson.models import MODELS

    return {name: entry.summary for name, entry in MODELS.items()}


def _data() -> dict[str, str]:
    from gambeson.data import DATASETS

    return dict(DATASETS)


def _recipes() -> dict[str, str]:
    root = recipes_folder()
    found = {}
    for path in sorted(root.rglob("*.yaml")):
        first = path.read_text().splitlines()[0]
        found[str(path.relative_to(root).with_suffix(""))] = first.lstrip("# ")
    return found
