"""Spatter: drops of water or mud.

References:
    Hendrycks, Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations", ICLR 2019,
    https://arxiv.org/abs/1903.12261; code: `hendrycks/robustness`, `ImageNet-C/create_c/make_cifar_c.py`. Canny, "A
    Computational Approach to Edge Detection", PAMI 1986.

Departures:
    Water there is drawn by OpenCV, here by the same steps written out: the edges compare the gradient with its two
    neighbours in one of four directions (tangent of 22.5 degrees, exactly). Without a single drop OpenCV's steps divide
    0 by 0; here the image is as it was. Sums are float64.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from gambeson.data.corruptions.blur import smooth
from gambeson.data.corruptions.draws import Array, Draws
from gambeson.data.corruptions.sampling import luminance
from gambeson.data.corruptions.tables import Row

WATER = np.array([175.0, 238.0, 238.0]).reshape(1, 3, 1, 1) / 255
"""Pale turquoise, RGB in [0, 1]."""
MUD = np.array([63.0, 42.0, 20.0]).reshape(1, 3, 1, 1) / 255
"""Brown."""
RELIEF = np.array([[-2, -1, 0], [-1, 1, 1], [0, 1, 2]])
"""The filter that lights the drops from one corner."""
SOBEL = np.array([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]])
"""Four times the horizontal gradient, twice smoothed vertically."""
STEPS = {
    (2 + down, 2 + right): {1: 1.0, 2: 1.4, 5: 2.1969}[down**2 + right**2]
    for down in range(-2, 3)
    for right in range(-2, 3)
    if down**2 + right**2 in (1, 2, 5)
}
"""Lengths of steps in a 5x5 neighbourhood, by row and column in it."""
FARTHEST = 20
"""Distance from an edge, pixels, beyond which water is of one brightness."""


def spatter(x: Array, c: Row, draws: Draws) -> Array:
    """Drops where smoothed noise exceeds a threshold; the row is `(mean, std, sigma, threshold, mix, mud)`.

    Water adds its colour, `mix` of it at most; mud covers what lies below it, and `mix` is the sigma of its edge.
    """
    mean, std, sigma, threshold, mix, mud = c
    size = x.shape[-1]
    unit = x / 255
    liquid = smooth(mean + std * draws.normal(size, size), sigma)
    liquid[liquid < threshold] = 0
    if mud:
        cover = smooth((liquid > threshold).astype(np.float64), mix)
        cover[cover < 0.8] = 0
        return (unit * (1 - cover[:, None]) + _in_channels(MUD, x) * cover[:, None]) * 255
    levels = np.clip(liquid * 255, 0, 255).astype(np.uint8)
    light = levels * relief(levels)
    largest = light.max(axis=(1, 2), keepdims=True)
    share = mix * light / np.where(largest > 0, largest, 1)
    return (unit + share[:, None] * _in_channels(WATER, x)) * 255


def _in_channels(colour: Array, x: Array) -> Array:
    return luminance(colour) if x.shape[1] == 1 else colour


def relief(levels: Array) -> Array:
    """How bright water is: from the distance to the edges of the drops, stretched, lit and smoothed.

    Args:
        levels: Thickness, uint8, shape `(n, H, W)`.

    Returns:
        Float, whole numbers 0..255, the shape of `levels`.
    """
    border = edges(levels, 50, 150)
    near = np.floor(_box(distances(border)))
    stretched = equalised(near.astype(np.uint8)).astype(np.float64)
    lit = np.clip(ndimage.correlate(stretched, RELIEF[None], mode="mirror"), 0, 255)
    return np.rint(_box(lit))


def distances(border: Array) -> Array:
    """Length of the shortest way to a pixel of the border, at most `FARTHEST`.

    A way is made of steps to the 16 pixels of a 5x5 neighbourhood that the others do not reach, of lengths 1, 1.4 and
    2.1969: OpenCV's approximation of the Euclidean distance (Borgefors, "Distance transformations in digital images",
    CVGIP 1986).

    Args:
        border: Bool, shape `(n, H, W)`.

    Returns:
        Float, the shape of `border`; `FARTHEST` everywhere in an image without border.
    """
    found = np.where(border, 0.0, float(FARTHEST))
    height, width = border.shape[1:]
    while True:
        around = np.pad(found, ((0, 0), (2, 2), (2, 2)), constant_values=FARTHEST)
        nearer = found.copy()
        for (down, right), length in STEPS.items():
            np.minimum(nearer, around[:, down : down + height, right : right + width] + length, out=nearer)
        if np.array_equal(nearer, found):
            return found
        found = nearer


def _box(x: Array) -> Array:
    mean: Array = ndimage.uniform_filter(x, (1, 3, 3), mode="mirror")
    return np.round(mean, 9)  # running sums leave 19.999999999 for 20


def edges(levels: Array, low: float, high: float) -> Array:
    """Canny's edges: ridges of the Sobel gradient `|gx| + |gy|` above `low` that touch one above `high`.

    Args:
        levels: Grey images, uint8, shape `(n, H, W)`.
        low: Weakest gradient of an edge.
        high: Gradient that every edge reaches somewhere.

    Returns:
        Bool, the shape of `levels`.
    """
    grey = levels.astype(np.float64)
    # Not ndimage.sobel, which would smooth from image to image.
    gx, gy = (ndimage.correlate(grey, kernel[None], mode="nearest") for kernel in (SOBEL, SOBEL.T))
    size = np.abs(gx) + np.abs(gy)
    around = np.pad(size, ((0, 0), (1, 1), (1, 1)))
    height, width = size.shape[1:]

    def at(down: int, right: int) -> Array:
        return around[:, 1 + down : 1 + down + height, 1 + right : 1 + right + width]

    flat, steep = np.abs(gy) < np.tan(np.pi / 8) * np.abs(gx), np.abs(gy) > np.tan(3 * np.pi / 8) * np.abs(gx)
    falling = gx * gy < 0
    ridge = np.where(falling, (size > at(-1, 1)) & (size > at(1, -1)), (size > at(-1, -1)) & (size > at(1, 1)))
    ridge = np.where(flat, (size > at(0, -1)) & (size >= at(0, 1)), ridge)
    ridge = np.where(steep, (size > at(-1, 0)) & (size >= at(1, 0)), ridge)
    weak = ridge & (size > low)
    touching = np.zeros((3, 3, 3), dtype=bool)
    touching[1] = True  # within an image, diagonals too
    labels, count = ndimage.label(weak, touching)
    strong = np.zeros(count + 1, dtype=bool)
    strong[labels[weak & (size > high)]] = True
    strong[0] = False
    return strong[labels]


def equalised(levels: Array) -> Array:
    """Levels spread so that each image's cumulative histogram, without its lowest level, is a line from 0 to 255.

    Args:
        levels: Uint8, shape `(n, H, W)`.

    Returns:
        Uint8, the shape of `levels`; an image of one level is as it was.
    """
    n, total = len(levels), levels[0].size if len(levels) else 0
    rows = np.arange(n)[:, None]
    flat = levels.reshape(n, -1)
    counts = np.bincount((rows * 256 + flat).ravel(), minlength=256 * n).reshape(n, 256)
    first = flat.min(axis=1)[:, None]
    lowest = counts[rows, first]
    rank = np.maximum(counts.cumsum(axis=1) - lowest, 0)
    table = np.rint(rank * (255 / np.maximum(total - lowest, 1)))
    table = np.where(lowest == total, first, table).astype(np.uint8)
    return table[rows, flat].reshape(levels.shape)
