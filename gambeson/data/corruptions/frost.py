"""Frost: a photograph of ice laid over the image, or a generated texture where there is none.

References:
    Hendrycks, Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations", ICLR 2019,
    https://arxiv.org/abs/1903.12261; code and the six photographs: `hendrycks/robustness`, `ImageNet-C/create_c`.

Departures:
    The photographs are not part of this library. With the folder that holds them (`frost1.png` ... `frost6.jpg`) the
    procedure is the published one: the first five only, since the index is drawn from five. Without it the textures
    are *generated*, and numbers under frost are then not comparable with published ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np

from gambeson.core.errors import FileError, InputError
from gambeson.core.streams import Streams
from gambeson.data.corruptions.blur import smooth
from gambeson.data.corruptions.draws import Array, Draws
from gambeson.data.corruptions.sampling import luminance
from gambeson.data.corruptions.tables import Row
from gambeson.data.images import IMAGE_SUFFIXES

Textures = Sequence[Array]
USED = 5
"""How many textures are drawn from."""


def frost(x: Array, c: Row, draws: Draws, textures: Textures | None, scale: float) -> Array:
    """`a x + b frost`, the row is `(a, b)`; the frost is a random part of a random texture.

    Args:
        x: Images, uint8, shape `(n, C, S, S)`.
        c: The row.
        draws: The block's draws.
        textures: Photographs, uint8 `(H, W, 3)`; None generates them.
        scale: By which photographs are made smaller: 0.2 for CIFAR, 0.3 for Tiny-ImageNet.

    Raises:
        InputError: A scaled photograph is not larger than the images.
    """
    size = x.shape[-1]
    if textures is None:
        pool: list[Array] = list(generated(4 * size))
    else:
        pool = [shrink(texture, scale) for texture in textures[:USED]]
    for texture in pool:
        if min(texture.shape[:2]) <= size:
            raise InputError(
                f"a frost texture of {texture.shape[0]}x{texture.shape[1]} pixels after scaling by {scale} is too small"
                f" for images of {size}x{size}",
                hint=f"use photographs with sides of more than {round(size / scale)} pixels",
            )
    chosen, places = draws.integers(0, len(pool)), draws.uniform(2)
    crops = np.empty((len(x), 3, size, size))
    for crop, number, place in zip(crops, chosen, places, strict=True):
        top, left = (int(share * (side - size)) for share, side in zip(place, pool[number].shape, strict=False))
        crop[:] = pool[number][top : top + size, left : left + size].transpose(2, 0, 1)
    return c[0] * x + c[1] * (luminance(crops) if x.shape[1] == 1 else crops)


def shrink(texture: Array, scale: float) -> Array:
    """A texture `(H, W, 3)` at `scale` of its size, bilinear between pixel centres, rounded; no smoothing before."""
    for axis in (0, 1):
        side = texture.shape[axis]
        place = np.clip((np.arange(round(side * scale)) + 0.5) / scale - 0.5, 0, side - 1)
        low = np.floor(place + 1e-9).astype(int)
        share = np.expand_dims(np.clip(place - low, 0, 1), tuple(i for i in range(3) if i != axis))
        texture = (1 - share) * texture.take(low, axis) + share * texture.take(np.minimum(low + 1, side - 1), axis)
    return np.rint(texture)


@lru_cache(maxsize=4)
def generated(side: int) -> tuple[Array, ...]:
    """Five textures `(side, side, 3)` in 0..255: ridges of smoothed noise on several scales, white on blue-grey.

    They depend on nothing but `side`.
    """
    return tuple(_generate(side, number) for number in range(USED))


def _generate(side: int, number: int) -> Array:
    import torch

    rng = Streams(0).at(f"frost/{side}", number)
    noise = torch.randn(5, side, side, generator=rng, dtype=torch.float64).numpy()
    smoothed = [
        smooth(layer, side / scale, mode="wrap") for layer, scale in zip(noise, (7, 16, 32, 64, 100), strict=True)
    ]
    layers = [layer / layer.std() for layer in smoothed]
    needles = sum(
        weight * np.exp(-((2.2 * layer) ** 2)) for weight, layer in zip((0.3, 0.4, 0.3), layers[1:4], strict=True)
    )
    ice = np.clip(0.3 + 0.14 * layers[0] + 0.75 * (needles - 0.38) + 0.08 * layers[4], 0, 1)
    colour = np.array([0.88, 0.96, 1.0])
    return np.rint(255 * np.clip(ice[..., None] ** (1 / colour), 0, 1))


def read_textures(folder: Path) -> list[Array]:
    """The photographs of a folder, in the order of their names, RGB uint8 `(H, W, 3)`.

    Raises:
        FileError: No folder, no image in it, or one that cannot be decoded.
    """
    from PIL import Image

    if not folder.is_dir():
        raise FileError(f"there is no folder {folder} of frost textures", hint="leave it out to generate textures")
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
    if not paths:
        raise FileError(f"the folder {folder} holds no images", hint="it should hold frost1.png ... frost6.jpg")
    textures = []
    for path in paths:
        try:
            with Image.open(path) as image:
                textures.append(np.asarray(image.convert("RGB")))
        except (OSError, ValueError) as error:
            raise FileError(f"the frost texture {path} cannot be decoded: {error}", hint="replace it") from error
    return textures
