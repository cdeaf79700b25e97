"""The nearest points of a hyperplane inside the image range [0, 1], for many hyperplanes at once, without sorting."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

_STEPS = 16
"""Newton steps at most: 3 to 9 settle whatever takes less than 9/10 of the way to the farthest corner of the box."""


def project_linf(points: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """The smallest step in the maximum norm onto the hyperplane `<w, x> = b` that stays in [0, 1].

        min max_i |delta_i|   subject to   <w, x + delta> = b,   0 <= x + delta <= 1

    With `c = <w, x> - b >= 0` (else `w` and `c` change sign) and the room `r_i` of a pixel on its way to its bound,
    `x_i` where `w_i > 0` and `1 - x_i` where `w_i < 0`, the solution is

        delta_i = -sign(w_i) min(t, r_i)   with   sum_i |w_i| min(t, r_i) = c.

    A hyperplane that no image reaches is approached as far as the range allows: every pixel with `w_i != 0` goes to its
    bound. Pixels with `w_i = 0` stay.

    Args:
        points: Images in [0, 1], of the shape of `w`, or with dimensions in front: several points for every hyperplane.
        w: Normals, `(N, ...)`, any finite values; a normal that is zero has the step zero.
        b: Offsets `(N,)`.

    Returns:
        The steps, of the shape of `points`. `x + delta` is in [0, 1] up to rounding.

    References:
        Croce, Hein, "Minimally distorted adversarial examples with a fast adaptive boundary attack", ICML 2020,
        https://arxiv.org/abs/1907.02044, section 2 and appendix A; code: https://github.com/fra31/auto-attack
    Departures:
        The release (autoattack/fab_projections.py, `projection_linf`, lines 7-59) sorts the rooms and bisects; here
        `t` is found by Newton's method. The result is the same up to rounding.
    """
    dims, size = _inside(w, b), w.abs()
    gap = (w * points).sum(dims, keepdim=True) - _wide(b, w)
    way, room = _way_and_room(points, w, gap)
    t = _multiplier(size, room, size * room, gap.abs(), dims)
    return torch.minimum(t, room) * way


def project_l2(points: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """The smallest step in the Euclidean norm onto the hyperplane `<w, x> = b` that stays in [0, 1].

        min ||delta||_2   subject to   <w, x + delta> = b,   0 <= x + delta <= 1

    In the notation of `project_linf` the solution is

        delta_i = -sign(w_i) min(t |w_i|, r_i)   with   sum_i w_i^2 min(t, r_i / |w_i|) = c.

    Args:
        points: As for `project_linf`.
        w: As for `project_linf`.
        b: As for `project_linf`.

    Returns:
        The steps, of the shape of `points`. `x + delta` is in [0, 1] up to rounding.

    References:
        Croce, Hein, as for `project_linf`.
    Departures:
        As for `project_linf` (`projection_l2`, lines 62-115). The release leaves out pixels with `|w_i| <= 1e-8` (lines
        72, 81 and 114), and with them every step of a model whose gradients are that small; here only zeros are.
    """
    dims, b = _inside(w, b), _wide(b, w)
    largest = w.abs().amax(dims, keepdim=True)
    scale = torch.where(largest > 0, largest, 1.0)  # the squares of small gradients would be zero
    w, b = w / scale, b / scale
    size = w.abs()
    gap = (w * points).sum(dims, keepdim=True) - b
    way, room = _way_and_room(points, w, gap)
    t = _multiplier(size * size, room / size.clamp_min(1e-30), size * room, gap.abs(), dims)
    return torch.minimum(t * size, room) * way


def _way_and_room(points: Tensor, w: Tensor, gap: Tensor) -> tuple[Tensor, Tensor]:
    """Where every pixel has to go (1, -1, or 0 where `w` is zero), and how far it can."""
    way = w.sign() * (1 - 2 * (gap >= 0).to(w.dtype))
    return way, torch.addcmul(way.clamp_min(0), way, points, value=-1)  # 1 - x upwards, x downwards, else 0


def _multiplier(slopes: Tensor, ends: Tensor, amounts: Tensor, wanted: Tensor, dims: tuple[int, ...]) -> Tensor:
    """The `t >= 0` with `f(t) = sum_i slopes_i min(t, ends_i) = wanted` in every row; the largest number without one.

    Newton's method from zero. `f` is concave, so its tangents lie above it: `t` rises and never passes the solution,
    and once a step meets no further end, it is the solution and stays, to the last bit. With the residual `r` and the
    slope `s` of a step, the next ones obey `r'/r + s'/s <= 1`, hence `r's' <= rs/4`: both shrink together. Rooms of at
    most one then bound what is left after k steps by `2^-k sum|w|` (maximum norm) and `2^(-2k/3) sqrt(d) ||w||`
    (Euclidean), however the pixels lie.

    Written without Booleans, for which the CPU has no fast kernels.

    Args:
        slopes: `(N, ...)`, not negative.
        ends: `(..., N, ...)`, not negative.
        amounts: `slopes * ends`.
        wanted: `(..., N, 1, ...)`, not negative.
        dims: The dimensions of a row.
    """
    unreachable = wanted >= amounts.sum(dims, keepdim=True)
    t = torch.zeros_like(wanted).masked_fill(unreachable, torch.finfo(wanted.dtype).max)
    for _ in range(_STEPS):
        moving = (ends - t).sign_().clamp_min_(0)
        slope = (slopes * moving).sum(dims, keepdim=True)
        rest = wanted - moving.neg_().add_(1).mul_(amounts).sum(dims, keepdim=True)
        further = torch.where(slope > 0, torch.maximum(t, rest / slope), t)
        if t.device.type == "cpu" and torch.equal(t, further):  # settled; a GPU would have to be waited for
            break
        t = further
    return t


def _inside(w: Tensor, b: Tensor) -> tuple[int, ...]:
    """The dimensions of a row, counted from the end."""
    return tuple(range(b.ndim - w.ndim, 0))


def _wide(b: Tensor, w: Tensor) -> Tensor:
    return b.view(*b.shape, *[1] * (w.ndim - b.ndim))
