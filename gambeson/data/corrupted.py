"""Readers for the published corrupted test sets: CIFAR-10-C, CIFAR-100-C and Tiny-ImageNet-C. Nothing is downloaded."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from gambeson.core.errors import DataError, InputError, nearest
from gambeson.data.corruptions.names import CORRUPTIONS, SEVERITIES
from gambeson.data.facts import FACTS
from gambeson.data.files import data_root
from gambeson.data.images import decode, open_tree
from gambeson.data.splits import Examples, labelled

PUBLISHED: dict[str, tuple[str, ...]] = {
    "cifar10": ("CIFAR-10-C",),
    "cifar100": ("CIFAR-100-C",),
    "tiny-imagenet": ("Tiny-ImageNet-C", "Tiny-ImageNet-C-extra"),
}
"""Folders below the data root by the data set's name; a corruption is looked for in the first, then in the second."""

PER_SEVERITY = 10_000
"""Images of each severity in the CIFAR files."""
_WHERE = "the archives are published at https://github.com/hendrycks/robustness; unpack them below the data folder"


def require_published(
    name: str, root: str | Path | None, corruptions: tuple[str, ...], severities: tuple[int, ...] = SEVERITIES
) -> None:
    """Refuse, before any work, if files that will be read are missing; all of them are named at once.

    Args:
        name: cifar10, cifar100 or tiny-imagenet.
        root: Folder of the data sets; None for `$GAMBESON_DATA`.
        corruptions: Names in `CORRUPTIONS`.
        severities: Severities to be read.

    Raises:
        InputError: There are no published files for that data set.
        DataError: Files are missing.
    """
    folders = _folders(name, root)
    if name == "tiny-imagenet":
        missing = [
            f"{corruption}/{severity}"
            for corruption in corruptions
            for severity in severities
            if not any((folder / corruption / str(severity)).is_dir() for folder in folders)
        ]
    else:
        wanted = ["labels.npy", *[f"{corruption}.npy" for corruption in corruptions]]
        missing = [file for file in wanted if not (folders[0] / file).is_file()]
    if missing:
        raise DataError(f"{' and '.join(map(str, folders))}: there is no {', '.join(missing)}", hint=_WHERE)


def read_corrupted(
    name: str, root: str | Path | None, corruption: str, severity: int, limit: int | None = None
) -> Examples:
    """Published corrupted test images at one severity.

    CIFAR's images come in the order of the test set. Tiny-ImageNet-C's are crops of ImageNet's validation images, not
    those of Tiny-ImageNet: they come class by class, one of each class in turn, so that the first `limit` are the same
    mixture of classes.

    Args:
        name: cifar10, cifar100 or tiny-imagenet.
        root: Folder of the data sets; None for `$GAMBESON_DATA`.
        corruption: A name in `CORRUPTIONS`.
        severity: 1 to 5.
        limit: Only that many images.

    Returns:
        Examples.

    Raises:
        InputError: An unknown name, severity or limit.
        DataError: Files are missing, damaged, pickled or of another shape, or labels differ between severities.

    References:
        Hendrycks, Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations", ICLR
        2019, https://arxiv.org/abs/1903.12261.
    """
    if corruption not in CORRUPTIONS:
        raise InputError(f"unknown corruption {corruption!r}", hint=nearest(corruption, CORRUPTIONS))
    if severity not in SEVERITIES:
        raise InputError(f"a severity must be 1, 2, 3, 4 or 5, got {severity!r}")
    if limit is not None and limit < 1:
        raise InputError(f"a limit must be at least 1, got {limit}")
    require_published(name, root, (corruption,), (severity,))
    folders = _folders(name, root)
    if name == "tiny-imagenet":
        return _from_folders(folders, corruption, severity, limit)
    return _from_arrays(folders[0], corruption, severity, limit, FACTS[name].num_classes)


def _folders(name: str, root: str | Path | None) -> list[Path]:
    if name not in PUBLISHED:
        raise InputError(
            f"there are no published corrupted images of {name}",
            hint=f"known: {', '.join(PUBLISHED)}; for other data the corruptions can be generated",
        )
    return [data_root(root) / folder for folder in PUBLISHED[name]]


def _from_arrays(folder: Path, corruption: str, severity: int, limit: int | None, num_classes: int) -> Examples:
    path = folder / f"{corruption}.npy"
    labels, images = _array(folder / "labels.npy"), _array(path)
    rows = PER_SEVERITY * len(SEVERITIES)
    if labels.shape != (rows,) or labels.dtype.kind not in "iu":
        raise _wrong(folder / "labels.npy", f"it holds {labels.dtype} {labels.shape}, expected {rows:,} integers")
    if images.shape != (rows, 32, 32, 3) or images.dtype != np.uint8:
        raise _wrong(path, f"it holds {images.dtype} {images.shape}, expected uint8 {(rows, 32, 32, 3)}")
    by_severity = np.asarray(labels).reshape(len(SEVERITIES), PER_SEVERITY)
    if (by_severity != by_severity[0]).any():
        raise _wrong(folder / "labels.npy", "its labels differ between the severities")
    count = PER_SEVERITY if limit is None else min(limit, PER_SEVERITY)
    start = (severity - 1) * PER_SEVERITY
    x = np.ascontiguousarray(images[start : start + count].transpose(0, 3, 1, 2))
    return labelled(x, by_severity[0, :count].copy(), num_classes, path)


def _array(path: Path) -> np.ndarray[Any, Any]:
    try:
        array = np.load(path, allow_pickle=False, mmap_mode="r")
    except (ValueError, EOFError, OSError) as error:
        raise _wrong(path, f"{path.stat().st_size:,} bytes, {error}") from error
    if not isinstance(array, np.ndarray):
        raise _wrong(path, "it is an archive of arrays, not one array")
    return array


def _from_folders(folders: list[Path], corruption: str, severity: int, limit: int | None) -> Examples:
    folder = next(f / corruption / str(severity) for f in folders if (f / corruption / str(severity)).is_dir())
    wnids = FACTS["tiny-imagenet"].class_names
    missing = [wnid for wnid in wnids if not (folder / wnid).is_dir()]
    if missing:
        listed = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
        raise _wrong(folder, f"it lacks the classes {listed}")
    with open_tree(folder) as tree:
        label_of = {wnid: label for label, wnid in enumerate(wnids)}
        seen = [0] * len(wnids)
        found = []
        for image in tree.names:
            parts = PurePosixPath(image).parts
            if len(parts) == 2 and parts[0] in label_of and image.lower().endswith((".jpeg", ".jpg", ".png")):
                label = label_of[parts[0]]
                found.append((seen[label], label, image))
                seen[label] += 1
        empty = [wnid for wnid, count in zip(wnids, seen, strict=True) if not count]
        if empty:
            raise _wrong(folder, f"it holds no images of {', '.join(empty[:5])} ({len(empty)} such classes)")
        chosen = sorted(found)[:limit]
        x = decode(tree, [image for _, _, image in chosen], 64, resize=False)
    return labelled(x, np.array([label for _, label, _ in chosen]), len(wnids), folder)


def _wrong(path: Path, reason: str) -> DataError:
    return DataError(f"{path} is damaged: {reason}", hint=_WHERE)
