"""`gambeson diagnose regions`: ordinary runs, one per setup and seed, and what they say together."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gambeson.app import presets
from gambeson.app.measuring import attack_names, check_attacks, measure, save_report, stored_record
from gambeson.app.options import RegionsOptions, TrainOptions
from gambeson.app.parsing import Parser, UsageError, options_of, peek, split_words
from gambeson.app.regional_plan import Budgets, Planned, budgets_of, parse_seeds, plan, require_same
from gambeson.engine.settings import Settings

if TYPE_CHECKING:
    from gambeson.data import Splits
    from gambeson.diagnosis import Regions

TITLE = """Does it matter where in the image the budget is small? Trains, for every seed, four models with a smaller
budget in one quarter of the image and one with the same mean budget everywhere, and compares them (PART, figure 1)."""


def regions(args: list[str]) -> int:
    """`gambeson diagnose regions [options]`."""
    parser = regions_parser(peek(args, "data") or "digits")
    if "-h" in args or "--help" in args:
        parser.parse(["--help"])
    words, rest = split_words(args, parser.flags)
    if words:
        raise UsageError(f"diagnose regions takes options only, got {' '.join(words)}")
    values = {**parser.parse(rest), "seed": 0, "run": None, "tensorboard": False, "report": False}
    options, training = options_of(RegionsOptions, values), options_of(TrainOptions, values)
    seeds = parse_seeds(options.seeds)
    check_attacks(training.attack, training.test_size)
    from gambeson.app import build, findings
    from gambeson.diagnosis import draw_regions
    from gambeson.diagnosis.pictures import require_picture
    from gambeson.engine.interruption import Interrupted
    from gambeson.engine.run import versions, write_json

    out = Path(options.out) if options.out else Path(options.root) / "regions.png"
    if options.out:
        require_picture(out)
    where = build.device(training.device)
    base = build.make_call("part", {}, training, options_of(Settings, values))
    build.use_threads(base)
    data = build.splits(base)
    budgets = budgets_of(options, data)
    runs = plan(options, budgets, training, options_of(Settings, values), seeds, str(where))
    for planned in runs:
        build.recipe(planned.call)
        if planned.path.exists():
            require_same(build.open_run(planned.path), planned.call)
    try:
        records = [_finish(planned, runs, args, data, budgets, training, quiet=options.json) for planned in runs]
    except Interrupted as stopped:
        again = shlex.join(["gambeson", "diagnose", "regions", *args])
        print(f"{stopped}; saved. Go on with: {again}", file=sys.stderr)
        return 128 + stopped.signum
    flip = data.facts.flip if values["flip"] is None else values["flip"]
    found = _collect(runs, records, budgets, seeds, flip=flip)
    settings = {key: value for key, value in base["settings"].items() if key != "seed"}
    record = {
        **{key: base[key] for key in ("data", "model", "ema")},
        "settings": {**settings, "steps": options.steps, "rel_step_size": options.rel_step_size},
        **found.to_dict(),
        "runs": {str(planned.path): {"setup": planned.setup, "seed": planned.seed} for planned in runs},
        "command": ["gambeson", "diagnose", "regions", *args],
        "versions": versions(),
    }
    draw_regions(found, out, f"{training.data}, {base['model']['name']}")
    write_json(Path(options.root) / "regions.json", record)
    print(json.dumps(record, indent=2)) if options.json else findings.regions(found, training.data)
    print(f"wrote {out} and {Path(options.root) / 'regions.json'}", file=sys.stderr)
    return 0


def regions_parser(data: str) -> Parser:
    """The parser: the experiment's own options, and those of any training that the experiment does not set itself."""
    parser = Parser("gambeson diagnose regions", TITLE)
    parser.add(RegionsOptions)
    parser.add(Settings, skip={"seed"}, **presets.TRAINING.get(data, {}))
    given = {**presets.TRAINING.get(data, {}), "val_fraction": 0.0, "attack": "clean,pgd-20"}
    parser.add(TrainOptions, skip={"run", "tensorboard", "report"}, **given)
    return parser


def _finish(
    planned: Planned,
    runs: list[Planned],
    args: list[str],
    data: Splits,
    budgets: Budgets,
    training: TrainOptions,
    *,
    quiet: bool,
) -> dict[str, Any]:
    """The evaluation of a run's final weights; what is missing is made: the run, its training, the evaluation."""
    from gambeson.app import build, show
    from gambeson.engine.checkpoint import read_header
    from gambeson.engine.run import Run

    label = f"{runs.index(planned) + 1}/{len(runs)}  {planned.setup}, seed {planned.seed}"
    if planned.path.exists():
        run = build.open_run(planned.path)
    else:
        run = Run.create(planned.path, {"command": ["gambeson", "diagnose", "regions", *args], **planned.call})
    where = build.device(training.device)
    if not run.checkpoint("final").is_file():
        trainer = build.trainer(run.call, data, where)
        if run.checkpoint("last").is_file():
            with run.locked():
                trainer.resume(run)
        show.err.print(f"{label}: training from step {trainer.step} of {trainer.total}", soft_wrap=True)
        with show.training_progress(run, trainer) as listen:
            trainer.fit(run, listen)
    test = data.test.head(training.test_size)
    threat, x, y = budgets.threat, test.x, test.y
    names = list(dict.fromkeys(["clean", *attack_names(training.attack)]))
    described = {
        "checkpoint": "final",
        "step": read_header(run.checkpoint("final"))["step"],
        "data": training.data,
        "split": "test",
    }
    wanted = {**described, "attacks": names, "norm": "Linf", "eps": threat.eps, "n": len(y)}
    wanted |= {"batch_size": 256, "seed": 0}
    if found := stored_record(run, wanted):
        show.err.print(f"{label}: measured before", soft_wrap=True)
        return found[1]
    model = build.load_model(run, "final", where)[0]
    report = measure(model, x, y, ",".join(names), threat, data.facts.class_names, quiet=quiet)
    show.warn_of_failures(report)
    return save_report(run, report, described)


def _collect(
    runs: list[Planned], records: list[dict[str, Any]], budgets: Budgets, seeds: tuple[int, ...], *, flip: bool
) -> Regions:
    from gambeson.diagnosis import Regions

    accuracy: dict[str, dict[str, tuple[float, ...]]] = {}
    for planned, record in zip(runs, records, strict=True):
        of_setup = accuracy.setdefault(planned.setup, {})
        for attack, interval in record["accuracy"].items():
            of_setup[attack] = (*of_setup.get(attack, ()), interval["value"])
    eps = float(budgets.threat.eps)
    return Regions(
        eps=budgets.eps,
        eps_low=budgets.eps_low,
        eval_eps=eps,
        n=records[0]["n"],
        flip=flip,
        seeds=seeds,
        accuracy=accuracy,
    )
