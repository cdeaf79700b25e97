"""Accuracy under attack, judged here and not by the attack, with the outcome of every example kept."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gambeson.attacks.attack import Attack
from gambeson.attacks.margin import MMA, mm3, mm9, mm_plus
from gambeson.attacks.pgd import PGD, fgsm
from gambeson.attacks.starts import Uniform
from gambeson.core.errors import InputError
from gambeson.core.parameters import like_of
from gambeson.core.processes import rank_and_world, total
from gambeson.core.streams import Streams
from gambeson.core.threat import Threat
from gambeson.core.types import Batch
from gambeson.data.loader import to_unit
from gambeson.data.stored import Images, in_memory
from gambeson.data.streaming import chunks
from gambeson.evaluation.autoattack import Stage, autoattack, dtype_name, state_key
from gambeson.evaluation.ensembles import ENSEMBLES, NAMES, SEARCHES, ensemble_of
from gambeson.evaluation.examples import check_examples
from gambeson.evaluation.judging import judge, returned_images
from gambeson.evaluation.pace import Pace, PaceKeeper
from gambeson.evaluation.preflight import preflight
from gambeson.evaluation.statistics import Interval, wilson

ATTACKS: dict[str, str] = {
    "clean": "no attack",
    "fgsm": "one step of size eps from the clean image",
    "pgd-K": "PGD with K steps of eps/4 from a uniform start",
    "pgd-K-R": "the same with R restarts (pgd-50-10: 50 steps, 10 restarts)",
    "mma-K": "minimum margin: K steps of eps/4 towards each of the 3 nearest classes (PART's MMA is mma-20)",
    "mm3": "minimum margin with adaptive steps: 20 towards each of the 3 nearest classes",
    "mm9": "the same towards each of the 9 nearest classes",
    "mm+": "the same with 100 steps towards each of the 9 nearest classes",
    **{name: summary for name, (summary, _) in SEARCHES.items()},
    **{name: f"AutoAttack's version {version}: {ENSEMBLES[version][0]}" for name, version in NAMES.items()},
    "aa-preview": ENSEMBLES["preview"][0],
}
"""Attacks by name, as `parse_attack` and `ensemble_of` understand them."""


_SINGLE: dict[str, Callable[[], Attack | None]] = {
    "clean": lambda: None,
    "fgsm": fgsm,
    "mm3": mm3,
    "mm9": mm9,
    "mm+": mm_plus,
}
_COUNTED = re.compile(r"pgd-(?P<steps>[1-9]\d*)(?:-(?P<restarts>[1-9]\d*))?|mma-(?P<margin_steps>[1-9]\d*)")


def parse_attack(name: str) -> Attack | None:
    """The attack called `name`, one of `ATTACKS` with numbers for its capital letters; None for `clean`.

    PGD uses steps of eps/4 and stops moving an example once it is misclassified, as the evaluation of LAP's release.

    Raises:
        InputError: Another name.

    Examples:
        >>> parse_attack("pgd-50-10").restarts
        10
    """
    name = name.strip().lower()
    if name in _SINGLE:
        return _SINGLE[name]()
    match = _COUNTED.fullmatch(name)
    if match is None and ensemble_of(name):
        raise InputError(
            f"{name} goes through a whole set of images, and cannot be taken here",
            hint="one of fgsm, pgd-K, pgd-K-R, mma-K, mm3, mm9, mm+; `evaluate` takes all",
        )
    if match is None:
        hint = f"{_closest(name)} pgd-50-10 is PGD with 50 steps and 10 restarts"
        raise InputError(f"unknown attack {name!r}", hint=hint)
    if match["margin_steps"]:
        return MMA(steps=int(match["margin_steps"]))
    steps, restarts = int(match["steps"]), int(match["restarts"] or 1)
    return PGD(steps=steps, rel_step_size=0.25, start=Uniform(), restarts=restarts, freeze_fooled=True)


def require_attack(name: str) -> None:
    """Refuse a name that no attack has.

    Raises:
        InputError: `name` is neither for `parse_attack` nor for `ensemble_of`.
    """
    if ensemble_of(name.strip().lower()) is None:
        parse_attack(name)


def _closest(name: str) -> str:
    """A hint: the nearest names that `parse_attack` takes, or all patterns."""
    family, dash, rest = name.partition("-")
    families = [*_SINGLE, "pgd", "mma"]
    near = [] if family in families else difflib.get_close_matches(family, families, n=len(families))
    near = [word + dash + rest for word in near]
    taken = [word for word in near if word in _SINGLE or _COUNTED.fullmatch(word)]
    if family not in families:
        taken += difflib.get_close_matches(name, [*SEARCHES, *NAMES], n=1, cutoff=0.7)
    return f"did you mean {' or '.join(taken)}?" if taken else f"known: {', '.join(ATTACKS)};"


@dataclass(frozen=True, eq=False)
class Report:
    """What an evaluation found.

    Attributes:
        outcomes: By attack, whether each example was classified correctly, bool `(N,)`. An example that is wrong
            without attack is wrong under every attack: its clean image is inside the ball.
        y: Labels `(N,)`.
        class_names: One per class.
        settings: What was run, for the record; `failed` counts, by attack, examples for which it returned NaN or
            infinite pixels (their clean image was judged): then the gradient is broken and the accuracy means little.
            `ensembles`, where there are any, has what every attack of each did, and `search_dtype` the type in which
            they searched, None for the model's own.
    """

    outcomes: dict[str, Tensor]
    y: Tensor
    class_names: tuple[str, ...]
    settings: dict[str, Any]

    @classmethod
    def from_record(cls, record: Mapping[str, Any], arrays: Mapping[str, Any], class_names: Sequence[str]) -> Report:
        """The report that was kept as a record and arrays.

        Args:
            record: What `to_dict` gave.
            arrays: `y`, and the outcomes by attack.
            class_names: One per class.
        """
        settings = {key: record[key] for key in ("attacks", "norm", "eps", "batch_size", "seed", "failed")}
        settings |= {key: record[key] for key in ("search_dtype", "ensembles") if key in record}
        outcomes = {name: torch.from_numpy(arrays[name]) for name in record["attacks"]}
        return cls(outcomes, torch.from_numpy(arrays["y"]), tuple(class_names), settings)

    def accuracy(self, attack: str) -> Interval:
        """Accuracy under `attack` with its Wilson 95 % interval."""
        correct = self.outcomes[attack]
        return wilson(int(correct.sum()), len(correct))

    def worst(self) -> Interval:
        """Accuracy under the worst of all attacks, example by example."""
        correct = torch.stack(list(self.outcomes.values())).all(0)
        return wilson(int(correct.sum()), len(correct))

    def per_class(self, attack: str) -> list[Interval | None]:
        """Accuracy under `attack` of every class; None for a class without examples."""
        correct = self.outcomes[attack]
        rows = [correct[self.y == c] for c in range(len(self.class_names))]
        return [wilson(int(row.sum()), len(row)) if len(row) else None for row in rows]

    def to_dict(self) -> dict[str, Any]:
        """Everything but the outcomes, for JSON."""
        return {
            **self.settings,
            "n": len(self.y),
            "accuracy": {name: vars(self.accuracy(name)) for name in self.outcomes},
            "worst": vars(self.worst()),
            "per_class": {
                name: {
                    c: vars(row) if row else None for c, row in zip(self.class_names, self.per_class(name), strict=True)
                }
                for name in self.outcomes
            },
        }


def evaluate(
    model: nn.Module,
    x: Images,
    y: Tensor,
    attacks: Sequence[str],
    threat: Threat,
    *,
    num_classes: int,
    class_names: Sequence[str] | None = None,
    batch_size: int = 256,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
    ledger: Path | None = None,
    stages: Callable[[str, Stage], None] | None = None,
    pace: Callable[[Pace], None] | None = None,
    search_dtype: torch.dtype | None = None,
    fold: bool = True,
    checks: bool = True,
) -> Report:
    """Accuracy of `model` under every attack in `attacks`, always with the clean one.

    Before, model and data are examined (`gambeson.evaluation.examine`, a few forwards on 64 images at most): what would
    make the number wrong is refused. A random model is not, but its number is of one draw.

    Where a process group has been initialised, its processes share the batches, and all of them get the whole report.

    The model is evaluated in evaluation mode and comes back in the mode it had. Adversarial images are projected onto
    the ball and clipped to [0, 1] here before they are judged; logits that are not finite count as wrong.

    Args:
        model: Maps images in [0, 1] to logits.
        x: Images `(N, C, H, W)`, uint8 or float in [0, 1]; stored images are decoded `batch_size` at a time, ahead by
            their worker processes, and all at once where there are ensembles, which go through them again and again.
        y: Labels `(N,)` in `[0, num_classes)`.
        attacks: Names for `parse_attack` or `ensemble_of`.
        threat: Ball of the attacks.
        num_classes: Number of classes.
        class_names: Names for the tables; the numbers by default.
        batch_size: Images at a time. Random starts depend on it, but not those of searches and ensembles.
        seed: Seed of the random starts.
        progress: Called with the number of images done; every image counts once per attack.
        ledger: Folder below which ensembles keep what they find, to go on from there.
        stages: Called with the name of an ensemble and each of its attacks once that is through.
        pace: Called with how far the running attack of an ensemble is.
        search_dtype: Type in which ensembles search, see `autoattack`.
        fold: Ensembles search on a copy whose BatchNorms are folded, see `autoattack`.
        checks: Examine model and data before; without, only images and labels are looked at.

    Returns:
        The report, on the CPU.

    Raises:
        InputError: Images outside [0, 1] or not finite, labels out of range, unknown attacks, an output of another
            width; with `checks` all else that is an error to `examine`, such as probabilities instead of logits.

    Warns:
        GambesonWarning: The model is random, gives logits that are not finite, or lacks the gradient at a few images;
            or many stored images are decoded at once.
    """
    wanted = [name.strip().lower() for name in dict.fromkeys(["clean", *attacks])]
    ensembles = {name: found for name in wanted if (found := ensemble_of(name))}
    searches = {name: parse_attack(name) for name in wanted if name not in ensembles}
    if batch_size < 1:
        raise InputError(f"batch_size must be at least 1, got {batch_size}")
    if class_names and len(class_names) != num_classes:
        raise InputError(f"need one name for each of the {num_classes} classes, got {len(class_names)}")
    if not isinstance(threat.eps, (int, float)):
        raise InputError(
            "an evaluation takes one budget for all examples, got a tensor", hint="evaluate them one by one"
        )
    if checks:
        losses = {_loss(attack) for attack in searches.values() if attack is not None}
        losses |= {"ce", "margin"} if ensembles else set()
        preflight(model, x, y, threat, sorted(losses), num_classes=num_classes, batch_size=batch_size)
    else:
        check_examples(x, y, num_classes)
    x = in_memory(x) if ensembles else x
    like = like_of(model, x[:0])
    device = like.device
    streams = Streams(seed)
    outcomes = {name: torch.zeros(len(y), dtype=torch.bool) for name in searches}
    failed = dict.fromkeys(searches, 0)
    rank, world = rank_and_world()
    mine = slice(rank, None, world)
    starts = range(0, len(y), batch_size)[mine]
    for start, some in zip(starts, chunks(x, batch_size, mine), strict=True):
        number, part = start // batch_size, slice(start, start + len(some))
        images, labels = to_unit(some.to(device)).to(like.dtype), y[part].to(device, torch.int64)
        clean = judge(model, images, labels, num_classes)
        standing = clean.nonzero().squeeze(1)
        for name, attack in searches.items():
            if attack is None:
                outcomes[name][part] = clean.cpu()
            elif len(standing):
                batch = Batch(images[standing], labels[standing], standing)
                x_adv = attack(model, batch, threat, streams.at(f"evaluate/{name}", number, device))
                x_adv, returned = returned_images(x_adv, batch.x, threat)
                failed[name] += len(returned) - int(returned.sum())
                outcomes[name][start + standing.cpu()] = judge(model, x_adv, batch.y, num_classes).cpu()
            if progress:
                progress(len(labels))
    if world > 1:
        outcomes = {name: total(found.to(torch.int64)).bool() for name, found in outcomes.items()}
        failed = dict(zip(failed, total(torch.tensor(list(failed.values()))).tolist(), strict=True))
    details = {}
    for name, (version, ensemble) in ensembles.items():
        assert isinstance(x, Tensor)
        keeper = PaceKeeper(name, ensemble[-1].name, progress, pace)
        if progress:
            progress(int((~outcomes["clean"]).sum()))
        whole = autoattack(
            model,
            x,
            y,
            threat,
            num_classes=num_classes,
            version=version,
            attacks=ensemble if version == "custom" else None,
            seed=seed,
            slots=batch_size,
            dtype=search_dtype,
            fold=fold,
            ledger=ledger / state_key(model, x, y, threat, seed, search_dtype, fold) if ledger else None,
            progress=keeper.advance,
            begin=keeper.begin,
            tick=keeper.tick,
            listen=partial(stages, name) if stages else None,
            checks=False,
        )
        outcomes[name], details[name] = whole.robust, whole.to_dict()
    settings = {
        "attacks": wanted,
        "norm": threat.norm,
        "eps": float(threat.eps),
        "batch_size": batch_size,
        "seed": seed,
        "failed": {name: count for name, count in failed.items() if count},
        **({"search_dtype": search_dtype and dtype_name(search_dtype), "ensembles": details} if details else {}),
    }
    names = tuple(class_names) if class_names else tuple(str(c) for c in range(num_classes))
    return Report({name: outcomes[name] for name in wanted}, y.cpu(), names, settings)


def _loss(attack: Attack) -> str:
    """The loss whose gradient an attack follows, as far as `examine` tells them apart."""
    return "ce" if isinstance(attack, PGD) and attack.loss != "margin" else "margin"
