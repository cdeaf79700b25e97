"""Loss landscapes: the loss around the weights of some layers, or around the images, in random directions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from gambeson.attacks.attack import input_gradient
from gambeson.core.errors import InputError
from gambeson.core.losses import ce
from gambeson.core.modes import batch_norm, frozen
from gambeson.core.parameters import applied, layer_weights, like_of
from gambeson.core.streams import Streams
from gambeson.core.threat import Threat, box
from gambeson.data.loader import to_unit
from gambeson.diagnosis.groups import short
from gambeson.diagnosis.prefixes import PrefixCache
from gambeson.diagnosis.probes import batches, random_direction
from gambeson.diagnosis.suffix import Graph
from gambeson.evaluation.examples import check_examples
from gambeson.evaluation.finding import finite_number


@dataclass(frozen=True, eq=False)
class Landscape:
    """The mean cross-entropy on a grid.

    Attributes:
        title: What is moved: a group of layers, or `input`.
        axis: The coordinates along each direction, ascending, with 0.
        loss: Mean cross-entropy, float64, `(G,)` or `(G, G)`; infinite where it is not finite.
        layers: The weights that are moved; empty for the images.
        settings: What was run, for the record.
    """

    title: str
    axis: tuple[float, ...]
    loss: Tensor
    layers: tuple[str, ...]
    settings: dict[str, Any]

    @property
    def centre(self) -> float:
        """The loss at 0."""
        middle = self.axis.index(0.0)
        return float(self.loss[(middle,) * self.loss.ndim])

    @property
    def rise(self) -> float:
        """The largest loss on the grid minus that at the centre."""
        return float(self.loss.max()) - self.centre

    @property
    def roughness(self) -> float:
        """The mean absolute Laplacian over the inner points, by central differences."""
        step = self.axis[1] - self.axis[0]
        total = torch.zeros_like(self.loss[(slice(1, -1),) * self.loss.ndim])
        inner = self.loss[(slice(1, -1),) * self.loss.ndim]
        for dim in range(self.loss.ndim):
            rest = [slice(1, -1)] * self.loss.ndim
            before, after = list(rest), list(rest)
            before[dim], after[dim] = slice(None, -2), slice(2, None)
            total = total + (self.loss[tuple(before)] + self.loss[tuple(after)] - 2 * inner) / step**2
        return float(total.abs().mean())

    def to_dict(self) -> dict[str, Any]:
        """Everything, for JSON; a loss that is not finite is None."""
        rows = self.loss.tolist()
        flat = rows if self.loss.ndim == 2 else [rows]
        safe = [[finite_number(value) for value in row] for row in flat]
        scalars = {"centre": self.centre, "rise": self.rise, "roughness": self.roughness}
        return {
            **self.settings,
            "title": self.title,
            "layers": list(self.layers),
            "axis": list(self.axis),
            "loss": safe if self.loss.ndim == 2 else safe[0],
            **{key: finite_number(value) for key, value in scalars.items()},
        }


def grid_axis(points: int, span: float) -> tuple[float, ...]:
    """So many coordinates from `-span` to `span`, with 0.

    Raises:
        InputError: An even number of points or fewer than 3, or a span that is not positive.

    Examples:
        >>> grid_axis(5, 1.0)
        (-1.0, -0.5, 0.0, 0.5, 1.0)
    """
    if points < 3 or points % 2 == 0:
        raise InputError(f"a grid with 0 in its middle has an odd number of points, at least 3, got {points}")
    if not 0 < span < float("inf"):
        raise InputError(f"the span of a grid is positive, got {span}")
    half = points // 2
    return tuple(span * k / half for k in range(-half, half + 1))


def weight_landscape(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    layers: Sequence[str],
    *,
    axis: Sequence[float],
    title: str = "",
    dims: int = 2,
    batch_size: int = 256,
    seed: int = 0,
    memory: int = 4 * 2**30,
    progress: Callable[[], None] | None = None,
) -> Landscape:
    """The mean cross-entropy at `W + a d_1 + b d_2`, d random Gaussian directions of some layers' weights.

    The directions are filter-normalised; a layer's are the same in every group that has it, and for every model with
    these layers, so that groups and checkpoints can be compared. BatchNorm has its running statistics, which belong to
    the weights in the centre. What the layers' weights cannot change is computed once and kept, so that every point
    runs what follows them only; on the CPU in float32 that gives the bits of whole networks.

    Args:
        model: Maps images in [0, 1] to logits; its weights come back bit for bit.
        x: Images `(N, C, H, W)`, float, such as from `attacked_images`; they stay while the weights move.
        y: Labels `(N,)`.
        layers: Names of weights, see `gambeson.diagnosis.groups`.
        axis: Coordinates, see `grid_axis`.
        title: A name for the group.
        dims: 1 or 2 directions.
        batch_size: Images at a time.
        seed: Seed of the directions.
        memory: Bytes for values that are kept; where they do not fit, every point runs the whole network.
        progress: Called after every point.

    Raises:
        InputError: Unknown weights, images or labels that do not fit, or another number of directions.

    References:
        Li et al., as for `filter_normalised`. Lin, Yu, Han, Su, Liu, ICML 2024, https://arxiv.org/abs/2405.16262,
        figure 1 (whose directions, axes and images are not published: the protocol is ours).
    """
    weights = layer_weights(model)
    if missing := [name for name in layers if name not in weights]:
        raise InputError(f"the model has no weights {', '.join(missing)}")
    if dims not in (1, 2):
        raise InputError(f"a landscape has 1 or 2 directions, got {dims}")
    own = {name: weights[name].detach() for name in layers}
    directions = [
        {name: random_direction(w, name, which=which, seed=seed) for name, w in own.items()} for which in range(dims)
    ]

    def at(point: tuple[float, ...]) -> float:
        moved = {
            name: sum(a * d[name] for a, d in zip(point, directions, strict=True)) if any(point) else None
            for name in layers
        }
        with applied(model, {name: v for name, v in moved.items() if isinstance(v, Tensor)}):
            return _mean_loss(lambda part: cut.run(inputs(part)), y, batch_size)

    with torch.no_grad(), batch_norm(model, "running"):
        check_examples(x, y, model(x[:1]).shape[1])
        y = y.to(x.device)
        graph = Graph(model, x[:1])
        cut = graph.cut(*map(short, layers))
        cut, inputs = PrefixCache(graph, x, [cut], batch_size, memory).advance(cut)
        loss = _fill(axis, dims, at, progress)
    settings = {"kind": "weights", "dims": dims, "n": len(y), "seed": seed}
    return Landscape(title, tuple(axis), loss, tuple(layers), settings)


def input_landscape(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    *,
    axis: Sequence[float],
    batch_size: int = 256,
    seed: int = 0,
    progress: Callable[[], None] | None = None,
) -> Landscape:
    """The mean cross-entropy at `box(x + eps (a ascend(g) + b r))`: g the gradient at x, r random.

    `ascend(g)` is `sign(g)` for Linf and `g / |g|` for L2; r has random signs (Rademacher), for L2 it is a random
    direction of norm 1. One step of FGSM is the point (1, 0).

    Args:
        model: Maps images in [0, 1] to logits; as before afterwards.
        x: Images `(N, C, H, W)`, uint8 or float in [0, 1].
        y: Labels `(N,)`.
        threat: Norm and budget, the unit of both coordinates.
        axis: Coordinates, see `grid_axis`.
        batch_size: Images at a time.
        seed: Seed of the random direction.
        progress: Called after every point.

    Raises:
        InputError: Images or labels that do not fit.
    """
    like = like_of(model, x)
    images, labels = to_unit(x.to(like.device)).to(like.dtype), y.to(like.device, torch.int64)
    with frozen(model), batch_norm(model, "running"):
        with torch.no_grad():
            check_examples(x, y, model(images[:1]).shape[1])
        grads = [
            input_gradient(model, partial(ce, y=labels[part]), images[part])[0]
            for part in batches(len(labels), batch_size)
        ]
        rng = Streams(seed).at("landscape/input")
        noise = torch.randn(images.shape, generator=rng, dtype=images.dtype).to(images.device)
        first, second = threat.ascend(torch.cat(grads)), threat.ascend(noise)

        def at(point: tuple[float, ...]) -> float:
            moved = box(images + threat.eps * (point[0] * first + point[1] * second))
            return _mean_loss(lambda part: model(moved[part]), labels, batch_size)

        with torch.no_grad():
            loss = _fill(axis, 2, at, progress)
    settings = {"kind": "input", "dims": 2, "n": len(y), "seed": seed, "norm": threat.norm, "eps": float(threat.eps)}
    return Landscape("input", tuple(axis), loss, (), settings)


def _mean_loss(logits_of: Callable[[slice], Tensor], y: Tensor, batch_size: int) -> float:
    """Infinite where it is not finite."""
    sums = [ce(logits_of(part), y[part]).double().sum() for part in batches(len(y), batch_size)]
    mean = float(torch.stack(sums).sum()) / len(y)
    return mean if mean < float("inf") else float("inf")


def _fill(
    axis: Sequence[float], dims: int, at: Callable[[tuple[float, ...]], float], progress: Callable[[], None] | None
) -> Tensor:
    """The grid, point by point."""
    points = [(a,) for a in axis] if dims == 1 else [(a, b) for a in axis for b in axis]
    values = []
    for point in points:
        values.append(at(point))
        if progress:
            progress()
    return torch.tensor(values, dtype=torch.float64).view((len(axis),) * dims)
