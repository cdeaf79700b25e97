"""Resampling that several corruptions share: enlargement, sums along a line, bilinear look-up, luminance."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np

from gambeson.data.corruptions.draws import Array

LUMA = np.array([0.299, 0.587, 0.114])
"""Weights of red, green and blue in the luminance (ITU-R BT.601)."""


def luminance(x: Array) -> Array:
    """Luminance of images `(n, C, H, W)`, shape `(n, 1, H, W)`; a grey image is its own."""
    if x.shape[1] == 1:
        return x
    return np.tensordot(x, LUMA, axes=([1], [0]))[:, None]


def zoom_matrix(size: int, factor: float) -> Array:
    """The matrix A with `A x A'` the centre of x, enlarged by `factor` to the same size, linearly interpolated.

    The centre's `ceil(size / factor)` rows become `round(ceil(size / factor) factor)`, first on first and last on last,
    of which the middle `size` are kept.

    Args:
        size: Rows of the image.
        factor: At least 1.

    Returns:
        Float64, shape `(size, size)`.
    """
    rows = math.ceil(size / factor)
    top = (size - rows) // 2
    grown = round(rows * factor)
    trim = (grown - size) // 2
    place = np.arange(trim, trim + size) * ((rows - 1) / max(grown - 1, 1))
    low = np.clip(np.floor(place).astype(int), 0, rows - 1)
    high = np.minimum(low + 1, rows - 1)
    share = place - low
    matrix = np.zeros((size, size))
    np.add.at(matrix, (np.arange(size), top + low), 1 - share)
    np.add.at(matrix, (np.arange(size), top + high), share)
    return matrix


def motion(x: Array, radius: float, sigma: float, angle: Array) -> Array:
    """Weighted sum of an image and its shifts along a line, one-sided.

    `out(y, x) = sum_i k_i x(y + ceil(i sin a - 1/2), x + ceil(i cos a - 1/2))`, where `k_i ~ exp(-i^2 / 2 sigma^2)` for
    `i = 0 .. 2 radius` and `sum k = 1`; outside the image its border is repeated.

    Args:
        x: Images `(n, C, H, W)`, float.
        radius: Half the length of the line, pixels.
        sigma: Spread of the weights, pixels.
        angle: Direction for every image, radians, shape `(n,)`.

    Returns:
        The shape of `x`.
    """
    taps = np.arange(2 * int(radius) + 1)
    weights = np.exp(-(taps**2) / (2 * sigma**2))
    weights /= weights.sum()
    n, _, height, width = x.shape
    down = np.ceil(taps * np.sin(angle)[:, None] - 0.5).astype(np.int64)
    right = np.ceil(taps * np.cos(angle)[:, None] - 0.5).astype(np.int64)
    flat = x.reshape(n, -1, height * width)
    out = np.zeros_like(flat)
    for tap, weight in zip(taps, weights, strict=True):
        rows = np.clip(np.arange(height) + down[:, tap, None], 0, height - 1)
        columns = np.clip(np.arange(width) + right[:, tap, None], 0, width - 1)
        index = (rows[:, :, None] * width + columns[:, None, :]).reshape(n, 1, -1)
        out += weight * np.take_along_axis(flat, np.broadcast_to(index, (n, 1, height * width)), axis=2)
    return out.reshape(x.shape)


def bilinear(x: Array, rows: Array, columns: Array, border: Literal["mirror", "reflect"]) -> Array:
    """Images at fractional places.

    Args:
        x: Images `(n, C, H, W)`, float.
        rows: Rows to look at, shape `(n, h, w)`.
        columns: Columns to look at, shape `(n, h, w)`.
        border: Outside the image it goes back: `"mirror"` about the outermost pixels' centres, `"reflect"` about their
            edges.

    Returns:
        Shape `(n, C, h, w)`.
    """
    n, channels, height, width = x.shape
    top, left = np.floor(rows), np.floor(columns)
    down, right = (rows - top)[:, None], (columns - left)[:, None]
    flat = x.reshape(n, channels, -1)

    def at(row: Array, column: Array) -> Array:
        index = fold(row.astype(np.int64), height, border) * width + fold(column.astype(np.int64), width, border)
        return np.take_along_axis(flat, index.reshape(n, 1, -1), axis=2).reshape(n, channels, *rows.shape[1:])

    upper = (1 - right) * at(top, left) + right * at(top, left + 1)
    lower = (1 - right) * at(top + 1, left) + right * at(top + 1, left + 1)
    return (1 - down) * upper + down * lower


def fold(index: Array, size: int, border: Literal["mirror", "reflect"]) -> Array:
    """Positions outside `0..size-1` brought back inside: -1 becomes 1 (`"mirror"`) or 0 (`"reflect"`)."""
    if border == "reflect":
        period, last = 2 * size, 2 * size - 1
    else:
        period, last = max(2 * size - 2, 1), 2 * size - 2
    index = index % period
    return np.minimum(index, last - index)
