"""Brightness, contrast, saturation, elastic transformation, pixelation and JPEG.

Every function takes images uint8 `(n, C, S, S)`, a row of parameters and the block's draws, and returns values on the
0..255 scale that `corrupt` clips and truncates.

References:
    Hendrycks, Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations", ICLR 2019,
    https://arxiv.org/abs/1903.12261; code: `hendrycks/robustness`, `ImageNet-C/create_c/make_cifar_c.py`.

Departures:
    HSV is changed without going there: a colour of value V and saturation S is `V (1 - S w)` in every channel, where w
    depends on the hue alone. The affine map of `elastic_transform` interpolates exactly, OpenCV in steps of 1/32 pixel.
    JPEG depends on the version of libjpeg.
"""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
from PIL import Image

from gambeson.data.corruptions.blur import smooth
from gambeson.data.corruptions.draws import Array, Draws
from gambeson.data.corruptions.sampling import bilinear
from gambeson.data.corruptions.tables import Row


def brightness(x: Array, c: Row, draws: Draws) -> Array:
    """HSV value plus the row's `(c,)`, at most 1; hue and saturation stay."""
    unit = x / 255
    value = unit.max(axis=1, keepdims=True)
    share = np.divide(unit, value, out=np.ones_like(unit), where=value > 0)  # black is the grey of value 0
    return share * np.clip(value + c[0], 0, 1) * 255


def saturate(x: Array, c: Row, draws: Draws) -> Array:
    """HSV saturation times a plus b, in [0, 1]; the row is `(a, b)`. A grey pixel has hue 0: with b it turns red."""
    unit = x / 255
    value = unit.max(axis=1, keepdims=True)
    spread = value - unit.min(axis=1, keepdims=True)
    saturation = np.divide(spread, value, out=np.zeros_like(value), where=value > 0)
    red = np.broadcast_to(np.array([0.0, 1.0, 1.0]).reshape(1, 3, 1, 1), unit.shape).copy()
    missing = np.divide(value - unit, spread, out=red, where=spread > 0)
    return value * (1 - np.clip(c[0] * saturation + c[1], 0, 1) * missing) * 255


def contrast(x: Array, c: Row, draws: Draws) -> Array:
    """`(x - mean) c + mean`, the mean over each channel of the image; the row is `(c,)`."""
    unit = x / 255
    mean = unit.mean(axis=(2, 3), keepdims=True)
    return ((unit - mean) * c[0] + mean) * 255


def elastic_transform(x: Array, c: Row, draws: Draws) -> Array:
    """An affine map that moves three points at random, then displacements of smoothed noise.

    The row is `(alpha, sigma, affine)` in image sides: the points move by U(-affine, affine) in each direction, and the
    displacement is `alpha` times U(-1, 1), smoothed by a Gaussian of `sigma`.
    """
    size = x.shape[-1]
    alpha, sigma, affine = (size * value for value in c)
    middle, reach = size // 2, size // 3
    signs = np.array([[1, 1], [1, -1], [-1, -1]])
    points = (middle + reach * signs).astype(np.float64)
    moved = points + draws.uniform(3, 2, low=-affine, high=affine)
    # Where a pixel (column, row, 1) comes from: the map that brings the moved points back.
    back = np.linalg.solve(
        np.concatenate([moved, np.ones((len(x), 3, 1))], axis=2), np.broadcast_to(points, moved.shape)
    )
    rows, columns = np.mgrid[:size, :size].astype(np.float64)
    grid = np.stack([columns, rows, np.ones_like(rows)], axis=-1)
    source = grid.reshape(1, -1, 3) @ back
    left, top = source.reshape(len(x), size, size, 2).transpose(3, 0, 1, 2)
    warped = bilinear(x / 255, top, left, "mirror")
    right, down = (alpha * smooth(field, sigma, mode="reflect", truncate=3) for field in _fields(draws, size))
    return bilinear(warped, rows + down, columns + right, "reflect") * 255


def _fields(draws: Draws, size: int) -> tuple[Array, Array]:
    return draws.uniform(size, size, low=-1, high=1), draws.uniform(size, size, low=-1, high=1)


def pixelate(x: Array, c: Row, draws: Draws) -> Array:
    """Down to `int(c S)` pixels and up again, both by boxes; the row is `(c,)`."""
    size = x.shape[-1]
    few = int(size * c[0])
    box = Image.Resampling.BOX
    return _by_image(x, lambda image: image.resize((few, few), box).resize((size, size), box))


def jpeg_compression(x: Array, c: Row, draws: Draws) -> Array:
    """Pillow's JPEG of the row's `(quality,)`."""

    def squeeze(image: Image.Image) -> Image.Image:
        stored = io.BytesIO()
        image.save(stored, "JPEG", quality=int(c[0]))
        return Image.open(stored)

    return _by_image(x, squeeze)


def _by_image(x: Array, change: Callable[[Image.Image], Image.Image]) -> Array:
    out = np.empty_like(x)
    for target, source in zip(out, x, strict=True):
        image = Image.fromarray(source[0] if len(source) == 1 else np.ascontiguousarray(source.transpose(1, 2, 0)))
        pixels = np.asarray(change(image))
        target[:] = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
    return out
