"""What images and labels must be before anything is measured on them."""

from __future__ import annotations

import torch
from torch import Tensor

from gambeson.core.errors import InputError
from gambeson.data.stored import Images, StoredImages


def check_examples(x: Images, y: Tensor, num_classes: int) -> None:
    """Refuse what would make the number wrong, before any compute.

    Raises:
        InputError: No images, NaN or infinite pixels, pixels outside [0, 1], labels out of range or not one per image.
    """
    check_shapes(x, y)
    check_images(x)
    check_labels(y, num_classes)


def check_shapes(x: Images, y: Tensor) -> None:
    """Refuse what are not images with one label each.

    Raises:
        InputError: No images, other dimensions than `(N, C, H, W)`, or not one label per image.
    """
    if len(x) == 0:
        raise InputError("there are no examples to evaluate")
    if x.ndim != 4 or y.shape != x.shape[:1]:
        raise InputError(f"need images (N, C, H, W) and labels (N,), got {tuple(x.shape)} and {tuple(y.shape)}")


def check_images(x: Images) -> None:
    """Refuse what are not images in [0, 1] or bytes.

    Raises:
        InputError: Another type, NaN or infinite pixels, or pixels outside [0, 1].
    """
    if isinstance(x, StoredImages) or x.dtype == torch.uint8:
        return
    if not x.is_floating_point():
        raise InputError(f"images must be uint8 or float, got {x.dtype}")
    if not bool(x.isfinite().all()):
        bad = (~x.isfinite()).flatten(1).any(1).nonzero().squeeze(1)
        raise InputError(f"{len(bad)} images have NaN or infinite pixels, the first is number {int(bad[0])}")
    low, high = float(x.min()), float(x.max())
    if low < 0 or high > 1:
        hint = "divide by 255" if 1 < high <= 255 and low >= 0 else "pass unnormalised images: models normalise inside"
        raise InputError(f"images must lie in [0, 1], got values from {low:g} to {high:g}", hint=hint)


def check_labels(y: Tensor, num_classes: int) -> None:
    """Refuse what are not labels.

    Raises:
        InputError: Not integers, or outside `[0, num_classes)`.
    """
    if y.is_floating_point() or int(y.min()) < 0 or int(y.max()) >= num_classes:
        raise InputError(f"labels must be integers in [0, {num_classes}), got {y.dtype} from {y.min()} to {y.max()}")
