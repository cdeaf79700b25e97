"""Any `.npz` file of images and labels."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from gambeson.core.errors import DataError
from gambeson.data.facts import measured_facts
from gambeson.data.splits import Pool, hold_out, labelled

TEST_FRACTION = 0.2
_Array = np.ndarray[Any, Any]


def read_npz(path: Path) -> Pool:
    """Read `x_train`, `y_train` and, where they exist, `x_val`, `y_val`, `x_test`, `y_test`.

    Without a test split a stratified 20 % of the training images is held out as one.

    Args:
        path: The file. Images are `(N, H, W, C)`, `(N, C, H, W)` or `(N, H, W)`, square, of 1 or 3 channels, uint8 or
            float in [0, 1] (rounded to the 256 levels). Labels are integers from 0.

    Returns:
        Training, test and (with `x_val`) validation examples.

    Raises:
        DataError: If the file is missing, damaged, pickled or not of this form.
    """
    arrays = _load(path)
    pairs = {part: _pair(arrays, part, path) for part in ("train", "val", "test") if _has(arrays, part, path)}
    present = np.unique(pairs["train"][1])
    num_classes = len(present)
    if not np.array_equal(present, np.arange(num_classes)):
        raise DataError(
            f"{path}: y_train must hold every label from 0 to the number of classes less one,"
            f" got {num_classes} labels from {present[:1]} to {present[-1:]}",
            hint="number the classes with numpy.unique(y, return_inverse=True)",
        )
    splits = {part: labelled(x, y, num_classes, f"{path}: {part}") for part, (x, y) in pairs.items()}
    shapes = {tuple(examples.x.shape[1:]) for examples in splits.values()}
    if len(shapes) > 1:
        raise DataError(
            f"{path}: the splits differ in their image shapes {sorted(shapes)}", hint="bring them to one shape"
        )
    train = splits["train"]
    test = splits.get("test")
    if test is None:
        rest, held = hold_out(train, TEST_FRACTION, num_classes, seed=0)
        train, test = train.subset(rest), train.subset(held)
    names = [str(label) for label in range(num_classes)]
    # No flip: whether a mirrored image keeps its label is not known of arrays.
    return Pool(train, test, splits.get("val"), measured_facts(f"npz:{path}", names, train.x, flip=False))


def require_npz(path: Path) -> None:
    """Refuse a file that is not there.

    Raises:
        DataError: There is none.
    """
    if not path.is_file():
        raise DataError(f"there is no file {path}", hint="npz:PATH needs a file written by numpy.savez")


def _load(path: Path) -> dict[str, _Array]:
    require_npz(path)
    try:
        file = np.load(path, allow_pickle=False)
        if isinstance(file, np.ndarray):
            raise ValueError("it is a single array, not an .npz")
        with file:
            return {key: file[key] for key in file.files if key.startswith(("x_", "y_"))}
    except (ValueError, EOFError, OSError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(
            f"{path} cannot be read ({path.stat().st_size:,} bytes): {error}",
            hint="write it again with numpy.savez from plain uint8 or float arrays; pickled objects are not admitted",
        ) from error


def _has(arrays: dict[str, _Array], part: str, path: Path) -> bool:
    missing = [key for key in (f"x_{part}", f"y_{part}") if key not in arrays]
    if len(missing) == 1 or (missing and part == "train"):
        raise DataError(
            f"{path} lacks {' and '.join(missing)}; it has {', '.join(sorted(arrays)) or 'no x_ or y_ arrays'}",
            hint="the keys are x_train, y_train and optionally x_val, y_val, x_test, y_test",
        )
    return not missing


def _pair(arrays: dict[str, _Array], part: str, path: Path) -> tuple[_Array, _Array]:
    x = _to_nchw(_to_uint8(arrays[f"x_{part}"], f"{path}: x_{part}"), f"{path}: x_{part}")
    y = arrays[f"y_{part}"]
    if y.ndim == 2 and y.shape[1] == 1:  # as Keras stores CIFAR
        y = y[:, 0]
    if y.ndim != 1 or y.dtype.kind not in "iu":
        raise DataError(
            f"{path}: y_{part} must be integers of shape (N,), got {y.dtype} {y.shape}", hint="use y.astype('int64')"
        )
    return x, y


def _to_uint8(x: _Array, source: str) -> _Array:
    if x.dtype == np.uint8:
        return x
    if x.dtype.kind != "f":
        raise DataError(
            f"{source} must be uint8 or float, got {x.dtype}", hint="use x.astype('uint8') for levels 0..255"
        )
    if not np.isfinite(x).all():
        count = int((~np.isfinite(x)).sum())
        raise DataError(f"{source} has {count} pixels that are NaN or infinite", hint="remove or repair these images")
    low, high = float(x.min(initial=0)), float(x.max(initial=0))
    if low < 0 or high > 1:
        raise DataError(
            f"{source} must be in [0, 1] where it is float, got [{low:.4g}, {high:.4g}]",
            hint="divide levels 0..255 by 255, or store them as uint8; do not normalise, the model does",
        )
    return np.rint(x * 255).astype(np.uint8)


def _to_nchw(x: _Array, source: str) -> _Array:
    if x.ndim == 3:
        x = x[:, None]
    shape = x.shape
    first = x.ndim == 4 and shape[1] in (1, 3) and shape[2] == shape[3]
    last = x.ndim == 4 and shape[3] in (1, 3) and shape[1] == shape[2]
    if first == last:  # neither, or both: 1x1 or 3x3 pixels
        raise DataError(
            f"{source} must be square images of 1 or 3 channels, (N, H, W, C) or (N, C, H, W), got {shape}",
            hint="crop or resize the images to a square, and drop an alpha channel",
        )
    return x if first else x.transpose(0, 3, 1, 2)
