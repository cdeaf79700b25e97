"""Defocus, glass, motion, zoom and Gaussian blur.

Every function takes images uint8 `(n, C, S, S)`, a row of parameters and the block's draws, and returns values on the
0..255 scale that `corrupt` clips and truncates.

References:
    Hendrycks, Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations", ICLR 2019,
    https://arxiv.org/abs/1903.12261; code: `hendrycks/robustness`, `ImageNet-C/create_c/make_cifar_c.py`.

Departures:
    `motion_blur` there is ImageMagick's; here it is the published formula of its kernel, rounded to whole levels as an
    8-bit image is. `zoom_blur` sums in float64 instead of float32, and the kernel of `defocus_blur` is float64 too: a
    level may differ by one where a sum lies on a whole number.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from gambeson.data.corruptions.draws import Array, Draws
from gambeson.data.corruptions.sampling import motion, zoom_matrix
from gambeson.data.corruptions.tables import Row


def gaussian_blur(x: Array, c: Row, draws: Draws) -> Array:
    """Gaussian of the row's `(sigma,)` pixels, cut at 4 sigma, the border repeated."""
    return smooth(x / 255, c[0]) * 255


def smooth(x: Array, sigma: float, *, mode: str = "nearest", truncate: float = 4.0) -> Array:
    """The last two axes, smoothed by a Gaussian."""
    if sigma == 0:
        return x
    spread = (0.0,) * (x.ndim - 2) + (sigma, sigma)
    smoothed: Array = ndimage.gaussian_filter(x, spread, mode=mode, truncate=truncate)
    return smoothed


def glass_blur(x: Array, c: Row, draws: Draws) -> Array:
    """Blur, local shuffle, blur; the row is `(sigma, delta, rounds)`.

    Every round goes over the pixels from the bottom right to the top left, at least `delta` from the border, and gives
    each the value of the one that lies `-delta .. delta-1` rows and columns from it. It was meant to be an exchange;
    the assignment of views makes it a copy, and the published files hold copies.
    """
    sigma, delta, rounds = c[0], int(c[1]), int(c[2])
    size = x.shape[-1]
    pixels = np.floor(smooth(x / 255, sigma) * 255).astype(np.uint8).transpose(2, 3, 0, 1).copy()
    line = range(size - delta, delta, -1)
    offsets = draws.integers(-delta, delta, rounds, len(line), len(line), 2).transpose(1, 2, 3, 4, 0)
    images = np.arange(len(x))
    for shifts in offsets:
        for i, h in enumerate(line):
            for j, w in enumerate(line):
                pixels[h, w] = pixels[h + shifts[i, j, 1], w + shifts[i, j, 0], images]
    return smooth(pixels.transpose(2, 3, 0, 1) / 255, sigma) * 255


def defocus_blur(x: Array, c: Row, draws: Draws) -> Array:
    """Blur with a disk whose edge is softened; the row is `(radius, alias)`. The border is mirrored."""
    blurred: Array = ndimage.correlate(x / 255, disk(*c)[None, None], mode="mirror")
    return blurred * 255


def disk(radius: float, alias: float) -> Array:
    """Pixels within `radius` of the middle, of sum 1, blurred by a 3x3 Gaussian of `alias` pixels.

    Returns:
        Odd side, without the zeros around it.
    """
    reach = int(radius)
    line = np.arange(-reach - 1, reach + 2)
    inside = (line[:, None] ** 2 + line**2 <= radius**2).astype(float)
    soft = np.exp(-(np.arange(-1, 2) ** 2) / (2 * alias**2))
    soft /= soft.sum()
    kernel: Array = ndimage.correlate(inside / inside.sum(), np.outer(soft, soft), mode="constant")
    return kernel


def motion_blur(x: Array, c: Row, draws: Draws) -> Array:
    """Blur along a line whose direction is uniform in -45 .. 45 degrees; the row is `(radius, sigma)`."""
    angle = np.deg2rad(draws.uniform(low=-45, high=45))
    return np.rint(motion(x.astype(np.float64), c[0], c[1], angle))


def zoom_blur(x: Array, c: Row, draws: Draws) -> Array:
    """Mean of the image and of its enlargements by 1, 1.01, ... up to the row's `(stop,)`.

    The factors are numpy's `arange(1, stop, 0.01)`, which rounding lets include the end for some stops.
    """
    unit = x / 255
    factors = np.arange(1, c[0], 0.01)
    total = unit.copy()
    for factor in factors:
        matrix = zoom_matrix(x.shape[-1], factor)
        total += matrix @ unit @ matrix.T
    return total / (len(factors) + 1) * 255
