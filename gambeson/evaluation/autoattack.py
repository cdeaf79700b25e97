"""AutoAttack: an ensemble of searches, each on the examples that still stand; exact, resumable, its costs counted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gambeson.attacks.search import Jobs, Search, hunt, most_steps
from gambeson.core.digests import digest_of
from gambeson.core.errors import InputError, UnhealthyError
from gambeson.core.modes import batch_norm
from gambeson.core.parameters import like_of
from gambeson.core.processes import of_all, rank_and_world
from gambeson.core.streams import Streams
from gambeson.core.threat import Threat
from gambeson.data.loader import to_unit
from gambeson.data.stored import Images, in_memory
from gambeson.evaluation.ensembles import create_ensemble
from gambeson.evaluation.examples import check_examples
from gambeson.evaluation.harvest import Harvest
from gambeson.evaluation.ledger import Ledger, digest_of_json, weights_digest
from gambeson.evaluation.preflight import preflight
from gambeson.evaluation.statistics import Interval, wilson
from gambeson.models.folding import folded


@dataclass(frozen=True)
class Stage:
    """One attack of the ensemble.

    Attributes:
        attack: Its name.
        standing: Examples that it was run on: correct so far.
        fell: How many of them it fooled.
        left: How many are still correct after it.
        seconds: Time it took, over all sessions of a resumed evaluation.
        forwards: Images that went through the model.
        backwards: Images whose gradient was taken.
        kept: Examples of `standing` whose outcome was read from the ledger; their passes and time are counted too.
    """

    attack: str
    standing: int
    fell: int
    left: int
    seconds: float
    forwards: int
    backwards: int
    kept: int = 0


@dataclass(frozen=True, eq=False)
class AutoAttackReport:
    """What an ensemble found.

    Attributes:
        version: `standard`, `plus`, `rand`, `preview` or `custom`.
        stages: The attacks in their order.
        clean: Whether each example is correct without attack, bool `(N,)`.
        fell_to: The number of the stage to which each example fell; -1 where it fell to none.
        y: Labels `(N,)`.
        x_adv: Adversarial images `(N, C, H, W)`, verified by the model in its own precision; the clean image where none
            was found.
        settings: Threat, seed, and what else the result depends on: `search_dtype` is the type of autocast in which the
            attacks searched (None: the model's own), `folded` how many BatchNorms were folded for it, `confirmed_in`
            the type in which the model judged every fall.
    """

    version: str
    stages: tuple[Stage, ...]
    clean: Tensor
    fell_to: Tensor
    y: Tensor
    x_adv: Tensor
    settings: dict[str, Any]

    @property
    def robust(self) -> Tensor:
        """Whether each example is correct and fell to no attack, bool `(N,)`."""
        return self.clean & (self.fell_to < 0)

    def accuracy(self) -> Interval:
        """Robust accuracy with its Wilson 95 % interval; for `preview` and `custom` an upper bound of AutoAttack's."""
        return wilson(int(self.robust.sum()), len(self.y))

    def clean_accuracy(self) -> Interval:
        """Accuracy without attack with its Wilson 95 % interval."""
        return wilson(int(self.clean.sum()), len(self.y))

    def to_dict(self) -> dict[str, Any]:
        """Everything but the examples, for JSON."""
        return {
            **self.settings,
            "version": self.version,
            "n": len(self.y),
            "clean": vars(self.clean_accuracy()),
            "robust": vars(self.accuracy()),
            "stages": [asdict(stage) for stage in self.stages],
        }


def autoattack(
    model: nn.Module,
    x: Images,
    y: Tensor,
    threat: Threat,
    *,
    num_classes: int,
    version: str = "standard",
    attacks: Sequence[str | Search] | None = None,
    seed: int = 0,
    slots: int = 128,
    every: int | None = None,
    dtype: torch.dtype | None = None,
    fold: bool = True,
    ledger: Path | None = None,
    progress: Callable[[str, int, int], None] | None = None,
    begin: Callable[[str, int], None] | None = None,
    tick: Callable[[int], None] | None = None,
    listen: Callable[[Stage], None] | None = None,
    checks: bool = True,
) -> AutoAttackReport:
    """Robust accuracy by an ensemble of attacks, each run on the examples that all before it left standing.

    An example leaves an attack the moment it falls, and the next one takes its place in the batch. Examples that are
    wrong without attack are not attacked. Every adversarial image is projected, clipped and judged here, in the model's
    own precision, before it counts. What happens to an example does not depend on the others: the same verdicts come
    out, up to the rounding of a forward, for every batch size, after every interruption and on any number of processes.

    Args:
        model: Maps images in [0, 1] to logits; evaluated in evaluation mode and as before afterwards.
        x: Images `(N, C, H, W)`, uint8 or float in [0, 1]; stored ones are decoded at once.
        y: Labels `(N,)` in `[0, num_classes)`.
        threat: The ball, `Linf` or `L2`, one budget for all.
        num_classes: Number of classes.
        version: `standard`, `plus`, `rand` (randomised models), `preview` (an upper bound at a fraction of the cost) or
            `custom`.
        attacks: For `custom`: names in `gambeson.evaluation.ensembles.SEARCHES`, or searches.
        seed: Seed of all random draws.
        slots: Images at a time.
        every: Steps between looks at who has fallen; by default 1 on the CPU and 5 elsewhere, where a look waits for
            the device.
        dtype: Search under autocast to this type, such as `torch.bfloat16`; every fall is confirmed in the model's own.
        fold: Search on a copy whose BatchNorms are folded into its convolutions where that can be done: the same
            function, with another rounding, 1.1 to 1.2 times as fast on a CPU. Every fall is confirmed by the model.
        ledger: Folder that keeps what is found (`state_key` gives it a name). A later call goes on from there, also
            with another version: what an attack has done counts for every ensemble that has it.
        progress: Called with the attack, the examples that are through and those that fell, since the last call.
        begin: Called with every attack, and how many examples of this process stand, before it begins.
        tick: Called after every step of an attack, with how many it makes if nothing falls.
        listen: Called with every stage once it is over.
        checks: Examine model and data before, see `examine`; without, only images and labels are looked at.

    Returns:
        The report, on the CPU.

    Raises:
        InputError: Images outside [0, 1], labels out of range, another number of outputs, a budget per example, an
            unknown version or attack, or a randomised model with a version that is not for it.
        RunError: The ledger is damaged, or belongs to another evaluation.

    References:
        Croce, Hein, "Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free attacks",
        ICML 2020, https://arxiv.org/abs/2003.01690; code: https://github.com/fra31/auto-attack
    Departures:
        Random draws belong to the example and not to the batch; an example is not attacked on once it has fallen;
        BatchNorms are folded for the search (`fold`); the other departures are those of the searches.
    """
    searches = create_ensemble(version, tuple(attacks) if attacks else None)
    if not isinstance(threat.eps, (int, float)):
        raise InputError("AutoAttack takes one budget for all examples, got a tensor")
    if slots < 1:
        raise InputError(f"slots must be at least 1, got {slots}")
    if checks:
        preflight(model, x, y, threat, ("ce", "margin"), num_classes=num_classes, batch_size=slots)
    else:
        check_examples(x, y, num_classes)
    x, y = in_memory(x).cpu(), y.cpu().to(torch.int64)
    logits = _logits(model, x, slots, num_classes)
    if version not in ("rand", "custom"):
        _require_deterministic(model, x[:slots], logits[:slots])
    clean = (logits.argmax(1) == y) & logits.isfinite().all(1)
    book = Ledger(ledger, _identity(model, x, y, threat, seed, dtype, fold)) if ledger else None
    like = like_of(model, x)
    every = every or (1 if like.device.type == "cpu" else 5)
    faster, layers = folded(model, to_unit(x[:slots].to(like.device)).to(like.dtype)) if fold else (model, 0)
    stand_in = faster if layers else None
    rank, world = rank_and_world()
    mine = torch.arange(len(y)) % world == rank
    fell_to = torch.full((len(y),), -1, dtype=torch.int8)
    x_adv = to_unit(x).clone()
    stages = []
    for number, search in enumerate(searches):
        standing = mine & clean & (fell_to < 0)
        if begin:
            begin(search.name, int(standing.sum()))
        harvest = Harvest(model, x, y, threat, num_classes, slots)
        harvest.begin(search, standing, book, f"{rank}of{world}", progress)
        todo = (standing & ~harvest.done).nonzero().squeeze(1)
        kept = int(standing.sum()) - len(todo)
        jobs = Jobs(x[todo], y[todo], logits[todo], todo, torch.zeros_like(todo))
        try:
            streams = Streams(seed)
            most = most_steps(search, len(todo), num_classes, slots=slots, every=every)
            hunt(
                model,
                search,
                jobs,
                threat,
                streams,
                harvest.add,
                slots=slots,
                every=every,
                dtype=dtype,
                stand_in=stand_in,
                tick=partial(tick, most) if tick else None,
            )
        finally:
            harvest.flush()
        fell_to[harvest.fooled] = number
        for index, images in harvest.found:
            x_adv[index] = images
        left = int((mine & clean & (fell_to < 0)).sum())
        stages.append(Stage(search.name, int(standing.sum()), int(harvest.fooled.sum()), left, *harvest.spent, kept))
        if world > 1:
            stages[-1] = _gather(stages[-1], number, fell_to, x_adv)
        if listen:
            listen(stages[-1])
    settings = {
        "norm": threat.norm,
        "eps": float(threat.eps),
        "seed": seed,
        "slots": slots,
        "searches": [repr(search) for search in searches],
        "search_dtype": None if dtype is None else dtype_name(dtype),
        "folded": layers,
        "confirmed_in": dtype_name(like.dtype),
    }
    return AutoAttackReport(version, tuple(stages), clean, fell_to, y, x_adv, settings)


def dtype_name(dtype: torch.dtype) -> str:
    """A type as records call it.

    Examples:
        >>> dtype_name(torch.bfloat16)
        'bfloat16'
    """
    return str(dtype).removeprefix("torch.")


def _logits(model: nn.Module, x: Tensor, batch_size: int, num_classes: int) -> Tensor:
    """Clean logits `(N, K)`, on the CPU."""
    like = like_of(model, x)
    rows = []
    with torch.no_grad(), batch_norm(model, "running"):
        for start in range(0, len(x), batch_size):
            rows.append(model(to_unit(x[start : start + batch_size].to(like.device)).to(like.dtype)).cpu())
    logits = torch.cat(rows)
    if logits.shape != (len(x), num_classes):
        raise UnhealthyError(
            f"the model must give logits of shape ({len(x)}, {num_classes}), got {tuple(logits.shape)}",
            hint="is the checkpoint of a model for another number of classes?",
        )
    return logits


def _require_deterministic(model: nn.Module, x: Tensor, logits: Tensor) -> None:
    again = _logits(model, x, len(x), logits.shape[1])
    if not torch.equal(again, logits):
        largest = float((again - logits).abs().max())
        raise UnhealthyError(
            f"the model is randomised: the same images gave logits that differ by up to {largest:g}",
            hint="use the version rand, which averages gradients over 20 forwards",
        )


def state_key(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    seed: int = 0,
    dtype: torch.dtype | None = None,
    fold: bool = True,
) -> str:
    """Twelve hexadecimal digits of what the state of an evaluation depends on besides its attacks: a folder's name."""
    return digest_of_json(_identity(model, x.cpu(), y.cpu().to(torch.int64), threat, seed, dtype, fold))[:12]


def _identity(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    seed: int,
    dtype: torch.dtype | None,
    fold: bool,
) -> dict[str, Any]:
    return {
        "weights": weights_digest(model),
        "images": digest_of({"x": x}),
        "labels": digest_of({"y": y}),
        "norm": threat.norm,
        "eps": threat.eps,
        "seed": seed,
        "search_dtype": str(dtype),
        **({"fold": True} if fold else {}),
    }


def _gather(stage: Stage, number: int, fell_to: Tensor, x_adv: Tensor) -> Stage:
    """Take over what the other processes found; the stage of all, with the seconds of the slowest."""
    fell = (fell_to == number).nonzero().squeeze(1)
    shards = of_all((stage, fell, x_adv[fell]))
    for _, index, images in shards:
        fell_to[index], x_adv[index] = number, images
    parts = [part for part, *_ in shards]
    total = {name: sum(getattr(part, name) for part in parts) for name in COUNTS}
    return Stage(stage.attack, **total, seconds=max(part.seconds for part in parts))


COUNTS = ("standing", "fell", "left", "forwards", "backwards", "kept")
