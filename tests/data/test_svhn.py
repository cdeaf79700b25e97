from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat

from gambeson.core.errors import DataError
from gambeson.data.svhn import SVHN, SvhnSpec, read_svhn

COUNTS = {"train_32x32.mat": 20, "test_32x32.mat": 10}
SPEC = SvhnSpec(md5=SVHN.md5, counts=COUNTS)


def write(folder: Path) -> dict[str, np.ndarray]:
    folder.mkdir(exist_ok=True)
    images = {}
    for name, count in COUNTS.items():
        images[name] = np.random.default_rng(count).integers(0, 256, (32, 32, 3, count), dtype=np.uint8)
        labels = (np.arange(count) % 10 + 1).astype(np.uint8)[:, None]
        savemat(folder / name, {"X": images[name], "y": labels}, do_compression=True)
    return images


@pytest.mark.parametrize("folder", ["", "svhn"])
def test_svhn_is_read_and_label_ten_is_digit_zero(tmp_path: Path, folder: str) -> None:
    images = write(tmp_path / folder)
    train, test, _, facts = read_svhn(tmp_path, SPEC)
    assert train.x.shape == (20, 3, 32, 32)
    assert train.x[7, 1, 5, 9] == images["train_32x32.mat"][5, 9, 1, 7]
    assert test.y.tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 0]
    assert facts.name == "svhn"


def test_verify_compares_the_published_checksum(tmp_path: Path) -> None:
    write(tmp_path)
    with pytest.raises(DataError, match=SVHN.md5["train_32x32.mat"]):
        read_svhn(tmp_path, SPEC, verify=True)


@pytest.mark.parametrize("cut", [0, 50, 200, 5000])
def test_a_truncated_file_is_named(tmp_path: Path, cut: int) -> None:
    write(tmp_path)
    path = tmp_path / "train_32x32.mat"
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(DataError, match="damaged") as error:
        read_svhn(tmp_path, SPEC)
    assert str(path) in str(error.value)
    assert "delete it" in str(error.value)


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"X": np.zeros((32, 32, 3, 19), np.uint8), "y": np.ones((19, 1))}, "expected uint8"),
        ({"X": np.zeros((32, 32, 3, 20)), "y": np.ones((20, 1))}, "expected uint8"),
        ({"X": np.zeros((32, 32, 3, 20), np.uint8), "y": np.zeros((20, 1))}, "labels reach from 0"),
        ({"X": np.zeros((32, 32, 3, 20), np.uint8), "y": np.full((20, 1), 11)}, "labels reach from 11"),
        ({"X": np.zeros((32, 32, 3, 20), np.uint8), "y": np.ones((19, 1))}, "20 images"),
        ({"X": np.zeros((32, 32, 3, 20), np.uint8)}, "KeyError: 'y'"),
    ],
)
def test_other_content_is_refused(tmp_path: Path, arrays: dict[str, np.ndarray], says: str) -> None:
    write(tmp_path)
    savemat(tmp_path / "train_32x32.mat", arrays)
    with pytest.raises(DataError, match=says) as error:
        read_svhn(tmp_path, SPEC)
    assert "train_32x32.mat" in str(error.value)
