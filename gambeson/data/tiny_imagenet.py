"""Tiny-ImageNet from its zip or its folder; the labelled val images are the test split, as in the literature."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import numpy as np

from gambeson.data.facts import FACTS
from gambeson.data.files import Remote, damaged, find, obtain, verify_md5
from gambeson.data.images import Tree, decode, open_tree
from gambeson.data.splits import Examples, Pool, labelled


@dataclass(frozen=True, kw_only=True)
class TinyImageNetSpec:
    """What the data set must hold.

    Attributes:
        archive: The published zip.
        wnids: Class ids, sorted.
        train_per_class: Training images of every class.
        val: Number of val images.
        size: Height and width, pixels.
    """

    archive: Remote
    wnids: tuple[str, ...]
    train_per_class: int
    val: int
    size: int


TINY_IMAGENET = TinyImageNetSpec(
    archive=Remote(
        name="tiny-imagenet-200.zip",
        url="http://cs231n.stanford.edu/tiny-imagenet-200.zip",
        md5="90528d7ca1a48142e341f4ef8d21d0de",
    ),
    wnids=FACTS["tiny-imagenet"].class_names,
    train_per_class=500,
    val=10_000,
    size=64,
)


def read_tiny_imagenet(root: Path, spec: TinyImageNetSpec = TINY_IMAGENET, *, verify: bool = False) -> Pool:
    """Read Tiny-ImageNet. Labels number the sorted wnids.

    The val images may lie flat beside `val_annotations.txt` or sorted into class folders; they come in the order of
    their numbers either way, so the first `n` are the same mixture of classes. Decoding takes a minute or so.

    Args:
        root: Folder of the data sets.
        spec: Expected classes and counts.
        verify: Compare the published checksum of a zip that is already there, and read that. For an unpacked folder
            none was published.

    Returns:
        Training examples, class by class, and test examples (the val images).

    Raises:
        DataError: If files are missing and cannot be downloaded, or are damaged.

    References:
        Le, Yang. Tiny ImageNet Visual Recognition Challenge, 2015.
    """
    with open_tree(_locate(root, spec, verify)) as tree:
        classes = _classes(tree, spec)
        train = _train_names(tree, classes, spec)
        test = _val_names(tree, classes, spec)
        words = _words(tree)
        facts = replace(FACTS["tiny-imagenet"], class_names=tuple(words.get(wnid, wnid) for wnid in classes))
        return Pool(_examples(tree, train, spec), _examples(tree, test, spec), None, facts)


def _locate(root: Path, spec: TinyImageNetSpec, verify: bool) -> Path:
    parents = ("", "tiny-imagenet")
    if verify and find(root, parents, [spec.archive.name]) is not None:
        return obtain(spec.archive, root, parents, verify=True)
    for folder in ("tiny-imagenet-200", "tiny-imagenet", "tiny-imagenet/tiny-imagenet-200", ""):
        path = root / folder
        if (path / "train" / spec.wnids[0]).is_dir():
            if verify:
                verify_md5(path, None)
            return path
    return obtain(spec.archive, root, parents, verify=verify)


def _classes(tree: Tree, spec: TinyImageNetSpec) -> dict[str, int]:
    if "wnids.txt" in tree.names:
        listed = tuple(sorted(_text(tree, "wnids.txt").split()))
        if listed != spec.wnids:
            raise damaged(
                tree.where / "wnids.txt", f"its {len(listed)} class ids are not the {len(spec.wnids)} published"
            )
    return {wnid: label for label, wnid in enumerate(spec.wnids)}


def _train_names(tree: Tree, classes: Mapping[str, int], spec: TinyImageNetSpec) -> dict[str, int]:
    labels = {name: classes.get(PurePosixPath(name).parts[1], -1) for name in tree.images("train")}
    counts = np.bincount([label for label in labels.values() if label >= 0], minlength=len(classes))
    for wnid, label in classes.items():
        if counts[label] != spec.train_per_class:
            raise damaged(
                tree.where / "train" / wnid, f"it holds {counts[label]} images, expected {spec.train_per_class}"
            )
    names = [name for name, label in labels.items() if label >= 0]
    return {name: labels[name] for name in sorted(names, key=lambda name: (labels[name], *_by_number(name)))}


def _val_names(tree: Tree, classes: Mapping[str, int], spec: TinyImageNetSpec) -> dict[str, int]:
    annotated = {}
    if "val/val_annotations.txt" in tree.names:
        rows = (line.split() for line in _text(tree, "val/val_annotations.txt").splitlines())
        annotated = {row[0]: row[1] for row in rows if len(row) > 1}
    labels = {}
    for name in sorted(tree.images("val"), key=_by_number):
        path = PurePosixPath(name)
        wnid = path.parts[1] if path.parts[1] in classes else annotated.get(path.name, "")
        if wnid not in classes:
            raise damaged(tree.where / name, "neither its folder nor val_annotations.txt names its class")
        labels[name] = classes[wnid]
    if len(labels) != spec.val:
        raise damaged(tree.where / "val", f"it holds {len(labels):,} images, expected {spec.val:,}")
    return labels


def _words(tree: Tree) -> dict[str, str]:
    if "words.txt" not in tree.names:
        return {}
    rows = (line.partition("\t") for line in _text(tree, "words.txt").splitlines())
    return {wnid: words.split(",")[0].strip() for wnid, _, words in rows if words}


def _examples(tree: Tree, labels: Mapping[str, int], spec: TinyImageNetSpec) -> Examples:
    x = decode(tree, list(labels), spec.size, resize=False)
    return labelled(x, np.array(list(labels.values())), len(spec.wnids), tree.where)


def _by_number(name: str) -> tuple[int, str]:
    last = PurePosixPath(name).name
    return len(last), last  # val_10.JPEG after val_9.JPEG


def _text(tree: Tree, name: str) -> str:
    try:
        return tree.read(name).decode()
    except Exception as error:  # a corrupt archive member, an unreadable file, or no text at all
        raise damaged(tree.where / name, str(error)) from error
