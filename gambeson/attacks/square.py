"""Square Attack: random search with squares that shrink. It sees the logits only, so no gradient can mislead it."""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

import torch

from gambeson.attacks.attack import per_image, require
from gambeson.attacks.search import Forward, Jobs, State, select
from gambeson.core.errors import require_known
from gambeson.core.losses import ce, margin
from gambeson.core.streams import Streams, uniform
from gambeson.core.threat import Threat, box

if TYPE_CHECKING:
    from torch import Tensor

Loss = Literal["margin", "ce"]
"""What a `Square` climbs."""


@dataclass(frozen=True, kw_only=True)
class Square:
    """Square Attack as a `Search`: a query tries a change in one square, and keeps it where the loss rises.

    The side of the square at query k = 0, 1, ... is `s = round(sqrt(p H W))`; the share `p` starts at `p_init` and is
    halved after query 10, 50, 200, 500, 1000, 2000, 4000, 6000 and 8000. With one random sign per channel, and W a
    square at a random place,

        Linf:  x_0 = box(x + eps * sign), a sign per channel and column;   x_{k+1} = box(x + eps * sign) in W

    and x_k elsewhere. Every L2 perturbation is scaled to norm eps before it is clipped to the box. It starts as a grid
    of 5 x 5 tiles, each `sign * eta` with `eta` a bump beside its negative, upright or on its side:

        eta ~ (h, -h),   h(i, j) = sum_{k >= d} 1 / (k + 1)^2,   d the larger distance from the centre of h

    A query takes the mass of two squares W, V of one (odd) side into the first, with what the budget leaves, v:

        delta_W <- u / ||u|| * sqrt(||delta_{W or V}||^2 + v / C),   u = sign * eta + delta_W / ||delta_W||
        delta_{V without W} <- 0,   v = max(eps^2 - ||delta||^2, 0);   norms of squares per channel

    A query that is misclassified is kept too, and ends the search.

    Args:
        queries: Queries of every round, besides the one at its start.
        p_init: Share of the pixels in the first squares, in (0, 1].
        restarts: Rounds.
        rescale: Stretch the schedule of p, made for 10000 queries, to `queries`.
        loss: What must rise: `"margin"`, `max_{k != y} z_k - z_y`, or `"ce"`.

    Raises:
        InputError: A setting out of range.

    References:
        Andriushchenko, Croce, Flammarion, Hein, "Square Attack: a query-efficient black-box adversarial attack via
        random search", ECCV 2020, https://arxiv.org/abs/1912.00049; code: https://github.com/fra31/auto-attack,
        lines below are those of square.py in pyautoattack 0.2.0
    Departures:
        The release is that of AutoAttack, and untargeted. It draws the squares, their orientation and, for Linf, their
        signs once for the whole batch (lines 257-261, 346-354, 313 and 365); here every example has draws of its own,
        so that its course does not depend on which others are attacked. As in the release, and unlike in the paper, a
        square is never at the last position, H - s or W - s (`random_int`, lines 117-119). The release stops at a
        margin of 0 (lines 244, 279, 393); here an example has fallen when its largest logit is another class's, the
        first of equal ones counting, so that a tie may go on. Where tiles do not fit (fewer than 5 pixels, or other
        sizes such as 12 or 18, where the release fails, lines 307-317), they have at least one pixel and are cut at the
        edge; in images that are not square the shorter side rules. The sign of a draw is never 0 (line 114).
    """

    queries: int = 5000
    p_init: float = 0.8
    restarts: int = 1
    rescale: bool = False
    loss: Loss = "margin"

    def __post_init__(self) -> None:
        require_known("loss", self.loss, get_args(Loss))
        for name, value in (("queries", self.queries), ("restarts", self.restarts)):
            require(value >= 1, f"Square Attack needs {name} >= 1", value)
        require(0 < self.p_init <= 1, "Square Attack needs p_init, a share of the pixels, in (0, 1]", self.p_init)

    @property
    def name(self) -> str:
        """`square`, or `square-ce`."""
        return "square" if self.loss == "margin" else f"square-{self.loss}"

    @property
    def length(self) -> int:
        """Queries, the one at the start included."""
        return self.queries + 1

    def rounds(self, num_classes: int) -> int:
        """Restarts."""
        return self.restarts

    def begin(self, jobs: Jobs, threat: Threat, streams: Streams) -> State:
        """The starts, to be evaluated in the first step."""
        x, keys = jobs.x, streams.keys(self.name, jobs.index, jobs.round)
        no = x.new_zeros(len(x), dtype=torch.bool)
        return {
            "x": x,
            "y": jobs.y,
            "x_adv": (_stripes if threat.norm == "Linf" else _tiles)(x, keys, threat),  # the best point
            "loss_best": x.new_full((len(x),), -torch.inf),
            "fooled": no,
            "ended": no,
            "keys": keys,
            "taken": torch.zeros_like(keys),  # queries, the one at the start included
        }

    def step(self, model: Forward, state: State, threat: Threat) -> None:
        """One query."""
        x, at, taken = state["x"], state["x_adv"], state["taken"]
        plan = _plan(self, threat.norm, x.shape[2], x.shape[3], x.dtype, x.device)
        query = (taken - 1).clamp(0, self.queries - 1)
        side, level = plan.side[query], plan.level[query]
        with torch.no_grad():
            u = uniform(state["keys"], taken, 5 + x.shape[1])
            linf = threat.norm == "Linf"
            there = _recoloured(x, at, threat, side, u) if linf else _gathered(x, at, threat, side, plan.eta, level, u)
            there = select(taken > 0, there, at)
            logits = model(there)
            values = (margin if self.loss == "margin" else ce)(logits, state["y"])
        going = ~(state["fooled"] | state["ended"])
        wrong = going & (logits.argmax(1) != state["y"])
        better = going & (values > state["loss_best"])
        state["x_adv"] = select(wrong | better, there, at)
        state["loss_best"] = select(better, values, state["loss_best"])
        state["fooled"] = state["fooled"] | wrong
        state["taken"] = taken + going.to(torch.int64)
        state["ended"] = state["taken"] > self.queries


_HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
"""The queries of 10000 after which p is halved; `p_selection` of the release."""


class _Plan(NamedTuple):
    """What comes at which query, on the device: p has been halved `level` times, `side` and `level` are `(queries,)`.

    `eta` has a pattern per level, `(levels, S, S)`, padded with zeros; S is 0 for Linf.
    """

    level: Tensor
    side: Tensor
    eta: Tensor


@lru_cache(maxsize=16)
def _plan(search: Square, norm: str, height: int, width: int, dtype: torch.dtype, device: torch.device) -> _Plan:
    n = search.queries
    level = torch.tensor([bisect_left(_HALVINGS, int(k / n * 10000) if search.rescale else k) for k in range(n)])
    sides = _sides(search.p_init, norm, height, width)
    eta = torch.zeros(len(sides), *[max(sides) if norm == "L2" else 0] * 2, dtype=torch.float64)
    for i, side in enumerate(sides if norm == "L2" else []):
        eta[i, :side, :side] = _eta(side)
    return _Plan(level.to(device), torch.tensor(sides)[level].to(device), eta.to(device, dtype))


def _sides(p_init: float, norm: str, height: int, width: int) -> list[int]:
    """The side of the squares, by how often p has been halved."""
    sides = [round(math.sqrt(p_init / 2**k * height * width)) for k in range(len(_HALVINGS) + 1)]
    if norm == "L2":
        sides = [max(side, 3) + (max(side, 3) + 1) % 2 for side in sides]
    return [min(max(side, 1), height, width) for side in sides]


@lru_cache(maxsize=64)
def _eta(side: int) -> Tensor:
    """A bump above its negative, `(side, side)` of norm one, float64 on the CPU."""

    def bump(height: int) -> Tensor:
        away = [(torch.arange(size) - size // 2).abs() for size in (height, side)]
        terms = torch.arange(1, 2 + max(height, side) // 2, dtype=torch.float64) ** -2
        values = terms.flip(0).cumsum(0).flip(0)[torch.maximum(away[0][:, None], away[1])]
        return values / values.norm()

    eta = torch.cat([bump(side // 2), -bump(side - side // 2)])
    return eta / eta.norm()


def _signs(u: Tensor, like: Tensor) -> Tensor:
    """-1 or 1, of the type of `like`."""
    return 1 - 2 * (u < 0.5).to(like.dtype)


def _stripes(x: Tensor, keys: Tensor, threat: Threat) -> Tensor:
    """Linf's start. Lanes: the signs, by channel and column."""
    channels, _, width = x.shape[1:]
    u = uniform(keys, torch.zeros_like(keys), channels * width)
    return box(x + _signs(u, x).view(-1, channels, 1, width) * threat.eps)


def _tiles(x: Tensor, keys: Tensor, threat: Threat) -> Tensor:
    """L2's start. Lanes: first every tile's orientation, then its signs, channel by channel."""
    channels, height, width = x.shape[1:]
    side = max(min(height, width) // 5, 1)
    margins = max((min(height, width) - 5 * side) // 2, 0)
    down, across = height // side, width // side
    u = uniform(keys, torch.zeros_like(keys), (1 + channels) * down * across).view(-1, 1 + channels, down * across)
    row, column = (torch.arange(size, device=x.device) - margins for size in (height, width))
    tiled = ((row >= 0) & (row < down * side))[:, None] & (column >= 0) & (column < across * side)
    tile = ((row // side)[:, None] * across + column // side).clamp(0, down * across - 1)
    eta = _eta(side).to(x)
    upright, lying = (pattern[(row % side)[:, None], column % side] * tiled for pattern in (eta, eta.T))
    pattern = torch.where((u[:, 0] > 0.5)[:, tile], lying, upright)
    return box(x + threat.ascend(_signs(u[:, 1:], x)[:, :, tile] * pattern[:, None]) * threat.eps)


def _place(size: int, side: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """Where each of `size` rows is in a square at the place that `u` draws, and whether it is inside; both `(N, size)`.

    The product is below `size - side` also for the largest `u`, 1 - 2^-24: half an ulp is less than it loses.
    """
    first = (u * (size - side)).to(torch.int64)
    at = torch.arange(size, device=u.device) - first[:, None]
    return at, (at >= 0) & (at < side[:, None])


def _square(x: Tensor, side: Tensor, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A square per image: offsets `(N, H, 1)` and `(N, 1, W)` from its corner, and its mask `(N, 1, H, W)`."""
    row, inside = _place(x.shape[2], side, u[:, 0])
    column, within = _place(x.shape[3], side, u[:, 1])
    return row[:, :, None], column[:, None, :], inside[:, None, :, None] & within[:, None, None, :]


def _recoloured(x: Tensor, at: Tensor, threat: Threat, side: Tensor, u: Tensor) -> Tensor:
    """Linf's query. Lanes: two for the place; the signs from the fifth on, as for L2."""
    window = _square(x, side, u)[2]
    return torch.where(window, box(x + _signs(u[:, 5:], x)[:, :, None, None] * threat.eps), at)


def _gathered(x: Tensor, at: Tensor, threat: Threat, side: Tensor, eta: Tensor, level: Tensor, u: Tensor) -> Tensor:
    """L2's query. Lanes: two for the place of either square, one for the orientation, then the signs."""
    delta = at - x
    row, column, into = _square(x, side, u)
    source = _square(x, side, u[:, 2:])[2]
    lying, largest = (u[:, 4] > 0.5)[:, None, None], eta.shape[1] - 1
    i, j = torch.where(lying, column, row), torch.where(lying, row, column)
    pattern = eta[level[:, None, None], i.clamp(0, largest), j.clamp(0, largest)]

    def mass(values: Tensor, window: Tensor) -> Tensor:
        return torch.where(window, values, 0).square().sum((2, 3), keepdim=True)

    new = _signs(u[:, 5:], x)[:, :, None, None] * pattern[:, None] + delta / (mass(delta, into).sqrt() + 1e-12)
    left = (threat.eps**2 - per_image(threat.distance(at, x), x) ** 2).clamp_min(0) / x.shape[1]
    new = new / (mass(new, into).sqrt() + 1e-12) * (mass(delta, into | source) + left).sqrt()
    moved = torch.where(into, new, torch.where(source, 0, delta))
    return box(x + threat.ascend(moved) * threat.eps)
