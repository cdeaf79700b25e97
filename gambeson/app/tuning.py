"""`gambeson finetune`: RiFT and its ablations, as runs of their own."""

from __future__ import annotations

import shlex
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gambeson.app.critical import choose_split, protocol_of, search
from gambeson.app.importing import import_weights
from gambeson.app.measuring import attack_names, check_attacks, measure, save_report, stored_record
from gambeson.app.options import ImportOptions, RiftOptions
from gambeson.app.parsing import Parser, UsageError, options_of, peek, split_words
from gambeson.app.recipes import defaults_from, find_recipe, read_yaml, recipes_folder
from gambeson.app.reporting import at_the_end
from gambeson.core.errors import InputError, RunError, nearest, require_known
from gambeson.engine.settings import Settings

if TYPE_CHECKING:
    from torch import Tensor, nn

    from gambeson.core.types import Task
    from gambeson.data import Splits
    from gambeson.engine.run import Run

TITLES = {
    "rift": "Fine-tune the layer that robustness needs least on clean images, then interpolate (RiFT, ICCV 2023).",
    "bn": "RiFT without fine-tuning: only BatchNorm's running statistics move, the learning rate is 0.",
}
SETTINGS: dict[str, Any] = {
    "epochs": 10,
    "lr": 0.001,
    "schedule": "piecewise",
    "milestones": (0.5,),
    "fill": "reflect",
}
"""The release's settings where they differ from those of training."""
UNUSED = {"on_overfitting", "probe_every", "val_every", "momentum_low", "snapshots"}


@dataclass(frozen=True)
class Asked:
    """A command line of `gambeson finetune HOW` as values.

    Attributes:
        words: The run to start from; nothing where that is a file.
        options: What to fine-tune.
        settings: How to train.
        values: All of it by option name.
    """

    words: list[str]
    options: RiftOptions
    settings: Settings
    values: dict[str, Any]


def finetune(args: list[str]) -> int:
    """`gambeson finetune rift|bn RUN [options]`."""
    if args and args[0] in TITLES:
        return _start(args[0], args[1:])
    if "-h" in args or "--help" in args:
        lines = "\n".join(f"  {name:<5} {text}" for name, text in TITLES.items())
        print(f"usage: gambeson finetune HOW RUN [options]\n\nImprove a robust model.\n\n{lines}")
        print("\n`gambeson finetune HOW --help` shows the options.")
        return 0
    if not args or args[0].startswith("-"):
        raise UsageError(
            f"finetune how? known: {', '.join(TITLES)}", hint="gambeson finetune rift runs/digits-pgd-at-1"
        )
    raise UsageError(f"unknown way of fine-tuning {args[0]!r}", hint=nearest(args[0], TITLES))


def finetune_parser(how: str, *, foreign: bool = False) -> Parser:
    """The parser of `gambeson finetune HOW RUN`, or, with `foreign`, of `gambeson finetune HOW --weights FILE`."""
    parser = Parser(f"gambeson finetune {how} {'' if foreign else 'RUN'}".rstrip(), TITLES[how])
    if foreign:
        parser.add(ImportOptions, skip={"run", "data_dir"})
    fixed = {"module", "protocol", "mrc_split", "mrc_size", "bn"} if how == "bn" else set()
    parser.add(RiftOptions, skip=fixed)
    parser.say("run", f"Run directory to create, or to go on with; default RUN-{how}-N.")
    parser.add(Settings, skip=UNUSED | ({"lr"} if how == "bn" else set()), **SETTINGS)
    return parser


def understand(how: str, args: list[str]) -> Asked:
    """The words after `gambeson finetune HOW` as values; nothing is read but the recipe.

    Raises:
        UsageError: They are not of the command's form.
        InputError: A setting is outside what is allowed, or there is no such recipe.
        FileError: The recipe cannot be read.
        SystemExit: They ask for help, which is printed.
    """
    foreign = peek(args, "weights") is not None
    parser = finetune_parser(how, foreign=foreign)
    if "-h" in args or "--help" in args:
        parser.parse(["--help"])
    words, rest = split_words(args, parser.flags)
    if len(words) != (0 if foreign else 1):
        raise UsageError(
            f"finetune {how} needs one run directory, or --weights FILE, got {len(words)}{' and a file' * foreign}",
            hint=f"gambeson finetune {how} runs/digits-pgd-at-1",
        )
    config = peek(args, "config")
    if config:
        file = find_recipe(config)
        content = read_yaml(file, recipes_folder())
        if content.pop("finetune", None) != how:
            raise UsageError(
                f"{file} is no recipe of gambeson finetune {how}: it lacks `finetune: {how}`",
                hint="`gambeson list recipes` shows what each is for",
            )
        parser.set_defaults(defaults_from(parser, file, content))
    if how == "bn":
        for option in ("lr", "module", "protocol", "mrc-split", "mrc-size", "bn"):
            if peek(rest, option) is not None:
                raise UsageError(
                    f"finetune bn has no --{option}: only BatchNorm's running statistics move, the learning rate is 0",
                    hint="gambeson finetune rift has it",
                )
    if foreign:
        said = set(content) if config else set()
        missing = [f"--{name}" for name in ("model", "data") if name not in said and peek(rest, name) is None]
        if missing:
            raise UsageError(
                f"--weights needs {' and '.join(missing)}: the file does not say",
                hint=f"gambeson finetune {how} --weights FILE --model wrn-34-10 --data cifar10",
            )
    values = parser.parse(rest)
    if how == "bn":
        values |= {"module": "last", "protocol": "release", "mrc_split": "val", "mrc_size": None, "bn": "update"}
        values["lr"] = 0.0
    settings = Settings(**{key: values[key] for key in _settings()})
    options = options_of(RiftOptions, values)
    _check(options)
    return Asked(words, options, settings, values)


def _start(how: str, args: list[str]) -> int:
    asked = understand(how, args)
    words, options, settings, values = asked.words, asked.options, asked.settings, asked.values
    from gambeson.app import build
    from gambeson.core.tables import differences
    from gambeson.engine.run import Run

    if options.weights:
        given = {key: values[key] for key in ImportOptions.__dataclass_fields__ if key not in ("run", "data_dir")}
        base = _imported(Path(options.weights), options.run) or import_weights(
            Path(options.weights), ImportOptions(**given, data_dir=options.data_dir)
        )
        print(f"imported {options.weights}: {base.path}", file=sys.stderr)
    else:
        base = build.open_run(Path(words[0]))
    stem = f"{base.path.name}-{how}"
    folder = Path(options.run) if options.run else Run.free_path(base.path.parent, stem)
    where = build.device(options.device)
    call = call_of(how, base, options, settings, str(where))
    if folder.exists():
        run = build.open_run(folder)
        if "finetune" not in run.call:
            raise RunError(
                f"{folder} is no fine-tuning run, and nothing of it was changed",
                hint="--run names a directory to create, or a fine-tuning run to go on with",
            )
        different = differences(comparable(run.call), comparable(call))
        if different:
            raise RunError(
                f"{folder} is another run: {'; '.join(different)}", hint="give its options, or another --run"
            )
        data = None
    else:
        data = _require_possible(call, base, options, where)
        call["data"] = {**call["data"], "sizes": data.sizes}  # the base's record may be older, or of an import
        run = Run.create(folder, {"command": ["gambeson", "finetune", how, *args], **call})
    return go_on(run, options.data_dir, str(where), data)


def _imported(file: Path, folder: str | None) -> Run | None:
    """The run that these weights were imported into when the run at `folder` was begun, if there is one."""
    from gambeson.app import build
    from gambeson.engine.checkpoint import sha256_of

    if folder is None or not Path(folder).exists():
        return None
    record = build.open_run(Path(folder)).call.get("finetune")
    base = build.open_run(Path(record["base"]["run"])) if record else None
    known = base is not None and base.call.get("imported", {}).get("sha256") == sha256_of(file)
    return base if known else None


def _require_possible(call: dict[str, Any], base: Run, options: RiftOptions, where: Any) -> Splits:
    """The data; whatever the model or the data cannot give is refused before a run is made."""
    from gambeson.app import build
    from gambeson.diagnosis.suffix import critical_layers
    from gambeson.finetuning import choose_layers
    from gambeson.finetuning.rift import needs_criticality, require_count

    build.use_threads(call)
    model = build.load_model(base, options.checkpoint, where)[0]
    if needs_criticality(options.module):
        require_count(options.module, len(critical_layers(model)))
    else:
        choose_layers(model, options.module)
    data = build.splits(call, options.data_dir)
    if call["settings"]["batch_size"] > len(data.train):
        raise InputError(
            f"the batch size must be between 1 and the {len(data.train)} training images,"
            f" got {call['settings']['batch_size']}",
            hint=f"use --batch-size {min(128, len(data.train))} or less",
        )
    measured = needs_criticality(options.module)
    instead = f"--select test{' --mrc-split test' * measured}"
    choose_split(data, options.select, options.select_size, instead)
    if measured:
        choose_split(data, options.mrc_split, options.mrc_size, instead)
    return data


def go_on(run: Run, data_dir: str | None = None, device: str = "auto", data: Splits | None = None) -> int:
    """Do what is missing of a fine-tuning run: criticality, training, interpolation, evaluation.

    Args:
        run: The run.
        data_dir: Folder with the data set's files, if it has moved.
        device: Where to compute.
        data: The data, if it has been read.

    Returns:
        The exit code.

    Raises:
        RunError: The run that it started from has changed or is gone.
    """
    from gambeson.app import build, show
    from gambeson.engine.checkpoint import sha256_of
    from gambeson.engine.interruption import Interrupted

    record = run.call["finetune"]
    base = build.open_run(Path(record["base"]["run"]))
    build.use_threads(run.call)
    where = build.device(device)
    model, task, name, step = build.load_model(base, record["base"]["checkpoint"], where)
    if sha256_of(base.checkpoint(name)) != record["base"]["sha256"]:
        raise RunError(f"{base.checkpoint(name)} is not the checkpoint that {run.path} started from any more")
    data = data or build.splits(run.call, data_dir)
    notes = _selection_notes(base, record)
    for note in notes:
        show.err.print(f"[bold]note[/bold]: {note}", soft_wrap=True)
    show.out.print(f"{record['name']} of {base.path}, checkpoint {name} (step {step}): {run.path}", soft_wrap=True)
    start = {key: t.detach().clone() for key, t in model.state_dict().items()}
    try:
        layers = _layers(run, record, model, data, step)
        tuned = _tune(run, record, model, task, data, layers)
    except Interrupted as stopped:
        again = shlex.quote(str(run.path))
        print(f"{stopped}; saved. Go on with: gambeson resume {again}", file=sys.stderr)
        return 128 + stopped.signum
    chosen = _interpolate(run, record, model, data, start, tuned, step)
    _evaluate(run, data, where, chosen)
    if run.call.get("report"):
        at_the_end(run, data_dir or run.call["data"]["dir"], device)
    return 0


def _check(options: RiftOptions) -> None:
    """Refuse what can be refused before any file is read."""
    from gambeson.attacks.pgd import PGD
    from gambeson.finetuning import parse_alphas

    protocol_of(options.protocol)
    PGD(rel_step_size=options.rel_step_size)
    for what, value, known in (
        ("selection split", options.select, ("val", "test")),
        ("split", options.mrc_split, ("val", "test", "train")),
        ("BatchNorm mode", options.bn, ("update", "frozen")),
        ("entries", options.entries, ("full-state", "parameters")),
    ):
        require_known(what, value, known)
    parse_alphas(options.alphas)
    if options.pgd_runs < 1:
        raise InputError(f"--pgd-runs must be at least 1, got {options.pgd_runs}")
    if options.tolerance < 0:
        raise InputError(f"--tolerance must be at least 0 points, got {options.tolerance:g}")
    check_attacks(options.attack, options.test_size)


def call_of(how: str, base: Run, options: RiftOptions, settings: Settings, device: str) -> dict[str, Any]:
    """The record of the fine-tuning of `base` that is asked for.

    Raises:
        InputError: The base lacks the checkpoint.
    """
    from gambeson.app import build
    from gambeson.engine.checkpoint import sha256_of
    from gambeson.finetuning.rift import needs_criticality

    name = build.existing_checkpoint(base, options.checkpoint)
    kept = {"config", "weights", "run", "device", "data_dir", "threads", "attack", "test_size", "report", "checkpoint"}
    told = {key: value for key, value in asdict(options).items() if key not in kept}
    tested = _split_of(base) == "test" or "test" in (
        options.select,
        options.mrc_split if needs_criticality(options.module) else "",
    )
    return {
        **{key: base.call[key] for key in ("method", "data", "model")},
        "ema": None,
        "settings": settings.to_dict(),
        "selection": {
            "split": "test" if tested else _split_of(base) or "val",
            "by": f"{options.select}/clean_acc, then alpha",
        },
        "threads": options.threads if options.threads is not None else base.call.get("threads"),
        "attack": options.attack,
        "test_size": options.test_size,
        "report": options.report,
        "device": device,
        "finetune": {
            "name": how,
            **told,
            "base": {"run": str(base.path.resolve()), "checkpoint": name, "sha256": sha256_of(base.checkpoint(name))},
        },
    }


def _split_of(base: Run) -> str | None:
    """What the base run was selected on, where that is not the validation split."""
    from gambeson.app import build

    split = build.selected_on(base.call)
    return split if split in ("test", "unknown") else None


def comparable(call: dict[str, Any]) -> dict[str, Any]:
    """What two fine-tunings must agree in to be the same one; older records lack the sizes of the splits."""
    keys = ("method", "data", "model", "settings", "finetune", "attack", "test_size", "threads")
    kept = {key: call.get(key) for key in keys}
    return {**kept, "data": {key: value for key, value in call["data"].items() if key != "sizes"}}


def _settings() -> set[str]:
    return set(asdict(Settings())) - UNUSED


def _selection_notes(base: Run, record: dict[str, Any]) -> list[str]:
    notes = []
    if _split_of(base) == "unknown":
        notes.append(f"it is not known what {base.path} was selected on: perhaps on the test set")
    if _split_of(base) == "test":
        notes.append(f"{base.path} was selected on the test set: every number of this run is stamped so")
    if record["select"] == "test" or (record["mrc_split"] == "test" and _measured(record)):
        notes.append("this run selects on the test set, as the release; its numbers are stamped so")
    return notes


def _measured(record: dict[str, Any]) -> bool:
    from gambeson.finetuning.rift import needs_criticality

    return needs_criticality(record["module"])


def _layers(run: Run, record: dict[str, Any], model: nn.Module, data: Splits, step: int) -> tuple[str, ...]:
    """The layers to train: measured, where the choice is by criticality."""
    from gambeson.app import build, layered, show
    from gambeson.diagnosis import draw_criticality
    from gambeson.engine.run import read_json, write_json
    from gambeson.finetuning import choose_layers

    file = run.path / "layers.json"
    if file.is_file():
        return tuple(read_json(file)["layers"])
    found = None
    if _measured(record):
        found = search(
            model,
            choose_split(data, record["mrc_split"], record["mrc_size"]),
            build.recipe(run.call).threat,
            record["protocol"],
            rel_step_size=record["rel_step_size"],
            seed=run.call["settings"]["seed"],
            store=run.path / "criticality.partial.json",
        )
        content = {"run": record["base"]["run"], "method": run.call["method"]["name"], **found.to_dict()}
        content |= {"checkpoint": record["base"]["checkpoint"], "step": step, "data": data.facts.name}
        content |= {"split": record["mrc_split"]}
        write_json(run.path / "criticality.json", content)
        draw_criticality(found, run.path / "criticality.svg", run.path.name)
        layered.criticality(content)
    layers = choose_layers(model, record["module"], found)
    write_json(file, {"layers": list(layers), "module": record["module"]})
    (run.path / "criticality.partial.json").unlink(missing_ok=True)
    if record["name"] == "bn":
        show.out.print("only BatchNorm's running statistics move, no weight does", soft_wrap=True)
    else:
        show.out.print(f"fine-tuning {', '.join(layers) if layers else 'all parameters'}", soft_wrap=True)
    return layers


def _tune(
    run: Run, record: dict[str, Any], model: nn.Module, task: Task, data: Splits, layers: tuple[str, ...]
) -> dict[str, Tensor]:
    """Train on clean images in a run inside the run, and return the weights of its best epoch."""
    from gambeson.app import build, show
    from gambeson.engine.checkpoint import load_checkpoint, section
    from gambeson.engine.run import Run
    from gambeson.engine.trainer import Trainer
    from gambeson.finetuning import rift_recipe

    stored = run.call["settings"]
    trainer = Trainer(
        model,
        rift_recipe(model, layers, build.recipe(run.call).threat, record["bn"]),
        data.train,
        choose_split(data, record["select"], None),
        task,
        Settings(**{**stored, "milestones": tuple(stored["milestones"])}),
        pad=data.facts.pad,
        flip=data.facts.flip,
        description={"finetune": record["name"], "base": record["base"]["sha256"]},
        device=next(model.parameters()).device,
        select="val/clean_acc",
    )
    inner = run.path / "finetune"
    part = Run.open(inner) if inner.exists() else Run.create(inner, {"part_of": str(run.path)})
    if not part.checkpoint("final").is_file():
        if part.checkpoint("last").is_file():
            trainer.resume(part)
        with show.training_progress(part, trainer, record["select"]) as listen:
            trainer.fit(part, listen)
    model.requires_grad_(True)
    return section(load_checkpoint(part.checkpoint("best"))[0], "model")


def _interpolate(
    run: Run,
    record: dict[str, Any],
    model: nn.Module,
    data: Splits,
    start: dict[str, Tensor],
    tuned: dict[str, Tensor],
    step: int,
) -> float:
    """Measure the line, choose alpha, and write the three checkpoints; returns alpha."""
    from gambeson.app import build, findings, show
    from gambeson.attacks.pgd import PGD
    from gambeson.engine.checkpoint import save_checkpoint
    from gambeson.engine.run import read_json, write_json
    from gambeson.finetuning import draw_line, interpolated, parse_alphas, walk

    file = run.path / "line.json"
    if file.is_file() and run.checkpoint("final").is_file():
        return float(read_json(file)["chosen"])
    device = next(model.parameters()).device
    tuned = {name: t.to(device) for name, t in tuned.items()}
    examples = choose_split(data, record["select"], record["select_size"])
    alphas = parse_alphas(record["alphas"])
    recipe = build.recipe(run.call)
    with show.progress() as bar:
        task = bar.add_task("interpolating", total=len(examples) * len(alphas))
        found = walk(
            model,
            start,
            tuned,
            examples.pixels,
            examples.y,
            recipe.threat,
            num_classes=data.facts.num_classes,
            alphas=alphas,
            entries=record["entries"],
            tolerance=record["tolerance"] / 100,
            attack=PGD(steps=10, rel_step_size=record["rel_step_size"]),
            runs=record["pgd_runs"],
            seed=run.call["settings"]["seed"],
            progress=lambda done: bar.advance(task, done),
        )
    parameters = [name for name, _ in model.named_parameters()]
    header = {
        "method": run.call["method"]["name"],
        "model": run.call["model"],
        "recipe": repr(recipe),
        "task": _task(model, data),
        "settings": run.call["settings"],
        "step": step,
        "best": None,
    }
    # With parameters alone, the end of the line is not the model that was trained: its statistics are the base's.
    chosen = interpolated(start, tuned, found.chosen, record["entries"], parameters)
    for name, alpha, state in (("base", 0.0, start), ("finetuned", 1.0, tuned), ("final", found.chosen, chosen)):
        weights = {f"model/{key}": t for key, t in state.items()}
        save_checkpoint(run.checkpoint(name), weights, {**header, "alpha": alpha})
    content = {**found.to_dict(), "split": record["select"], "entries": record["entries"]}
    draw_line(found, run.path / "line.svg", run.path.name)
    write_json(file, content)
    findings.line(content)
    return found.chosen


def _task(model: nn.Module, data: Splits) -> dict[str, Any]:
    from gambeson.core.types import Task

    task = model.task if isinstance(getattr(model, "task", None), Task) else data.facts.task
    return asdict(task)  # type: ignore[arg-type]


def _evaluate(run: Run, data: Splits, where: Any, chosen: float) -> None:
    """The three models on the test set, what of that is not there yet, and the table."""
    from gambeson.app import build, findings, show
    from gambeson.engine.checkpoint import sha256_of
    from gambeson.evaluation import Report

    threat = build.recipe(run.call).threat
    test = data.test.head(run.call["test_size"])
    x, y = test.x, test.y
    rows = {}
    for name in ("base", "finetuned", "final"):
        described = {"checkpoint": name, "data": run.call["data"]["name"], "split": "test"}
        described["sha256"] = sha256_of(run.checkpoint(name))
        names = list(dict.fromkeys(["clean", *attack_names(run.call["attack"])]))
        stored = stored_record(run, {**described, "attacks": names, "n": len(y)})
        if stored:
            rows[name] = Report.from_record(stored[1], run.outcomes(stored[0]), data.facts.class_names)
            continue
        model, _, _, step = build.load_model(run, name, where)
        report = measure(
            model, x, y, run.call["attack"], threat, data.facts.class_names, ledger=run.path / "autoattack"
        )
        show.warn_of_failures(report)
        save_report(run, report, {**described, "step": step})
        rows[name] = report
    findings.finetuned(rows, chosen, run.call["selection"])
    print(f"wrote {run.path}", file=sys.stderr)
