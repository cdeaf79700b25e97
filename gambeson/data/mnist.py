"""MNIST and Fashion-MNIST from their idx files, gzipped or not."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gambeson.data.facts import FACTS
from gambeson.data.files import Remote, damaged, download, find, md5_of, read_gzip, verify_md5
from gambeson.data.splits import Examples, Pool, labelled


@dataclass(frozen=True, kw_only=True)
class IdxSet:
    """A data set of four idx files.

    Attributes:
        name: Name in `FACTS`.
        folders: Folders inside the data root where the files customarily lie; a download goes to the first. Files right
            in the root are taken if their checksum agrees: the names do not tell which set of the family they are of.
        url: Folder of the published `.gz` files, with the slash.
        md5: Checksums of the `.gz` files by name without `.gz`.
        unpacked_md5: Checksums of the unpacked files by the same names.
        counts: Images by prefix: `train` and `t10k`.
    """

    name: str
    folders: tuple[str, ...]
    url: str
    md5: Mapping[str, str]
    unpacked_md5: Mapping[str, str]
    counts: Mapping[str, int]


_COUNTS = {"train": 60_000, "t10k": 10_000}
MNIST = IdxSet(
    name="mnist",
    folders=("mnist", "MNIST/raw", "MNIST"),
    url="https://ossci-datasets.s3.amazonaws.com/mnist/",
    md5={
        "train-images-idx3-ubyte": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
        "train-labels-idx1-ubyte": "d53e105ee54ea40749a09fcbcd1e9432",
        "t10k-images-idx3-ubyte": "9fb629c4189551a2d022fa330f9573f3",
        "t10k-labels-idx1-ubyte": "ec29112dd5afa0611ce80d1b7f02629c",
    },
    unpacked_md5={
        "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
        "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
        "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
        "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
    },
    counts=_COUNTS,
)
FASHION_MNIST = IdxSet(
    name="fashion-mnist",
    folders=("fashion-mnist", "FashionMNIST/raw", "FashionMNIST", "fashion_mnist"),
    url="http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
    md5={
        "train-images-idx3-ubyte": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
        "train-labels-idx1-ubyte": "25c81989df183df01b3e8a0aad5dffbe",
        "t10k-images-idx3-ubyte": "bef4ecab320f06d8554ea6380940ec79",
        "t10k-labels-idx1-ubyte": "bb300cfdad3c16e7a12a480ee83cd310",
    },
    unpacked_md5={
        "train-images-idx3-ubyte": "f4a8712d7a061bf5bd6d2ca38dc4d50a",
        "train-labels-idx1-ubyte": "9018921c3c673c538a1fc5bad174d6f9",
        "t10k-images-idx3-ubyte": "8181f5470baa50b63fa0f6fddb340f0a",
        "t10k-labels-idx1-ubyte": "15d484375f8d13e6eb1aabb0c3f46965",
    },
    counts=_COUNTS,
)


def read_idx_set(root: Path, spec: IdxSet = MNIST, *, verify: bool = False) -> Pool:
    """Read a data set of the MNIST family.

    Args:
        root: Folder of the data sets.
        spec: Which one.
        verify: Compare the published checksums of files that are already there.

    Returns:
        Training and test examples.

    Raises:
        DataError: If a file is missing and cannot be downloaded, or is damaged.

    References:
        LeCun, Cortes, Burges. The MNIST database of handwritten digits, 1998.
        Xiao, Rasul, Vollgraf. Fashion-MNIST, 2017, https://arxiv.org/abs/1708.07747
    """
    return Pool(_split(root, spec, "train", verify), _split(root, spec, "t10k", verify), None, FACTS[spec.name])


def _split(root: Path, spec: IdxSet, prefix: str, verify: bool) -> Examples:
    count, facts = spec.counts[prefix], FACTS[spec.name]
    images, _ = _read(root, spec, f"{prefix}-images-idx3-ubyte", (count, facts.size, facts.size), verify)
    labels, path = _read(root, spec, f"{prefix}-labels-idx1-ubyte", (count,), verify)
    return labelled(images[:, None], labels, facts.num_classes, path)


def _read(
    root: Path, spec: IdxSet, name: str, shape: tuple[int, ...], verify: bool
) -> tuple[np.ndarray[Any, np.dtype[np.uint8]], Path]:
    path = _locate(root, spec, name, verify)
    content = read_gzip(path)
    # An idx file: two zero bytes, 8 for uint8, the number of dimensions, every dimension as big-endian int32, the data.
    header = bytes((0, 0, 8, len(shape))) + np.array(shape, ">i4").tobytes()
    size = len(header) + math.prod(shape)
    if len(content) != size:
        raise damaged(path, f"{len(content):,} bytes unpacked, expected {size:,}")
    if not content.startswith(header):
        raise damaged(path, f"its header is {content[: len(header)].hex()}, expected {header.hex()}")
    return np.frombuffer(content, np.uint8, offset=len(header)).reshape(shape), path


def _locate(root: Path, spec: IdxSet, name: str, verify: bool) -> Path:
    packed = f"{name}.gz"
    names = (packed, name, name.replace("-idx", ".idx"))
    path = find(root, spec.folders, names)
    if path is not None:
        if verify:
            verify_md5(path, (spec.md5 if path.name == packed else spec.unpacked_md5)[name])
        return path
    path = find(root, [""], names)
    if path is not None and md5_of(path) == (spec.md5 if path.name == packed else spec.unpacked_md5)[name]:
        return path
    return download(Remote(name=packed, url=spec.url + packed, md5=spec.md5[name], folder=spec.folders[0]), root)
