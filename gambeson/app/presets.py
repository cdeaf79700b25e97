"""Defaults that depend on the data set: what `gambeson train METHOD --data NAME` uses where nothing else is said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gambeson.core.errors import DataError

TRAINING: dict[str, dict[str, Any]] = {
    "digits": {"model": "small-cnn", "epochs": 40, "lr": 0.1, "threads": 1},
    "mnist": {"model": "small-cnn", "epochs": 10, "lr": 0.1},
    "fashion-mnist": {"model": "small-cnn", "epochs": 15, "lr": 0.1},
}
"""Settings by data set; others keep the signature's: the single-step papers' 30 epochs, cyclic to 0.2."""

METHOD: dict[tuple[str, str], dict[str, Any]] = {
    ("digits", "n-lap"): {"beta": 0.005},
    ("digits", "trades-awp"): {"warmup": 5},
    ("digits", "mart-awp"): {"warmup": 5},
}
"""Method arguments by data set and method; LAP's betas are published for CIFAR-10 only."""

FEW = 5000
"""Images below which a folder's network is the small one, and a fifth of them validates."""


def training(data: str) -> dict[str, Any]:
    """Settings for a data set by name; for a folder of images, those that suit their number and size."""
    kind, _, path = data.partition(":")
    if kind != "folder" or not Path(path).expanduser().is_dir():
        return TRAINING.get(data, {})
    from gambeson.data.survey import survey_folder

    try:
        found = survey_folder(Path(path).expanduser())
    except DataError:  # whoever reads the folder says more, and what to do
        return {}
    return of_images(found.count, found.side, found.has_val)


def of_images(count: int, side: int, has_val: bool = False) -> dict[str, Any]:
    """Settings for images of one's own.

    The batch is a power of two that leaves about ten steps an epoch, from 8 to 128. Images are not enlarged.

    Args:
        count: Images to train on and to validate with.
        side: Their side, pixels.
        has_val: Whether a validation split is there already.

    Examples:
        >>> of_images(200, 300)
        {'size': 64, 'batch_size': 16, 'model': 'small-cnn', 'lr': 0.1, 'val_fraction': 0.2}
        >>> of_images(50_000, 32)
        {'size': 32, 'batch_size': 128}
    """
    val = 0.0 if has_val else 0.2 if count < FEW else 0.05
    kept = max(1, int(count * (1 - val)))
    tenth = 1 << (max(1, kept // 10).bit_length() - 1)
    chosen: dict[str, Any] = {"size": max(8, min(64, side)), "batch_size": min(128, max(8, tenth), kept)}
    if count < FEW:
        chosen |= {"model": "small-cnn", "lr": 0.1} | ({} if has_val else {"val_fraction": 0.2})
    return chosen
