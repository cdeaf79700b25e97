"""CIFAR-10 and CIFAR-100 in both published layouts, unpacked or straight from the `.tar.gz`."""

from __future__ import annotations

import gzip
import tarfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gambeson.data.facts import FACTS
from gambeson.data.files import Remote, damaged, download, find, verify_md5
from gambeson.data.pickles import load_arrays
from gambeson.data.splits import Examples, Pool, labelled

_PIXELS = 3 * 32 * 32
_URL = "https://www.cs.toronto.edu/~kriz/"
_Arrays = tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]


@dataclass(frozen=True, kw_only=True)
class Member:
    """One file of a layout.

    Attributes:
        name: File name; `.bin` files are binary records, others pickles.
        rows: Number of images.
        md5: Published checksum of the unpacked file, or None.
    """

    name: str
    rows: int
    md5: str | None = None


@dataclass(frozen=True, kw_only=True)
class Layout:
    """One published form of the data set.

    Attributes:
        archive: The `.tar.gz`.
        folder: The folder inside it.
        train: Files of the training split.
        test: File of the test split.
    """

    archive: Remote
    folder: str
    train: tuple[Member, ...]
    test: tuple[Member, ...]

    @property
    def members(self) -> tuple[Member, ...]:
        """All files."""
        return self.train + self.test


@dataclass(frozen=True, kw_only=True)
class CifarSpec:
    """A CIFAR set.

    Attributes:
        name: Name in `FACTS`.
        layouts: Published forms; the first is downloaded.
        label_bytes: Label bytes before the pixels of a binary record; the last one is the label.
        label_key: Key of the labels in a pickle.
    """

    name: str
    layouts: tuple[Layout, ...]
    label_bytes: int
    label_key: str


_Contents = tuple[Layout, Mapping[str, bytes], Path]


def _archive(name: str, md5: str) -> Remote:
    return Remote(name=name, url=_URL + name, md5=md5)


# The binary layout comes first: it needs no pickle.
CIFAR10 = CifarSpec(
    name="cifar10",
    layouts=(
        Layout(
            archive=_archive("cifar-10-binary.tar.gz", "c32a1d4ab5d03f1284b67883e8d87530"),
            folder="cifar-10-batches-bin",
            train=tuple(Member(name=f"data_batch_{i}.bin", rows=10_000) for i in range(1, 6)),
            test=(Member(name="test_batch.bin", rows=10_000),),
        ),
        Layout(
            archive=_archive("cifar-10-python.tar.gz", "c58f30108f718f92721af3b95e74349a"),
            folder="cifar-10-batches-py",
            train=(
                Member(name="data_batch_1", rows=10_000, md5="c99cafc152244af753f735de768cd75f"),
                Member(name="data_batch_2", rows=10_000, md5="d4bba439e000b95fd0a9bffe97cbabec"),
                Member(name="data_batch_3", rows=10_000, md5="54ebc095f3ab1f0389bbae665268c751"),
                Member(name="data_batch_4", rows=10_000, md5="634d18415352ddfa80567beed471001a"),
                Member(name="data_batch_5", rows=10_000, md5="482c414d41f54cd18b22e5b47cb7c3cb"),
            ),
            test=(Member(name="test_batch", rows=10_000, md5="40351d587109b95175f43aff81a1287e"),),
        ),
    ),
    label_bytes=1,
    label_key="labels",
)
CIFAR100 = CifarSpec(
    name="cifar100",
    layouts=(
        Layout(
            archive=_archive("cifar-100-binary.tar.gz", "03b5dce01913d631647c71ecec9e9cb8"),
            folder="cifar-100-binary",
            train=(Member(name="train.bin", rows=50_000),),
            test=(Member(name="test.bin", rows=10_000),),
        ),
        Layout(
            archive=_archive("cifar-100-python.tar.gz", "eb9058c3a382ffc7106e4002c42a8d85"),
            folder="cifar-100-python",
            train=(Member(name="train", rows=50_000, md5="16019d7e3df5f24257cddd939b257f8d"),),
            test=(Member(name="test", rows=10_000, md5="f0ef6b0ae62326f3e7ffdfab6717acfc"),),
        ),
    ),
    label_bytes=2,  # coarse, then fine
    label_key="fine_labels",
)


def read_cifar(root: Path, spec: CifarSpec = CIFAR10, *, verify: bool = False) -> Pool:
    """Read CIFAR-10 or CIFAR-100 (fine labels).

    Below `root` and `root/cifar10` (`cifar100`) a whole unpacked layout is taken first, then an archive, which is read
    without unpacking it to disk; with neither the binary archive is downloaded.

    Args:
        root: Folder of the data sets.
        spec: Which one.
        verify: Compare the published checksums of files that are already there, archives first: for the unpacked
            binary files none were published.

    Returns:
        Training and test examples in the original order.

    Raises:
        DataError: If files are missing and cannot be downloaded, are damaged, or hold anything but arrays.

    References:
        Krizhevsky. Learning Multiple Layers of Features from Tiny Images, 2009.
    """
    layout, contents, source = _contents(root, spec, verify)
    train, test = (_examples(members, contents, source, spec) for members in (layout.train, layout.test))
    return Pool(train, test, None, FACTS[spec.name])


def _contents(root: Path, spec: CifarSpec, verify: bool) -> _Contents:
    for search in (_in_archives, _in_folders) if verify else (_in_folders, _in_archives):
        found = search(root, spec, verify)
        if found is not None:
            return found
    for layout, folder in _folders(root, spec):
        missing = [m.name for m in layout.members if not (folder / m.name).is_file()]
        if folder.name == layout.folder and folder.is_dir():
            raise damaged(folder, f"it lacks {', '.join(missing)}")
    layout = spec.layouts[0]
    path = download(layout.archive, root)
    return layout, _unpacked(path, layout), path


def _folders(root: Path, spec: CifarSpec) -> Iterator[tuple[Layout, Path]]:
    for layout in spec.layouts:
        for inner in (layout.folder, ""):
            yield layout, root / inner
            yield layout, root / spec.name / inner


def _in_folders(root: Path, spec: CifarSpec, verify: bool) -> _Contents | None:
    for layout, folder in _folders(root, spec):
        if all((folder / member.name).is_file() for member in layout.members):
            for member in layout.members if verify else ():
                verify_md5(folder / member.name, member.md5)
            return layout, {member.name: (folder / member.name).read_bytes() for member in layout.members}, folder
    return None


def _in_archives(root: Path, spec: CifarSpec, verify: bool) -> _Contents | None:
    for layout in spec.layouts:
        path = find(root, ("", spec.name), [layout.archive.name])
        if path is not None:
            if verify:
                verify_md5(path, layout.archive.md5)
            return layout, _unpacked(path, layout), path
    return None


def _unpacked(path: Path, layout: Layout) -> dict[str, bytes]:
    wanted = {f"{layout.folder}/{member.name}": member.name for member in layout.members}
    contents = {}
    try:
        # One pass, and nothing is written, so no path in it can do harm. tarfile's own gzip reader skips the checksum.
        with gzip.open(path) as stream, tarfile.open(fileobj=stream, mode="r|") as archive:
            for entry in archive:
                name = wanted.get(entry.name.removeprefix("./"))
                file = archive.extractfile(entry) if name is not None else None
                if name is not None and file is not None:
                    contents[name] = file.read()
            while stream.read(1 << 20):
                pass  # the checksum comes last
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise damaged(path, f"{path.stat().st_size:,} bytes, {error}") from error
    missing = sorted(set(wanted.values()) - contents.keys())
    if missing:
        raise damaged(path, f"{path.stat().st_size:,} bytes, it lacks {', '.join(missing)}")
    return contents


def _examples(members: tuple[Member, ...], contents: Mapping[str, bytes], source: Path, spec: CifarSpec) -> Examples:
    decode = _from_records if members[0].name.endswith(".bin") else _from_pickle
    images, labels = zip(*(decode(contents[m.name], m, source / m.name, spec) for m in members), strict=True)
    x = np.concatenate(images).reshape(-1, 3, 32, 32)
    return labelled(x, np.concatenate(labels), FACTS[spec.name].num_classes, source)


def _from_records(content: bytes, member: Member, path: Path, spec: CifarSpec) -> _Arrays:
    record = spec.label_bytes + _PIXELS
    if len(content) != member.rows * record:
        raise damaged(path, f"{len(content):,} bytes, expected {member.rows:,} records of {record:,}")
    table = np.frombuffer(content, np.uint8).reshape(member.rows, record)
    return table[:, spec.label_bytes :], table[:, spec.label_bytes - 1]


def _from_pickle(content: bytes, member: Member, path: Path, spec: CifarSpec) -> _Arrays:
    batch = load_arrays(content, path)
    if isinstance(batch, dict):
        batch = {key.decode("latin1") if isinstance(key, bytes) else key: value for key, value in batch.items()}
    if not isinstance(batch, dict) or not {"data", spec.label_key} <= batch.keys():
        raise damaged(path, f"it must be a dict with the keys data and {spec.label_key}")
    data, labels = batch["data"], np.asarray(batch[spec.label_key])
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.shape != (member.rows, _PIXELS):
        found = f"{data.dtype} {data.shape}" if isinstance(data, np.ndarray) else type(data).__name__
        raise damaged(path, f"its data are {found}, expected uint8 {(member.rows, _PIXELS)}")
    if labels.dtype.kind not in "iu" or labels.shape != (member.rows,):
        raise damaged(path, f"its labels are {labels.dtype} {labels.shape}, expected {member.rows} integers")
    return data, labels
