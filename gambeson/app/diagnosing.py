"""`gambeson diagnose`: class-activation maps of a run; the other topics have modules of their own."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from gambeson.app.critical import criticality
from gambeson.app.eps_curve import eps
from gambeson.app.landscapes import landscape
from gambeson.app.masked import masking
from gambeson.app.options import CamOptions
from gambeson.app.overfit import overfitting
from gambeson.app.parsing import UsageError, parse_run, require_positive
from gambeson.app.regional import regions
from gambeson.app.responses import response
from gambeson.app.shortcuts import shortcuts
from gambeson.app.spectra import spectra
from gambeson.core.errors import DataError, InputError, nearest, require_known

if TYPE_CHECKING:
    from gambeson.parts.budgets import PixelBudget
    from gambeson.parts.cam import CAM
    from gambeson.parts.masks import Rule

LARGEST = 64
"""Images in a picture that can still be read."""


def diagnose(args: list[str]) -> int:
    """`gambeson diagnose TOPIC [options]`, one of TOPICS."""
    if args and args[0] in TOPICS:
        return TOPICS[args[0]][0](args[1:])
    if "-h" in args or "--help" in args:
        width = max(map(len, TOPICS))
        lines = "\n".join(f"  {name:<{width}}  {text}" for name, (_, text) in TOPICS.items())
        print(
            "usage: gambeson diagnose TOPIC [options]\n\nLook inside.\n\n"
            f"{lines}\n\n`gambeson diagnose TOPIC --help` shows a topic's options."
        )
        return 0
    known = ", ".join(TOPICS)
    if not args or args[0].startswith("-"):
        raise UsageError(f"diagnose what? known: {known}", hint="gambeson diagnose cam runs/cifar10-part-1")
    raise UsageError(f"cannot diagnose {args[0]!r}", hint=nearest(args[0], TOPICS))


def cam(args: list[str]) -> int:
    """`gambeson diagnose cam RUN [options]`."""
    description = "Draw a model's class-activation maps, and measure how many pixels they give the full budget."
    path, options = parse_run("diagnose cam", description, CamOptions, args)
    require_known("split", options.split, ("test", "val"))
    if not 1 <= options.images <= LARGEST:
        raise InputError(f"--images must be between 1 and {LARGEST}, got {options.images}")
    require_positive(options, "test_size", "batch_size")
    from gambeson.app import build, findings, show, states
    from gambeson.diagnosis import diagnose_cam, draw_cam
    from gambeson.diagnosis.pictures import require_picture
    from gambeson.engine.run import versions, write_json
    from gambeson.parts.budgets import PixelBudget

    if options.out:
        require_picture(Path(options.out))
    run = build.open_run(path)
    build.use_threads(run.call)
    recipe = build.recipe(run.call)
    budget = next((part for part in recipe.parts if isinstance(part, PixelBudget)), None)
    rule, maps, origin = _choose(options, budget)
    model, _, name, step = build.load_model(run, options.checkpoint, build.device(options.device))
    open_end = states.unfinished(run)
    data = build.splits(run.call, options.data_dir)
    examples = data.test if options.split == "test" else data.val
    if len(examples) == 0:
        raise DataError(f"the {options.split} split is empty: the run held nothing out", hint="look at the test split")
    if options.test_size is not None:
        examples = examples.head(options.test_size)
    with show.progress(options.json) as bar:
        task = bar.add_task("making maps", total=len(examples))
        found = diagnose_cam(
            model,
            examples.pixels,
            examples.y,
            class_names=data.facts.class_names,
            rule=rule,
            cam=maps,
            dead=budget.dead if budget else "full",
            shown=options.images,
            batch_size=options.batch_size,
            progress=lambda done: bar.advance(task, done),
        )
    record = {
        "run": str(run.path),
        "method": run.call["method"]["name"],
        "checkpoint": name,
        "step": step,
        "data": data.facts.name,
        "split": options.split,
        "unfinished": open_end,
        "mask_from": origin,
        "assigned": budget.assign if budget and origin == "run" else None,
        **found.to_dict(),
    }
    if budget and origin == "run":
        full = float(recipe.threat.eps)
        record["budget"] = {"eps": full, "eps_low": budget.eps_low, "mean": found.mean_budget(full, budget.eps_low)}
    record["versions"] = versions()
    out = Path(options.out) if options.out else run.path / "diagnosis" / "cam.png"
    out.parent.mkdir(exist_ok=True)
    draw_cam(found, out, run.path.name)
    write_json(out.with_suffix(".json"), record)
    print(json.dumps(record, indent=2)) if options.json else findings.cam(record)
    print(f"wrote {out} and {out.with_suffix('.json')}", file=sys.stderr)
    return 0


def _choose(options: CamOptions, budget: PixelBudget | None) -> tuple[Rule, CAM, str]:
    """The rule and the maps that were asked for, else the run's, else the defaults; and where the rule is from."""
    from gambeson.parts.cam import CAM
    from gambeson.parts.masks import Rule, ZScore, create_mask

    own = budget.cam if budget else CAM()
    method, layer = options.cam or own.method, options.layer or own.layer
    maps = CAM(method, layer)  # type: ignore[arg-type]  # checked there
    if options.mask is not None:
        mask = create_mask(options.mask)
        if not isinstance(mask, Rule):
            raise InputError(
                f"the mask {options.mask} is not made from class-activation maps",
                hint="masks from maps: zscore[:T], quantile[:Q], jet",
            )
        return mask, maps, "option"
    if budget and isinstance(budget.mask, Rule):
        return budget.mask, maps, "run"
    return ZScore(), maps, "default"


TOPICS: dict[str, tuple[Callable[[list[str]], int], str]] = {
    "cam": (cam, "class-activation maps of a run, and the pixels that they give the full budget"),
    "criticality": (criticality, "how much robust loss every layer's weights can cost (MRC): which layer to fine-tune"),
    "eps": (eps, "accuracy against the budget, and how far images must be moved (DeepFool)"),
    "landscape": (landscape, "the loss around the weights of single layers and of groups, in random directions"),
    "masking": (masking, "do gradient attacks measure the model, or are its gradients masked? PASS, WARN or FAIL"),
    "overfitting": (overfitting, "when did the training collapse, and what is left at the end of its best robustness?"),
    "regions": (regions, "does it matter where in the image the budget is small? trains four quarters and a control"),
    "response": (
        response,
        "what loss and accuracy do when the weights of one layer move, up the gradient or at random",
    ),
    "shortcuts": (shortcuts, "is robustness to one step a shortcut? accuracy without some of the weights"),
    "spectra": (spectra, "singular values of every layer's weight, and how far weights drift between checkpoints"),
}
