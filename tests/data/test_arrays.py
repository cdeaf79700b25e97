from pathlib import Path

import numpy as np
import pytest

from gambeson.core.errors import DataError
from gambeson.data.arrays import read_npz

X = np.random.default_rng(0).integers(0, 256, (40, 12, 12, 3), dtype=np.uint8)
Y = np.arange(40) % 4


def save(folder: Path, **arrays: np.ndarray) -> Path:
    path = folder / "a.npz"
    np.savez(path, **arrays)
    return path


@pytest.mark.parametrize(
    ("x", "channels"),
    [
        (X, 3),
        (X.transpose(0, 3, 1, 2), 3),
        ((X / 255).astype(np.float32), 3),
        (X / 255.0, 3),
        (X[..., :1], 1),
        (X[..., 0], 1),
    ],
)
@pytest.mark.parametrize("y", [Y, Y.astype(np.uint8)[:, None]])
def test_the_forms_of_images_and_labels(tmp_path: Path, x: np.ndarray, channels: int, y: np.ndarray) -> None:
    train, test, val, facts = read_npz(save(tmp_path, x_train=x, y_train=y, x_test=x[:7], y_test=y[:7], other=y))
    assert np.array_equal(train.x.numpy(), X.transpose(0, 3, 1, 2)[:, :channels])
    assert train.y.tolist() == Y.tolist()
    assert test.y.tolist() == Y[:7].tolist()
    assert val is None
    assert (facts.num_classes, facts.channels, facts.size, facts.flip) == (4, channels, 12, False)


def test_floats_are_rounded_to_the_nearest_level(tmp_path: Path) -> None:
    levels = np.array([0, 0.4, 0.6, 99.6, 254.6, 255]).repeat(4)[:, None, None, None]
    x = np.broadcast_to(levels / 255, (24, 2, 2, 1))
    train = read_npz(save(tmp_path, x_train=x, y_train=np.arange(24) % 2, x_test=x, y_test=np.arange(24) % 2)).train
    assert train.x[::4, 0, 0, 0].tolist() == [0, 0, 1, 100, 255, 255]


def test_without_a_test_split_a_fifth_is_held_out(tmp_path: Path) -> None:
    train, test, _, _ = read_npz(save(tmp_path, x_train=X, y_train=Y))
    assert len(train) == 32
    assert test.y.bincount().tolist() == [2, 2, 2, 2]


def test_a_val_split_of_its_own(tmp_path: Path) -> None:
    path = save(tmp_path, x_train=X, y_train=Y, x_val=X[:5], y_val=Y[:5])
    val = read_npz(path).val
    assert val is not None
    assert val.y.tolist() == Y[:5].tolist()


NAN = X / 255.0
NAN[3, 2, 1, 0] = np.nan


@pytest.mark.parametrize(
    ("arrays", "says", "hint"),
    [
        ({"x_train": X}, "lacks y_train; it has x_train", "keys are"),
        ({"images": X}, "lacks x_train and y_train; it has no", "keys are"),
        ({"x_train": X, "y_train": Y, "x_test": X}, "lacks y_test", "keys are"),
        (
            {"x_train": X, "y_train": Y[:-1]},
            "train: images with one label each are needed, got 40 images",
            "same split",
        ),
        ({"x_train": X[:0], "y_train": Y[:0]}, "got 0 images", "same split"),
        ({"x_train": NAN, "y_train": Y}, "x_train has 1 pixels that are NaN", "repair"),
        ({"x_train": X.astype(float), "y_train": Y}, r"must be in \[0, 1\] .* got \[0, 255\]", "divide"),
        ({"x_train": X / 255.0 - 0.5, "y_train": Y}, r"must be in \[0, 1\] .* got \[-0.5, 0.5\]", "normalise"),
        ({"x_train": X.astype(np.int32), "y_train": Y}, "must be uint8 or float, got int32", "astype"),
        ({"x_train": X[:, :10], "y_train": Y}, "must be square", "crop"),
        ({"x_train": np.zeros((40, 12, 12, 4), np.uint8), "y_train": Y}, "1 or 3 channels", "alpha"),
        ({"x_train": X[:, :3, :3], "y_train": Y}, "must be square", "crop"),
        ({"x_train": X, "y_train": Y.astype(float)}, "y_train must be integers", "astype"),
        ({"x_train": X, "y_train": np.eye(4)[Y]}, "y_train must be integers", "astype"),
        ({"x_train": X, "y_train": Y * 2}, "every label from 0", "numpy.unique"),
        ({"x_train": X, "y_train": Y - 1}, "every label from 0", "numpy.unique"),
        ({"x_train": X, "y_train": Y, "x_test": X, "y_test": Y + 1}, r"test: label 4 of image 3 is outside 0\.\.3", ""),
        (
            {"x_train": X, "y_train": Y, "x_test": X[:, :6, :6], "y_test": Y},
            "differ in their image shapes",
            "one shape",
        ),
    ],
)
def test_what_does_not_fit_is_named(tmp_path: Path, arrays: dict[str, np.ndarray], says: str, hint: str) -> None:
    path = save(tmp_path, **arrays)
    with pytest.raises(DataError, match=says) as error:
        read_npz(path)
    assert str(path) in str(error.value)
    assert hint in str(error.value).split("hint: ")[1]


def test_pickled_objects_are_refused(tmp_path: Path) -> None:
    path = save(tmp_path, x_train=np.array([{}], dtype=object), y_train=Y)
    with pytest.raises(DataError, match="allow_pickle=False") as error:
        read_npz(path)
    assert "not admitted" in str(error.value)


@pytest.mark.parametrize("keep", [0, 3, 100, 5000, -30])
def test_a_truncated_file_is_named(tmp_path: Path, keep: int) -> None:
    path = save(tmp_path, x_train=X, y_train=Y)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DataError, match=r"cannot be read \([\d,]+ bytes\)") as error:
        read_npz(path)
    assert str(path) in str(error.value)


def test_other_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no file"):
        read_npz(tmp_path / "none.npz")
    np.save(tmp_path / "a.npy", X)
    with pytest.raises(DataError, match="single array"):
        read_npz(tmp_path / "a.npy")
