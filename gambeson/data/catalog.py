"""The data sets by name, and `load`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from gambeson.core.errors import InputError, nearest
from gambeson.data.arrays import read_npz, require_npz
from gambeson.data.cifar import CIFAR10, CIFAR100, read_cifar
from gambeson.data.digits import read_digits
from gambeson.data.facts import FACTS
from gambeson.data.files import data_root
from gambeson.data.folder import Stream, read_folder, require_folder
from gambeson.data.mnist import FASHION_MNIST, MNIST, read_idx_set
from gambeson.data.splits import Pool, Splits, hold_out
from gambeson.data.svhn import read_svhn
from gambeson.data.tiny_imagenet import read_tiny_imagenet

DATASETS: dict[str, str] = {
    "digits": "1,797 grey 8x8 digits, embedded (scikit-learn)",
    "mnist": "70,000 grey 28x28 digits",
    "fashion-mnist": "70,000 grey 28x28 pieces of clothing",
    "cifar10": "60,000 RGB 32x32 images, 10 classes",
    "cifar100": "60,000 RGB 32x32 images, 100 classes",
    "svhn": "99,289 RGB 32x32 house numbers",
    "tiny-imagenet": "110,000 RGB 64x64 images, 200 classes",
    "folder:PATH": "your images, one sub-folder per class; optional train/, val/, test/",
    "npz:PATH": "your arrays: x_train, y_train and optional x_val, y_val, x_test, y_test",
}

_READERS: dict[str, Callable[..., Pool]] = {
    "mnist": partial(read_idx_set, spec=MNIST),
    "fashion-mnist": partial(read_idx_set, spec=FASHION_MNIST),
    "cifar10": partial(read_cifar, spec=CIFAR10),
    "cifar100": partial(read_cifar, spec=CIFAR100),
    "svhn": read_svhn,
    "tiny-imagenet": read_tiny_imagenet,
}


def load(
    name: str,
    root: str | Path | None = None,
    *,
    val_fraction: float = 0.05,
    seed: int = 0,
    verify: bool = False,
    size: int | None = None,
    stream: Stream = "off",
    workers: int | None = None,
) -> Splits:
    """Load a data set, from its original files or by downloading them.

    Args:
        name: A key of `DATASETS`; `folder:PATH` and `npz:PATH` take a path.
        root: Folder of the data sets; by default `$GAMBESON_DATA`, else a per-user cache. Files are looked for right
            in it and in the customary sub-folders, and downloaded into it.
        val_fraction: Fraction of the training images held out as `val`, the classes in equal proportion, in [0, 1);
            0 for an empty `val`. A data set with a val split of its own uses that one instead.
        seed: Seed of the hold-out. Nothing else depends on it, and the global random state does not matter.
        verify: Compare the published checksums of files that are already there; downloads are always compared.
        size: Height and width that `folder:PATH` brings images to, pixels, 64 by default.
        stream: `on` leaves the images of `folder:PATH` in their files and decodes them when they are needed, `auto`
            does so where they would take more than a quarter of the memory; see `read_folder`.
        workers: Processes that decode a streamed folder ahead of a training.

    Returns:
        The three splits, uint8, and the facts.

    Raises:
        InputError: If the name is unknown, or an argument is out of range or does not apply.
        DataError: If files are missing, damaged or not of the expected form.

    Warns:
        GambesonWarning: `auto` has chosen to stream.

    Examples:
        >>> splits = load("digits")
        >>> len(splits.train), len(splits.val), len(splits.test), splits.facts.size
        (1330, 70, 397, 8)
    """
    if not 0 <= val_fraction < 1:
        raise InputError(f"val_fraction must be in [0, 1), got {val_fraction}", hint="5 % is val_fraction=0.05")
    if not name.startswith("folder:") and (stream == "on" or workers is not None):
        given = "stream='on'" if stream == "on" else f"workers={workers}"
        raise InputError(f"{given} does not apply to {name}", hint="only folder:PATH is decoded when it is needed")
    pool = _read(name, root, verify, size, stream, workers)
    if val_fraction == 0:
        return Splits(pool.train, pool.train.head(0), pool.test, pool.facts)
    if pool.val is not None:
        return Splits(pool.train, pool.val, pool.test, pool.facts)
    facts = pool.facts
    rest, held = hold_out(pool.train, val_fraction, facts.num_classes, seed, class_names=facts.class_names)
    return Splits(pool.train.subset(rest), pool.train.subset(held), pool.test, pool.facts)


def require_data(name: str) -> None:
    """Refuse what is not the name of a data set; whether its files are there is another question.

    Raises:
        InputError: An unknown name, or `folder:` or `npz:` without a path.
    """
    kind, colon, path = name.partition(":")
    if kind in ("folder", "npz") and not path:
        raise InputError(f"{kind}: needs a path", hint=f"{kind}:PATH, for instance {kind}:data/mine")
    if kind not in ("folder", "npz") and (colon or name not in FACTS):
        raise InputError(f"there is no data set {name!r}", hint=nearest(name, DATASETS))


def require_there(name: str, root: str | Path | None = None) -> None:
    """Refuse data whose files are not there, without reading them; what is published is downloaded when it is needed.

    Raises:
        InputError: As `require_data`.
        DataError: There is no such folder or file, or a file stands where published data go.
    """
    require_data(name)
    kind, _, path = name.partition(":")
    if kind == "npz":
        require_npz(Path(path).expanduser())
    elif kind == "folder":
        require_folder(Path(path).expanduser())
    elif name != "digits":
        data_root(root)


def _read(
    name: str, root: str | Path | None, verify: bool, size: int | None, stream: Stream, workers: int | None
) -> Pool:
    kind, _, path = name.partition(":")
    if kind in ("folder", "npz"):
        return _read_own(kind, path, verify, size, stream, workers)
    require_data(name)
    if size not in (None, FACTS[name].size):
        raise InputError(
            f"size={size} does not apply to {name}, whose images are {FACTS[name].size}x{FACTS[name].size}",
            hint="size is for folder:PATH",
        )
    return read_digits() if name == "digits" else _READERS[name](data_root(root), verify=verify)


def _read_own(kind: str, path: str, verify: bool, size: int | None, stream: Stream, workers: int | None) -> Pool:
    require_data(f"{kind}:{path}")
    if verify:
        raise InputError(f"verify does not apply to {kind}:PATH: your own data have no published checksum")
    if kind == "npz":
        if size is not None:
            raise InputError(f"size={size} does not apply to npz:PATH", hint="size is for folder:PATH")
        return read_npz(Path(path).expanduser())
    side = 64 if size is None else size
    return read_folder(Path(path).expanduser(), size=side, stream=stream, workers=workers)
