"""Eleven of the 19 common corruptions as CIFAR-10-C was made: one pillow image at a time, numpy's legacy generator.

Written from Hendrycks and Dietterich (ICLR 2019) and the procedure of `ImageNet-C/create_c/make_cifar_c.py` in
`hendrycks/robustness` as a reference, not to be used. Where that calls scikit-image, the same arithmetic stands here:
its Gaussian is scipy's with the border repeated, its HSV is matplotlib's. Left out are those whose work is done in
OpenCV (defocus blur, frost, elastic transformation, spatter) or ImageMagick (motion blur, snow), since a stand-in would
be timed instead of them, and those whose draws cannot be handed over (shot and impulse noise).
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import numpy as np
from matplotlib.colors import hsv_to_rgb, rgb_to_hsv
from PIL import Image
from scipy import ndimage

Array = np.ndarray[Any, Any]
Row = tuple[float, ...]


class Source(Protocol):
    """Where the random numbers of one image come from."""

    def normal(self, *shape: int) -> Array: ...
    def uniform(self, *shape: int, low: float, high: float) -> Array: ...
    def pairs(self, low: int, high: int, rounds: int, side: int) -> Iterator[Array]: ...


class Legacy:
    """Numpy's legacy generator, whose global instance the procedure uses."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.RandomState(seed)

    def normal(self, *shape: int) -> Array:
        return self.rng.normal(size=shape)

    def uniform(self, *shape: int, low: float, high: float) -> Array:
        return self.rng.uniform(low, high, size=shape)

    def pairs(self, low: int, high: int, rounds: int, side: int) -> Iterator[Array]:
        """Two integers at a time, drawn where they are needed."""
        return (self.rng.randint(low, high, size=(2,)) for _ in range(rounds * side**2))


def gaussian_noise(image: Image.Image, c: Row, random: Source) -> Array:
    x = np.array(image) / 255.0
    return np.clip(x + c[0] * _noise(x, random), 0, 1) * 255


def speckle_noise(image: Image.Image, c: Row, random: Source) -> Array:
    x = np.array(image) / 255.0
    return np.clip(x + x * c[0] * _noise(x, random), 0, 1) * 255


def _noise(x: Array, random: Source) -> Array:
    height, width, channels = x.shape
    return random.normal(channels, height, width).transpose(1, 2, 0)


def gaussian_blur(image: Image.Image, c: Row, random: Source) -> Array:
    return np.clip(_gaussian(np.array(image) / 255.0, c[0]), 0, 1) * 255


def _gaussian(x: Array, sigma: float) -> Array:
    blurred: Array = ndimage.gaussian_filter(x, (sigma, sigma, 0), mode="nearest", truncate=4.0)
    return blurred


def glass_blur(image: Image.Image, c: Row, random: Source) -> Array:
    sigma, delta, rounds = c[0], int(c[1]), int(c[2])
    x = np.uint8(_gaussian(np.array(image) / 255.0, sigma) * 255)
    size = len(x)
    places = random.pairs(-delta, delta, rounds, len(range(size - delta, delta, -1)))
    for _ in range(rounds):
        for h in range(size - delta, delta, -1):
            for w in range(size - delta, delta, -1):
                dx, dy = next(places)
                h_prime, w_prime = h + dy, w + dx
                x[h, w], x[h_prime, w_prime] = x[h_prime, w_prime], x[h, w]
    return np.clip(_gaussian(x / 255.0, sigma), 0, 1) * 255


def zoom_blur(image: Image.Image, c: Row, random: Source) -> Array:
    x = (np.array(image) / 255.0).astype(np.float32)
    out, factors = np.zeros_like(x), np.arange(1, c[0], 0.01)
    for factor in factors:
        out += _zoomed(x, factor)
    return np.clip((x + out) / (len(factors) + 1), 0, 1) * 255


def _zoomed(x: Array, factor: float) -> Array:
    size = len(x)
    rows = int(np.ceil(size / factor))
    top = (size - rows) // 2
    grown = ndimage.zoom(x[top : top + rows, top : top + rows], (factor, factor, 1), order=1)
    trim = (len(grown) - size) // 2
    return grown[trim : trim + size, trim : trim + size]


def fog(image: Image.Image, c: Row, random: Source) -> Array:
    x = np.array(image) / 255.0
    largest = x.max()
    x = x + c[0] * _plasma(len(x), c[1], random)[: len(x), : len(x), None]
    return np.clip(x * largest / (largest + c[0]), 0, 1) * 255


def _plasma(side: int, decay: float, random: Source) -> Array:
    heights = np.empty((side, side))
    heights[0, 0] = 0
    step, wobble = side, 100.0
    while step >= 2:
        half, shape = step // 2, (side // step, side // step)

        def rough(total: Array, wobble: float = wobble, shape: tuple[int, int] = shape) -> Array:
            return total / 4 + wobble * random.uniform(*shape, low=-wobble, high=wobble)

        corners = heights[::step, ::step]
        square = corners + np.roll(corners, -1, axis=0)
        square += np.roll(square, -1, axis=1)
        heights[half::step, half::step] = rough(square)
        middle, corners = heights[half::step, half::step], heights[::step, ::step]
        across = middle + np.roll(middle, 1, axis=0) + corners + np.roll(corners, -1, axis=1)
        heights[::step, half::step] = rough(across)
        down = middle + np.roll(middle, 1, axis=1) + corners + np.roll(corners, -1, axis=0)
        heights[half::step, ::step] = rough(down)
        step, wobble = half, wobble / decay
    heights -= heights.min()
    return heights / heights.max()


def brightness(image: Image.Image, c: Row, random: Source) -> Array:
    x = rgb_to_hsv(np.array(image) / 255.0)
    x[:, :, 2] = np.clip(x[:, :, 2] + c[0], 0, 1)
    return np.clip(hsv_to_rgb(x), 0, 1) * 255


def saturate(image: Image.Image, c: Row, random: Source) -> Array:
    x = rgb_to_hsv(np.array(image) / 255.0)
    x[:, :, 1] = np.clip(x[:, :, 1] * c[0] + c[1], 0, 1)
    return np.clip(hsv_to_rgb(x), 0, 1) * 255


def contrast(image: Image.Image, c: Row, random: Source) -> Array:
    x = np.array(image) / 255.0
    means = np.mean(x, axis=(0, 1), keepdims=True)
    return np.clip((x - means) * c[0] + means, 0, 1) * 255


def pixelate(image: Image.Image, c: Row, random: Source) -> Array:
    width, height = image.size
    few, box = (int(width * c[0]), int(height * c[0])), Image.Resampling.BOX
    return np.array(image.resize(few, box).resize((width, height), box))


def jpeg_compression(image: Image.Image, c: Row, random: Source) -> Array:
    stored = io.BytesIO()
    image.save(stored, "JPEG", quality=int(c[0]))
    return np.array(Image.open(stored))


FUNCTIONS: dict[str, Callable[[Image.Image, Row, Source], Array]] = {
    function.__name__: function
    for function in (
        *(gaussian_noise, speckle_noise, gaussian_blur, glass_blur, zoom_blur, fog),
        *(brightness, saturate, contrast, pixelate, jpeg_compression),
    )
}


def corrupted(images: Array, name: str, row: Row, sources: Callable[[int], Source]) -> Array:
    """Images uint8 `(N, S, S, 3)`, one after the other; the source of random numbers by the number of the image."""
    function = FUNCTIONS[name]
    return np.stack([np.uint8(function(Image.fromarray(x), row, sources(i))) for i, x in enumerate(images)])
