"""Any folder of images with one sub-folder per class, decoded at once or when its images are needed."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch

from gambeson.core.errors import DataError, GambesonWarning, InputError, require_known
from gambeson.data.facts import measured_facts
from gambeson.data.images import IMAGE_SUFFIXES, decode, open_tree, unlisted
from gambeson.data.room import SHARE, default_workers, memory
from gambeson.data.splits import Examples, Pool, hold_out, labelled
from gambeson.data.stored import FileNames, StoredImages
from gambeson.data.survey import TEST_FRACTION

Stream = Literal["auto", "on", "off"]
"""Whether images are decoded when they are needed (`on`) or once (`off`); `auto` decides by the memory."""


def read_folder(path: Path, *, size: int = 64, stream: Stream = "off", workers: int | None = None) -> Pool:
    """Read a folder of images, or only the list of them.

    `path/train`, `path/val` and `path/test` are the splits where they exist; `val` alone is the test split. Without
    either a stratified 20 % is held out as test split. Hidden and other files are ignored. Images come in a fixed
    shuffled order, so that the first `n` are a fair sample of the classes.

    A streamed folder gives the same images and labels in the same order, but the images stay in their files
    (`StoredImages`): only names and labels are in memory, and a damaged image is found when it is needed.

    Args:
        path: Folder with one sub-folder per class, or with `train`, `val`, `test` of that form.
        size: Height and width that images are brought to, pixels: short side, then centre crop.
        stream: `on`, `off`, or `auto`: on where all decoded images would take more than `SHARE` of the memory.
        workers: Processes that decode a streamed folder ahead of a training; 0 for none, None for the number of cores
            less one, from 1 to 8.

    Returns:
        Training, test and (with both `val` and `test`) validation examples.

    Raises:
        InputError: If `size` is below 8, `workers` is below 0, or `stream` is another word.
        DataError: If the folder or a class has no images, the splits differ in their classes, or an image is damaged.

    Warns:
        GambesonWarning: `auto` has chosen to stream.
    """
    if size < 8:
        raise InputError(f"size must be at least 8 pixels, got {size}")
    if workers is not None and workers < 0:
        raise InputError(f"workers must be at least 0, got {workers}", hint="0 decodes in the training's own process")
    require_known("stream", stream, get_args(Stream))
    require_folder(path)
    parts = {name: path / name for name in ("train", "val", "test") if (path / name).is_dir()}
    if parts and "train" not in parts:
        raise DataError(
            f"{path} has {' and '.join(parts)} but no train", hint=f"put training images into {path / 'train'}"
        )
    base = parts.get("train", path)
    names = _class_names(base)
    for part in parts.values():
        _require_same_classes(part, names, base)
    test_folder = parts.get("test", parts.get("val"))
    val_folder = parts["val"] if {"val", "test"} <= parts.keys() else None
    listings = {folder: _list(folder, names) for folder in (base, test_folder, val_folder) if folder is not None}
    streamed = _is_streamed(path, stream, sum(len(listing.y) for listing in listings.values()), size)
    count = default_workers() if workers is None else workers
    read = {folder: _read(listing, names, size, count if streamed else None) for folder, listing in listings.items()}
    train = read[base]
    if test_folder is not None:
        test = read[test_folder]
    else:
        rest, held = hold_out(train, TEST_FRACTION, len(names), seed=0, class_names=names)
        train, test = train.subset(rest), train.subset(held)
    val = None if val_folder is None else read[val_folder]
    facts = measured_facts(f"folder:{path}", names, train.x, flip=True)
    return Pool(train, test, val, replace(facts, files=_digest(path, listings.values())))


def require_folder(path: Path) -> None:
    """Refuse a folder that is not there.

    Raises:
        DataError: There is none.
    """
    if not path.is_dir():
        raise DataError(f"there is no folder {path}", hint="folder:PATH needs a folder with one sub-folder per class")


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


class _Listing(NamedTuple):
    """Image files below a folder, relative to it and shuffled, and their labels."""

    where: Path
    names: list[str]
    y: np.ndarray[tuple[int], np.dtype[np.int64]]


def _list(base: Path, names: Sequence[str]) -> _Listing:
    with open_tree(base) as tree:
        files = tree.images_by_folder()
    empty = [name for name in names if name not in files]
    if empty:
        raise DataError(
            f"{base} has no images in the class folders {', '.join(empty[:5])}",
            hint=f"add images ({', '.join(sorted(IMAGE_SUFFIXES))}) or remove the folders",
        )
    flat = [name for label in names for name in files[label]]
    y = np.repeat(np.arange(len(names)), [len(files[label]) for label in names])
    order = torch.randperm(len(flat), generator=torch.Generator().manual_seed(0)).numpy()
    return _Listing(base, [flat[i] for i in order], y[order])


def _digest(path: Path, listings: Iterable[_Listing]) -> tuple[int, str]:
    """How many files there are, and 16 hexadecimal digits of their names below `path`."""
    found, count = hashlib.blake2b(digest_size=8), 0
    for listing in listings:
        found.update(f"{listing.where.relative_to(path)}\n".encode())
        for name in listing.names:
            found.update(os.fsencode(f"{name}\n"))
        count += len(listing.names)
    return count, found.hexdigest()


def _is_streamed(path: Path, stream: Stream, count: int, size: int) -> bool:
    room, needed = memory(), 3 * count * size * size
    if stream != "auto" or room is None or needed <= SHARE * room:
        return stream == "on"
    warnings.warn(
        f"{count:,} images of {path} would take {needed / 1e9:.2f} GB decoded to {size}x{size} pixels, more than"
        f" {SHARE:.0%} of the {room / 1e9:.1f} GB of memory: they are decoded when they are needed"
        " (with --stream off all at once)",
        GambesonWarning,
        stacklevel=3,
    )
    return True


def _read(listing: _Listing, names: Sequence[str], size: int, workers: int | None) -> Examples:
    """The examples of a listing: in memory, or streamed where there is a number of `workers`."""
    if workers is None:
        x = decode(unlisted(listing.where), listing.names, size, resize=True)
        return labelled(x, listing.y, len(names), listing.where)
    y = torch.from_numpy(listing.y)
    return Examples(StoredImages(listing.where, FileNames(listing.names), size, torch.arange(len(y)), workers), y)
