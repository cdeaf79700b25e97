"""SVHN, cropped digits, from its two MATLAB files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gambeson.data.facts import FACTS
from gambeson.data.files import Remote, damaged, obtain
from gambeson.data.splits import Examples, Pool, labelled

_FOLDERS = ("svhn", "", "SVHN")
_URL = "http://ufldl.stanford.edu/housenumbers/"


@dataclass(frozen=True, kw_only=True)
class SvhnSpec:
    """The files of SVHN.

    Attributes:
        md5: Checksums by file name.
        counts: Images by file name.
    """

    md5: Mapping[str, str]
    counts: Mapping[str, int]


SVHN = SvhnSpec(
    md5={
        "train_32x32.mat": "e26dedcc434d2e4c54c9b2d4a06d8373",
        "test_32x32.mat": "eb5a983be6a315427106f1b164d9cef3",
    },
    counts={"train_32x32.mat": 73_257, "test_32x32.mat": 26_032},
)


def read_svhn(root: Path, spec: SvhnSpec = SVHN, *, verify: bool = False) -> Pool:
    """Read SVHN without its `extra` images. Label 10 of the files means digit 0 and becomes label 0.

    Args:
        root: Folder of the data sets.
        spec: Checksums and counts.
        verify: Compare the published checksums of files that are already there.

    Returns:
        Training and test examples.

    Raises:
        DataError: If a file is missing and cannot be downloaded, or is damaged.

    References:
        Netzer et al. Reading Digits in Natural Images with Unsupervised Feature Learning, 2011.
    """
    train, test = (_read(root, spec, name, verify) for name in ("train_32x32.mat", "test_32x32.mat"))
    return Pool(train, test, None, FACTS["svhn"])


def _read(root: Path, spec: SvhnSpec, name: str, verify: bool) -> Examples:
    from scipy.io import loadmat

    path = obtain(Remote(name=name, url=_URL + name, md5=spec.md5[name], folder="svhn"), root, _FOLDERS, verify=verify)
    try:
        arrays = loadmat(path, variable_names=["X", "y"])
        x, y = arrays["X"], arrays["y"].reshape(-1)
    except Exception as error:  # scipy raises a dozen kinds on a truncated or corrupt file
        raise damaged(path, f"{path.stat().st_size:,} bytes, {type(error).__name__}: {error}") from error
    shape = (32, 32, 3, spec.counts[name])
    if x.shape != shape or x.dtype != np.uint8:
        raise damaged(path, f"its images are {x.dtype} {x.shape}, expected uint8 {shape}")
    if y.min() < 1 or y.max() > 10:
        raise damaged(path, f"its labels reach from {y.min()} to {y.max()}, expected 1 to 10")
    return labelled(x.transpose(3, 2, 0, 1), np.where(y == 10, 0, y), 10, path)
