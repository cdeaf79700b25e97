"""Snow and fog.

Every function takes images uint8 `(n, C, S, S)`, a row of parameters and the block's draws, and returns values on the
0..255 scale that `corrupt` clips and truncates.

References:
    Hendrycks, Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations", ICLR 2019,
    https://arxiv.org/abs/1903.12261; code: `hendrycks/robustness`, `ImageNet-C/create_c/make_cifar_c.py`.

Departures:
    The flakes are blurred by the published formula of ImageMagick's kernel, not by ImageMagick. Sums are float64
    instead of float32. The height map of the fog is the smallest power of two that covers the image: 32 and 64 for the
    two benchmarks, as there.
"""

from __future__ import annotations

import numpy as np

from gambeson.data.corruptions.draws import Array, Draws
from gambeson.data.corruptions.sampling import luminance, motion, zoom_matrix
from gambeson.data.corruptions.tables import Row


def snow(x: Array, c: Row, draws: Draws) -> Array:
    """Flakes of a thresholded noise, blurred along a line, twice: as drawn and turned by 180 degrees.

    The row is `(mean, std, zoom, threshold, radius, sigma, alpha)`; the image is whitened to `alpha x + (1 - alpha)
    max(x, 1.5 grey + 0.5)`. The flakes fall at -135 .. -45 degrees.
    """
    mean, std, zoom, threshold, radius, sigma, alpha = c
    size = x.shape[-1]
    matrix = zoom_matrix(size, zoom)
    layer = matrix @ (mean + std * draws.normal(1, size, size)) @ matrix.T
    layer[layer < threshold] = 0
    levels = np.floor(np.clip(layer, 0, 1) * 255)  # an 8-bit image goes into the blur and comes out of it
    flakes = np.rint(motion(levels, radius, sigma, np.deg2rad(draws.uniform(low=-135, high=-45)))) / 255
    unit = x / 255
    white = alpha * unit + (1 - alpha) * np.maximum(unit, 1.5 * luminance(unit) + 0.5)
    return (white + flakes + flakes[:, :, ::-1, ::-1]) * 255


def fog(x: Array, c: Row, draws: Draws) -> Array:
    """`(x + c plasma) max(x) / (max(x) + c)`, the row is `(c, decay)`."""
    unit = x / 255
    size = x.shape[-1]
    largest = unit.max(axis=(1, 2, 3), keepdims=True)
    haze = plasma(1 << (size - 1).bit_length(), c[1], draws)[:, None, :size, :size]
    return (unit + c[0] * haze) * largest / (largest + c[0]) * 255


def plasma(side: int, decay: float, draws: Draws) -> Array:
    """Height maps by diamonds and squares on a torus, in [0, 1].

    Every point is the mean of four neighbours plus `w U(-w, w)`; `w` is 100 at first and divided by `decay` from each
    grid to the next finer one.

    Args:
        side: A power of two.
        decay: Above 1; the larger, the smoother.
        draws: The block's draws.

    Returns:
        Shape `(count, side, side)`.
    """
    heights = np.zeros((draws.count, side, side))
    step, wobble = side, 100.0
    while step >= 2:
        half, cells = step // 2, side // step

        def rough(total: Array, wobble: float = wobble, cells: int = cells) -> Array:
            return total / 4 + wobble * draws.uniform(cells, cells, low=-wobble, high=wobble)

        corner = heights[:, ::step, ::step]
        right, below = np.roll(corner, -1, axis=2), np.roll(corner, -1, axis=1)
        middle = rough(corner + right + below + np.roll(right, -1, axis=1))
        heights[:, half::step, half::step] = middle
        heights[:, ::step, half::step] = rough(corner + right + middle + np.roll(middle, 1, axis=1))
        heights[:, half::step, ::step] = rough(corner + below + middle + np.roll(middle, 1, axis=2))
        step, wobble = half, wobble / decay
    heights -= heights.min(axis=(1, 2), keepdims=True)
    return heights / heights.max(axis=(1, 2), keepdims=True)
