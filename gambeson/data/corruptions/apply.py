"""`corrupt`: one corruption at one severity, on a set of images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gambeson.core.errors import InputError, nearest
from gambeson.core.streams import Streams
from gambeson.data.corruptions import blur, digital, noise, weather
from gambeson.data.corruptions.draws import BLOCK, Array, Draws
from gambeson.data.corruptions.frost import frost, read_textures
from gambeson.data.corruptions.names import CORRUPTIONS, SEVERITIES
from gambeson.data.corruptions.spatter import spatter
from gambeson.data.corruptions.tables import TABLES, Row, table_name

SMALLEST = 8
"""Pixels of the smallest images' sides."""

_FUNCTIONS: dict[str, Callable[[Array, Row, Draws], Array]] = {
    "gaussian_noise": noise.gaussian_noise,
    "shot_noise": noise.shot_noise,
    "impulse_noise": noise.impulse_noise,
    "defocus_blur": blur.defocus_blur,
    "glass_blur": blur.glass_blur,
    "motion_blur": blur.motion_blur,
    "zoom_blur": blur.zoom_blur,
    "snow": weather.snow,
    "fog": weather.fog,
    "brightness": digital.brightness,
    "contrast": digital.contrast,
    "elastic_transform": digital.elastic_transform,
    "pixelate": digital.pixelate,
    "jpeg_compression": digital.jpeg_compression,
    "speckle_noise": noise.speckle_noise,
    "gaussian_blur": blur.gaussian_blur,
    "spatter": spatter,
    "saturate": digital.saturate,
}


def corrupt(
    x: Tensor,
    name: str,
    severity: int,
    *,
    seed: int = 0,
    parameters: str | None = None,
    textures: Path | str | Sequence[np.ndarray[Any, Any]] | None = None,
) -> Tensor:
    """Images under one of the 19 common corruptions.

    What happens to image i depends on the seed, the name, the severity and i alone: random numbers are drawn for blocks
    of 100 images, always for whole ones. So the first images of a set are corrupted as the whole set is.

    A grey image is corrupted in its one channel; colours that are laid over it (frost, spatter) become their luminance.
    Only `saturate` means nothing to it.

    Args:
        x: Square images, uint8, shape `(N, C, S, S)`, C 1 or 3, S at least 8.
        name: One of `CORRUPTIONS`.
        severity: 1 (mild) to 5 (strong).
        seed: Seed of the random numbers, any integer.
        parameters: `"cifar"` (CIFAR-10-C) or `"tiny"` (Tiny-ImageNet-C); by default CIFAR's up to 32 pixels.
        textures: For frost: the folder of the published photographs, or arrays uint8 `(H, W, 3)`. By default textures
            are generated, and numbers are then not comparable with published ones.

    Returns:
        Uint8, shape `(N, C, S, S)`, on the CPU; values are truncated, not rounded, as in the published files.

    Raises:
        InputError: An unknown name, severity or table, images of another form, `saturate` of grey images, or textures
            that cannot be used.
        FileError: The folder of textures is not there, is empty or holds damaged images.

    Examples:
        >>> x = torch.full((2, 3, 32, 32), 128, dtype=torch.uint8)
        >>> corrupt(x, "brightness", 1)[0, 0, 0, 0]
        tensor(140, dtype=torch.uint8)

    References:
        Hendrycks, Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations", ICLR
        2019, https://arxiv.org/abs/1903.12261.

    Departures:
        The published files were made without a seed: images made here are equal to them in distribution, not in value.
        What is only equivalent is said where the corruption is defined (`gambeson.data.corruptions`: `blur`, `weather`,
        `frost`, `spatter`, `digital`). Compare with published numbers on the published files (`read_corrupted`).
    """
    if name not in CORRUPTIONS:
        raise InputError(f"unknown corruption {name!r}", hint=nearest(name, CORRUPTIONS))
    if severity not in SEVERITIES:
        raise InputError(f"a severity must be 1, 2, 3, 4 or 5, got {severity!r}")
    _check(x, name)
    size = x.shape[-1]
    chosen = table_name(size, parameters)
    row = TABLES[chosen][name][severity - 1]
    images = x.detach().cpu().numpy()
    if isinstance(textures, (str, Path)):
        textures = read_textures(Path(textures)) if name == "frost" else None
    elif textures is not None:
        textures = [_texture(texture) for texture in textures]
        if not textures:
            raise InputError("there are no frost textures", hint="textures=None generates them")
    streams = Streams(seed)
    result = np.empty_like(images)
    for number, start in enumerate(range(0, len(images), BLOCK)):
        block = np.ascontiguousarray(images[start : start + BLOCK])
        draws = Draws(streams.at(f"corruption/{name}/{severity}", number), len(block))
        if name == "frost":
            changed = frost(block, row, draws, textures, 0.2 if chosen == "cifar" else 0.3)
        else:
            changed = _FUNCTIONS[name](block, row, draws)
        result[start : start + BLOCK] = np.clip(changed, 0, 255).astype(np.uint8)
    return torch.from_numpy(result)


def _check(x: Tensor, name: str) -> None:
    if x.dtype != torch.uint8 or x.ndim != 4:
        raise InputError(
            f"images to corrupt must be uint8 (N, C, S, S), got {x.dtype} {tuple(x.shape)}",
            hint="corruptions are defined on the 256 levels: (255 * x).round().to(torch.uint8)",
        )
    channels, height, width = x.shape[1:]
    if channels not in (1, 3) or height != width or height < SMALLEST:
        raise InputError(
            f"images to corrupt must be square, of 1 or 3 channels and at least {SMALLEST} pixels a side,"
            f" got {channels} channels of {height}x{width}"
        )
    if name == "saturate" and channels == 1:
        raise InputError(
            "saturate means nothing to grey images: they have no saturation",
            hint="leave it out; the set standard15 does not contain it",
        )


def _texture(texture: Array) -> Array:
    texture = np.asarray(texture)
    if texture.dtype != np.uint8 or texture.ndim != 3 or texture.shape[2] != 3:
        raise InputError(f"a frost texture must be uint8 (H, W, 3), got {texture.dtype} {texture.shape}")
    return texture
