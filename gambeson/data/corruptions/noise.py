"""Gaussian, shot, impulse and speckle noise.

Every function takes images uint8 `(n, C, S, S)`, a row of parameters and the block's draws, and returns values on the
0..255 scale that `corrupt` clips and truncates.

References:
    Hendrycks, Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations", ICLR 2019,
    https://arxiv.org/abs/1903.12261; code: `hendrycks/robustness`, `ImageNet-C/create_c/make_cifar_c.py`.
"""

from __future__ import annotations

import numpy as np
from scipy.special import pdtr

from gambeson.data.corruptions.draws import Array, Draws
from gambeson.data.corruptions.tables import Row


def gaussian_noise(x: Array, c: Row, draws: Draws) -> Array:
    """`x + N(0, sigma)`, the row is `(sigma,)`."""
    return (x / 255 + c[0] * draws.normal(*x.shape[1:])) * 255


def speckle_noise(x: Array, c: Row, draws: Draws) -> Array:
    """`x + x N(0, sigma)`, the row is `(sigma,)`."""
    unit = x / 255
    return (unit + unit * c[0] * draws.normal(*x.shape[1:])) * 255


def shot_noise(x: Array, c: Row, draws: Draws) -> Array:
    """`Poisson(lambda x) / lambda`, the row is `(lambda,)`.

    Drawn by inversion, one uniform number for each value: the counts of the 256 levels stand in one table.
    """
    (rate,) = c
    means = rate * np.arange(256) / 255
    counts = np.arange(int(rate + 12 * np.sqrt(rate) + 12))  # beyond it less than 1e-15 of the probability
    table = np.minimum(pdtr(counts[None], means[:, None]), 1)
    table[:, -1] = 1
    flat = (table + np.arange(256)[:, None]).ravel()
    level = x.astype(np.int64)
    found = np.searchsorted(flat, draws.uniform(*x.shape[1:]) + level, side="right")
    return np.minimum(found - level * len(counts), len(counts) - 1) / rate * 255


def impulse_noise(x: Array, c: Row, draws: Draws) -> Array:
    """Every value is 0 with probability `p/2` and 255 with probability `p/2`, the row is `(p,)`."""
    u = draws.uniform(*x.shape[1:])
    return np.where(u < c[0], np.where(u < c[0] / 2, 0.0, 255.0), x / 255 * 255)
