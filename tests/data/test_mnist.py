import gzip
import hashlib
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from gambeson.core.errors import DataError
from gambeson.data.mnist import FASHION_MNIST, MNIST, IdxSet, read_idx_set

COUNTS = {"train": 30, "t10k": 20}


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


def contents() -> dict[str, bytes]:
    rng = np.random.default_rng(0)
    files = {}
    for prefix, count in COUNTS.items():
        files[f"{prefix}-images-idx3-ubyte"] = idx(rng.integers(0, 256, (count, 28, 28), dtype=np.uint8))
        files[f"{prefix}-labels-idx1-ubyte"] = idx((np.arange(count) % 10).astype(np.uint8))
    return files


def small(base: IdxSet = MNIST) -> IdxSet:
    files = contents()
    return replace(
        base,
        url="http://127.0.0.1:9/",
        counts=COUNTS,
        md5={name: hashlib.md5(gzip.compress(content, mtime=0)).hexdigest() for name, content in files.items()},
        unpacked_md5={name: hashlib.md5(content).hexdigest() for name, content in files.items()},
    )


def write(folder: Path, *, packed: bool, rename: Callable[[str], str] = str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents().items():
        if packed:
            (folder / f"{rename(name)}.gz").write_bytes(gzip.compress(content, mtime=0))
        else:
            (folder / rename(name)).write_bytes(content)


@pytest.mark.parametrize(
    ("base", "folder"),
    [
        (MNIST, "mnist"),
        (MNIST, "MNIST/raw"),
        (MNIST, ""),
        (FASHION_MNIST, "fashion-mnist"),
        (FASHION_MNIST, "FashionMNIST/raw"),
        (FASHION_MNIST, ""),
    ],
)
@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("verify", [True, False])
def test_the_original_files_are_found_and_read(
    tmp_path: Path, base: IdxSet, folder: str, packed: bool, verify: bool
) -> None:
    write(tmp_path / folder, packed=packed)
    train, test, val, facts = read_idx_set(tmp_path, small(base), verify=verify)
    images = np.frombuffer(contents()["train-images-idx3-ubyte"][16:], np.uint8).reshape(30, 1, 28, 28)
    assert np.array_equal(train.x.numpy(), images)
    assert test.y.tolist() == [i % 10 for i in range(20)]
    assert val is None
    assert facts.name == base.name


def test_the_other_customary_name(tmp_path: Path) -> None:
    write(tmp_path / "mnist", packed=False, rename=lambda name: name.replace("-idx", ".idx"))
    assert len(read_idx_set(tmp_path, small(), verify=True).train) == 30


def test_files_of_another_set_right_in_the_root_are_not_taken(tmp_path: Path) -> None:
    write(tmp_path, packed=True)
    with pytest.raises(DataError, match="cannot be downloaded"):
        read_idx_set(tmp_path, replace(FASHION_MNIST, url="http://127.0.0.1:9/", counts=COUNTS))


IMAGES = "train-images-idx3-ubyte"


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda content: content[:-1], "23,535 bytes unpacked, expected 23,536"),
        (lambda content: content + b"0", "23,537 bytes unpacked"),
        (lambda content: b"", "0 bytes unpacked"),
        (lambda content: content[:3] + b"\x01" + content[4:], "its header is 00000801"),
    ],
)
@pytest.mark.parametrize("packed", [True, False])
def test_a_damaged_file_is_named(tmp_path: Path, damage: Callable[[bytes], bytes], says: str, packed: bool) -> None:
    write(tmp_path / "mnist", packed=packed)
    path = tmp_path / "mnist" / (f"{IMAGES}.gz" if packed else IMAGES)
    content = damage(contents()[IMAGES])
    path.write_bytes(gzip.compress(content) if packed else content)
    with pytest.raises(DataError, match=says) as error:
        read_idx_set(tmp_path, small())
    assert str(path) in str(error.value)
    assert "delete it" in str(error.value)


def test_a_truncated_gzip_is_named(tmp_path: Path) -> None:
    write(tmp_path / "mnist", packed=True)
    path = tmp_path / "mnist" / f"{IMAGES}.gz"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match="damaged") as error:
        read_idx_set(tmp_path, small())
    assert str(path) in str(error.value)


def test_a_flipped_pixel_is_seen_by_verify_only(tmp_path: Path) -> None:
    write(tmp_path / "mnist", packed=False)
    path = tmp_path / "mnist" / IMAGES
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    read_idx_set(tmp_path, small())
    with pytest.raises(DataError, match="md5"):
        read_idx_set(tmp_path, small(), verify=True)


def test_a_label_out_of_range(tmp_path: Path) -> None:
    write(tmp_path / "mnist", packed=False)
    path = tmp_path / "mnist" / "t10k-labels-idx1-ubyte"
    path.write_bytes(path.read_bytes()[:-1] + b"\x0a")
    with pytest.raises(DataError, match=r"t10k-labels.*label 10 of image 19 is outside 0\.\.9"):
        read_idx_set(tmp_path, small())


def test_one_missing_file_is_named(tmp_path: Path) -> None:
    write(tmp_path / "mnist", packed=True)
    (tmp_path / "mnist" / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(DataError, match=r"t10k-labels-idx1-ubyte\.gz is not in"):
        read_idx_set(tmp_path, small())
