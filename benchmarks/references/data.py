"""Random crop and flip as image pipelines do them: one image at a time in pillow, then a tensor, then a stack.

What `RandomCrop(32, padding=4)`, `RandomHorizontalFlip()` and `ToTensor()` of a torchvision pipeline do to a pillow
image, written out as a reference, not to be used. The loader's processes and samplers are left out: only work on images
is here.
"""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

Placement = tuple[int, int, bool]
"""Rows and columns from the corner of the padded image to that of the crop, and whether the crop is mirrored."""


def drawn(pad: int) -> Placement:
    """A place in the padded image, and a coin, from torch's global generator."""
    top = int(torch.randint(0, 2 * pad + 1, (1,)))
    left = int(torch.randint(0, 2 * pad + 1, (1,)))
    return top, left, bool(torch.rand(1) < 0.5)


def augmented(image: Image.Image, placement: Placement, pad: int) -> Image.Image:
    """The padded image, cropped to its old size, mirrored where the coin says so."""
    top, left, mirrored = placement
    width, height = image.size
    image = ImageOps.expand(image, border=pad, fill=0)
    image = image.crop((left, top, left + width, top + height))
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if mirrored else image


def to_tensor(image: Image.Image) -> Tensor:
    """Float32 in [0, 1], shape `(C, H, W)`."""
    pixels = torch.from_numpy(np.array(image, dtype=np.uint8, copy=True))
    return pixels.permute(2, 0, 1).contiguous().to(torch.float32).div(255)


def batch(
    images: np.ndarray, labels: np.ndarray, index: list[int], pad: int, placements: list[Placement] | None = None
) -> tuple[Tensor, Tensor]:
    """Of images `(N, H, W, 3)` those at an index; augmented unless `pad` is 0, by fresh draws if none are given."""
    x, y = [], []
    for position, number in enumerate(index):
        image = Image.fromarray(images[number])
        if pad:
            image = augmented(image, drawn(pad) if placements is None else placements[position], pad)
        x.append(to_tensor(image))
        y.append(int(labels[number]))
    return torch.stack(x), torch.tensor(y)
