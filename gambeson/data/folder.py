"""Any folder of images with one sub-folder per class."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np
import torch

from gambeson.core.errors import DataError, InputError
from gambeson.data.facts import measured_facts
from gambeson.data.images import IMAGE_SUFFIXES, decode, open_tree
from gambeson.data.splits import Examples, Pool, hold_out, labelled
from gambeson.data.survey import TEST_FRACTION


def read_folder(path: Path, *, size: int = 64) -> Pool:
    """Read a folder of images.

    `path/train`, `path/val` and `path/test` are the splits where they exist; `val` alone is the test split. Without
    either a stratified 20 % is held out as test split. Hidden and other files are ignored. Images come in a fixed
    shuffled order, so that the first `n` are a fair sample of the classes.

    Args:
        path: Folder with one sub-folder per class, or with `train`, `val`, `test` of that form.
        size: Height and width that images are brought to, pixels: short side, then centre crop.

    Returns:
        Training, test and (with both `val` and `test`) validation examples.

    Raises:
        InputError: If `size` is below 8.
        DataError: If the folder or a class has no images, the splits differ in their classes, or an image is damaged.
    """
    if size < 8:
        raise InputError(f"size must be at least 8 pixels, got {size}")
    if not path.is_dir():
        raise DataError(f"there is no folder {path}", hint="folder:PATH needs a folder with one sub-folder per class")
    parts = {name: path / name for name in ("train", "val", "test") if (path / name).is_dir()}
    if parts and "train" not in parts:
        raise DataError(
            f"{path} has {' and '.join(parts)} but no train", hint=f"put training images into {path / 'train'}"
        )
    base = parts.get("train", path)
    names = _class_names(base)
    for part in parts.values():
        _require_same_classes(part, names, base)
    train = _read(base, names, size)
    test_folder = parts.get("test", parts.get("val"))
    if test_folder is not None:
        test = _read(test_folder, names, size)
    else:
        rest, held = hold_out(train, TEST_FRACTION, len(names), seed=0, class_names=names)
        train, test = train.subset(rest), train.subset(held)
    val = _read(parts["val"], names, size) if "val" in parts and "test" in parts else None
    return Pool(train, test, val, measured_facts(f"folder:{path}", names, train.x, flip=True))


def _class_names(base: Path) -> list[str]:
    names = sorted(entry.name for entry in base.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if len(names) < 2:
        found = f"only {names[0]}" if names else "none"
        raise DataError(
            f"{base} must have one sub-folder per class, at least 2, found {found}",
            hint="put the images of each class into a folder of their own, such as PATH/cat/1.png",
        )
    return names


def _require_same_classes(part: Path, names: Sequence[str], base: Path) -> None:
    differing = sorted(set(_class_names(part)) ^ set(names))
    if differing:
        raise DataError(
            f"{part} and {base} differ in the classes {', '.join(differing[:5])}",
            hint="every split needs the same class sub-folders",
        )


def _read(base: Path, names: Sequence[str], size: int) -> Examples:
    with open_tree(base) as tree:
        files = {name: tree.images(name) for name in names}
        empty = [name for name, images in files.items() if not images]
        if empty:
            raise DataError(
                f"{base} has no images in the class folders {', '.join(empty[:5])}",
                hint=f"add images ({', '.join(sorted(IMAGE_SUFFIXES))}) or remove the folders",
            )
        flat = [name for images in files.values() for name in images]
        order = torch.randperm(len(flat), generator=torch.Generator().manual_seed(0)).tolist()
        flat = [flat[i] for i in order]
        y = np.array([names.index(PurePosixPath(name).parts[0]) for name in flat])
        return labelled(decode(tree, flat, size, resize=True), y, len(names), base)
