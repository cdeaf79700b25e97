"""The straight line between two checkpoints of one architecture, and what the models on it can do."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from gambeson.attacks.pgd import PGD
from gambeson.core.errors import CheckpointError, InputError, require_known
from gambeson.core.streams import Streams
from gambeson.core.threat import Threat
from gambeson.core.types import Batch
from gambeson.data.loader import to_unit
from gambeson.evaluation.examples import check_examples
from gambeson.evaluation.judging import judge, returned_images
from gambeson.evaluation.statistics import Interval, wilson

Entries = Literal["full-state", "parameters"]
GRID = tuple(step / 10 for step in range(11))
"""The release's grid: 0, 0.1, ..., 1."""


def parse_alphas(text: str) -> tuple[float, ...]:
    """A grid of interpolation coefficients from `0,0.1,0.2`, `[0, 0.5, 1]` or `0:1:0.1` (start, end, step).

    Raises:
        InputError: Not numbers, none, a step that does not lead from the start to the end, or a grid without 0: the
            rule compares with the model at 0.

    Examples:
        >>> parse_alphas("0:0.2:0.1")
        (0.0, 0.1, 0.2)
    """
    words = [word for word in text.strip().removeprefix("[").removesuffix("]").replace(" ", "").split(",") if word]
    steps = words[0].split(":") if len(words) == 1 else []
    try:
        numbers = [float(word) for word in (steps if len(steps) == 3 else words)]
    except ValueError:
        raise InputError(f"alphas are numbers, got {text!r}", hint="--alphas 0,0.1,0.2 or --alphas 0:1:0.1") from None
    if len(steps) != 3 or not all(abs(number) < float("inf") for number in numbers):
        return check_alphas(numbers)
    start, end, step = numbers
    count = round((end - start) / step) if step > 0 else 0
    if count < 1 or abs(start + count * step - end) > 1e-9:
        raise InputError(f"the grid {text!r} does not go from {start:g} to {end:g} in steps of {step:g}")
    alphas = [round(start + number * step, 12) for number in range(count + 1)]
    return check_alphas(alphas)


def check_alphas(alphas: Sequence[float]) -> tuple[float, ...]:
    """The grid in ascending order, each number once.

    Raises:
        InputError: A number that is not finite, or no 0.
    """
    if not all(abs(alpha) < float("inf") for alpha in alphas):
        raise InputError(f"alphas are finite numbers, got {list(alphas)}")
    if 0.0 not in alphas:
        raise InputError(
            f"the grid of alphas needs 0, the model that was started from, got {list(alphas)}",
            hint="the rule compares robust accuracy with the one at 0",
        )
    return tuple(sorted({float(alpha) for alpha in alphas}))


def interpolated(
    a: Mapping[str, Tensor], b: Mapping[str, Tensor], alpha: float, entries: Entries, parameters: Sequence[str]
) -> dict[str, Tensor]:
    """`(1 - alpha) a + alpha b`, entry by entry; at 0 and 1 the entries of a and b to the bit.

    Args:
        a: State dict at 0.
        b: State dict at 1.
        alpha: Where on the line; beyond [0, 1] it is extrapolated.
        entries: `full-state`: everything, BatchNorm's running statistics too, as RiFT's release; whole numbers
            (`num_batches_tracked`) are cut off as there. `parameters`: the rest is a's.
        parameters: Names of the entries that are parameters.

    Returns:
        A state dict.

    Raises:
        CheckpointError: The two are not of one architecture; every difference is listed.

    References:
        Zhu et al., ICCV 2023, equation 9; microsoft/robustlearn, RiFT/utils.py:25-36.
    """
    require_known("entries", entries, get_args(Entries))
    wrong = [f"{name} is only in the first" for name in a if name not in b]
    wrong += [f"{name} is only in the second" for name in b if name not in a]
    wrong += [
        f"{name} has shape {tuple(a[name].shape)} in the first, {tuple(b[name].shape)} in the second"
        for name in a
        if name in b and a[name].shape != b[name].shape
    ]
    if wrong:
        raise CheckpointError(f"there is no line between these checkpoints: {'; '.join(wrong)}")
    moving = set(parameters) if entries == "parameters" else set(a)
    return {name: _between(a[name], b[name], alpha) if name in moving else a[name].clone() for name in a}


def _between(a: Tensor, b: Tensor, alpha: float) -> Tensor:
    if alpha == 0:
        return a.clone()
    if alpha == 1:
        return b.clone()
    if not a.is_floating_point():
        return ((1 - alpha) * a.double() + alpha * b.double()).to(a.dtype)
    return (1 - alpha) * a + alpha * b


@torch.no_grad()
def reestimate_statistics(model: nn.Module, x: Tensor, batch_size: int = 256) -> None:
    """Replace BatchNorm's running statistics by averages over images: interpolated ones belong to no model.

    Args:
        model: Changed in place; other modules and the weights are not.
        x: Clean training images `(N, C, H, W)`, uint8 or float in [0, 1].
        batch_size: Images per forward; every batch counts alike.

    References:
        Izmailov et al., "Averaging weights leads to wider optima and better generalization", UAI 2018,
        https://arxiv.org/abs/1803.05407; torch.optim.swa_utils.update_bn.
    """
    device = next(model.parameters()).device
    with torch.random.fork_rng():  # dropout, where there is one, is on during these forwards
        torch.manual_seed(0)
        update_bn((to_unit(part.to(device)) for part in x.split(batch_size)), model)


@dataclass(frozen=True)
class Point:
    """A model on the line.

    Attributes:
        alpha: Where.
        clean: Clean accuracy.
        robust: Accuracy under PGD; of several runs the lowest.
        runs: Accuracy in every run of PGD.
    """

    alpha: float
    clean: Interval
    robust: Interval
    runs: tuple[float, ...]


@dataclass(frozen=True)
class Line:
    """The models on the line.

    Attributes:
        points: By alpha, ascending.
        chosen: The alpha that the rule takes.
        tolerance: By how much robust accuracy may lie below the one at 0.
    """

    points: tuple[Point, ...]
    chosen: float
    tolerance: float

    def at(self, alpha: float) -> Point:
        """The point at `alpha`.

        Raises:
            InputError: It was not measured.
        """
        for point in self.points:
            if point.alpha == alpha:
                return point
        raise InputError(f"alpha {alpha:g} was not measured", hint=", ".join(f"{p.alpha:g}" for p in self.points))

    def to_dict(self) -> dict[str, Any]:
        """Everything, for JSON."""
        return asdict(self)


def choose_alpha(points: Sequence[Point], tolerance: float = 0.001) -> float:
    """The alpha of the highest clean accuracy among those whose robust accuracy is not below the one at 0 by more than
    `tolerance`; ties go to higher robust accuracy, then to the smaller alpha. Alpha 0 always qualifies.

    Args:
        points: The measured points, one of them at 0.
        tolerance: A fraction: 0.001 is RiFT's 0.1 points.

    Raises:
        InputError: No point at 0, or a negative tolerance.
    """
    if not tolerance >= 0:
        raise InputError(f"the tolerance must be at least 0, got {tolerance}")
    start = next((point for point in points if point.alpha == 0), None)
    if start is None:
        raise InputError("the rule needs the point at alpha 0")
    allowed = [point for point in points if point.robust.value >= start.robust.value - tolerance - 1e-12]
    return max(allowed, key=lambda point: (point.clean.value, point.robust.value, -point.alpha)).alpha


def walk(
    model: nn.Module,
    a: Mapping[str, Tensor],
    b: Mapping[str, Tensor],
    x: Tensor,
    y: Tensor,
    threat: Threat,
    *,
    num_classes: int,
    alphas: Sequence[float] = GRID,
    entries: Entries = "full-state",
    statistics_from: Tensor | None = None,
    tolerance: float = 0.001,
    attack: PGD | None = None,
    runs: int = 1,
    batch_size: int = 256,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> Line:
    """Clean and robust accuracy along the line from a to b, and the alpha that the rule takes.

    The random starts of the attack are the same at every alpha, so that alphas differ by their weights alone.

    Args:
        model: Of the architecture of both; loaded with every state in turn, and back with its own at the end.
        a: State dict at 0.
        b: State dict at 1.
        x: Images `(N, C, H, W)`, uint8 or float in [0, 1].
        y: Labels `(N,)`.
        threat: The ball.
        num_classes: Number of classes.
        alphas: The grid; 0 is one of them.
        entries: See `interpolated`.
        statistics_from: Images from which BatchNorm's statistics are re-estimated at every alpha but 0 and 1; or None.
        tolerance: See `choose_alpha`.
        attack: PGD-10 with steps of eps/4 from a uniform start by default.
        runs: Runs of the attack with different starts; the lowest accuracy counts (RiFT's text: the worst of 3).
        batch_size: Images at a time.
        seed: Of the starts.
        progress: Called with the number of images done, once per batch and alpha.

    Returns:
        The points, and the chosen alpha.

    Raises:
        InputError: A grid without 0, images or labels that do not fit, no run.
        CheckpointError: a and b are not of one architecture.
    """
    alphas = check_alphas(alphas)
    check_examples(x, y, num_classes)
    if runs < 1 or batch_size < 1:
        raise InputError(f"runs and batch_size must be at least 1, got {runs} and {batch_size}")
    attack = attack or PGD(steps=10, rel_step_size=0.25)
    names = [name for name, _ in model.named_parameters()]
    interpolated(a, b, 0.0, entries, names)  # refuses two architectures before any work
    own = {name: t.detach().clone() for name, t in model.state_dict().items()}
    a, b = ({name: t.detach().clone() for name, t in state.items()} for state in (a, b))  # may be the model's own
    points = []
    try:
        for alpha in alphas:
            model.load_state_dict(interpolated(a, b, alpha, entries, names))
            if statistics_from is not None and alpha not in (0.0, 1.0):
                reestimate_statistics(model, statistics_from, batch_size)
            points.append(_measure(model, alpha, x, y, threat, num_classes, attack, runs, batch_size, seed, progress))
    finally:
        model.load_state_dict(own)
    return Line(tuple(points), choose_alpha(points, tolerance), tolerance)


def _measure(
    model: nn.Module,
    alpha: float,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    num_classes: int,
    attack: PGD,
    runs: int,
    batch_size: int,
    seed: int,
    progress: Callable[[int], None] | None,
) -> Point:
    device = next(model.parameters()).device
    streams = Streams(seed)
    right, standing = 0, [0] * runs
    for number, begin in enumerate(range(0, len(y), batch_size)):
        part = slice(begin, begin + batch_size)
        images, labels = to_unit(x[part].to(device)), y[part].to(device)
        clean = judge(model, images, labels, num_classes)
        right += int(clean.sum())
        batch = Batch(images, labels, torch.arange(len(labels), device=device))
        for run in range(runs):  # all images are attacked, whatever has fallen: the starts are then the same
            x_adv = attack(model, batch, threat, streams.at(f"interpolate/{run}", number, device))
            x_adv, _ = returned_images(x_adv, images, threat)
            standing[run] += int((clean & judge(model, x_adv, labels, num_classes)).sum())
        if progress:
            progress(len(labels))
    found = tuple(count / len(y) for count in standing)
    return Point(alpha, wilson(right, len(y)), wilson(min(standing), len(y)), found)
