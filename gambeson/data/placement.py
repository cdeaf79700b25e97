"""Crop and flip as numbers: where every image of a batch was put, so that what belongs to its pixels can follow."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor


def draw_placement(count: int, rng: torch.Generator, *, pad: int, flip: bool) -> Tensor:
    """A random crop after padding, and random mirroring, for every image.

    Args:
        count: Number of images.
        rng: CPU generator: the same draws on every device, and the same draws whatever `pad` and `flip` are.
        pad: Largest shift, pixels; 0 for no crop.
        flip: Mirror with probability 1/2.

    Returns:
        int64 `(count, 3)`: shift of rows and of columns in `[-pad, pad]`, and 1 where the image is mirrored.
    """
    shift = torch.randint(0, 2 * pad + 1, (2, count, 1), generator=rng) - pad
    mirrored = torch.rand(count, 1, generator=rng) < 0.5
    return torch.cat([shift[0], shift[1], mirrored.long() if flip else torch.zeros_like(shift[0])], 1)


def place(x: Tensor, placement: Tensor, fill: Literal["zero", "reflect"] = "zero") -> Tensor:
    """What a crop and a flip show of images, or of masks and maps on the same pixels.

    `out[r, c] = x[r + dy, c' + dx]` with `c' = W - 1 - c` where the image is mirrored; outside of the image lies zero
    (False), or its reflection.

    Args:
        x: Any type, shape `(N, C, H, W)`.
        placement: From `draw_placement`, `(N, 3)`, any device.
        fill: `"zero"` or `"reflect"`.

    Returns:
        Type and shape of `x`.
    """
    n, _, h, w = x.shape
    dy, dx, mirrored = placement.to(x.device).split(1, 1)
    columns = torch.arange(w, device=x.device).expand(n, w)
    columns = torch.where(mirrored.bool(), columns.flip(1), columns) + dx
    rows = torch.arange(h, device=x.device) + dy
    if fill == "reflect":
        inside = None
        rows, columns = (h - 1) - ((h - 1) - rows.abs()).abs(), (w - 1) - ((w - 1) - columns.abs()).abs()
    else:
        inside = ((rows >= 0) & (rows < h))[:, :, None] & ((columns >= 0) & (columns < w))[:, None, :]
        rows, columns = rows.clamp(0, h - 1), columns.clamp(0, w - 1)
    image = torch.arange(n, device=x.device)[:, None, None]
    out = x.permute(0, 2, 3, 1)[image, rows[:, :, None], columns[:, None, :]]
    if inside is not None:
        out = out.masked_fill(~inside[..., None], 0)
    return out.permute(0, 3, 1, 2)
