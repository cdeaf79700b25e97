from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gambeson.core.errors import DataError, InputError
from gambeson.data.folder import read_folder

COLOURS = {"cat": (200, 0, 0), "dog": (0, 200, 0), "emu": (0, 0, 200)}


def fill(base: Path, count: int, names: tuple[str, ...] = ("cat", "dog", "emu"), number: int = 0) -> None:
    for name in names:
        (base / name / "deeper").mkdir(parents=True)
        for i in range(count):
            inner = "deeper" if i % 2 else "."
            size = (20 + i, 30)
            Image.new("RGB", size, tuple(c + number for c in COLOURS[name])).save(base / name / inner / f"{i}.png")


def is_consistent(examples: object, number: int | None = None) -> bool:
    """Whether each image has the colour of its label."""
    colours = examples.x[:, :, 0, 0].int()  # type: ignore[attr-defined]
    labels = colours.argmax(1)
    right_number = number is None or bool((colours.amin(1) == number).all())
    return labels.tolist() == examples.y.tolist() and right_number  # type: ignore[attr-defined]


def test_classes_directly_in_the_folder(tmp_path: Path) -> None:
    fill(tmp_path, 10)
    train, test, val, facts = read_folder(tmp_path, size=16)
    assert train.x.shape == (24, 3, 16, 16)
    assert test.y.bincount().tolist() == [2, 2, 2]
    assert val is None
    assert is_consistent(train)
    assert is_consistent(test)
    assert facts.class_names == ("cat", "dog", "emu")
    assert (facts.size, facts.flip, facts.name) == (16, True, f"folder:{tmp_path}")
    again = read_folder(tmp_path, size=16)
    assert np.array_equal(again.train.y, train.y)
    assert len(train.head(12).y.unique()) == 3  # shuffled: the first are a sample of all classes


@pytest.mark.parametrize(
    ("parts", "test_part", "has_val"),
    [
        (("train",), None, False),
        (("train", "val"), "val", False),
        (("train", "test"), "test", False),
        (("train", "val", "test"), "test", True),
    ],
)
def test_sub_folders(tmp_path: Path, parts: tuple[str, ...], test_part: str | None, has_val: bool) -> None:
    number = {"train": 1, "val": 2, "test": 3}
    for part in parts:
        fill(tmp_path / part, 10, number=number[part])
    train, test, val, _ = read_folder(tmp_path, size=8)
    assert len(train) == (24 if test_part is None else 30)
    assert is_consistent(train, 1)
    assert is_consistent(test, 1 if test_part is None else number[test_part])
    assert (val is not None) == has_val
    if val is not None:
        assert is_consistent(val, 2)


def test_the_default_size(tmp_path: Path) -> None:
    fill(tmp_path, 5)
    assert read_folder(tmp_path).facts.size == 64


def test_hidden_and_other_files_are_ignored(tmp_path: Path) -> None:
    fill(tmp_path, 5)
    (tmp_path / ".cache").mkdir()
    for name in (".cache/a.png", "cat/.DS_Store", "cat/.b.png", "cat/labels.csv", "README.txt"):
        (tmp_path / name).write_text("no image")
    train, test, _, facts = read_folder(tmp_path, size=8)
    assert len(train) + len(test) == 15
    assert facts.num_classes == 3


def test_a_damaged_image_is_named(tmp_path: Path) -> None:
    fill(tmp_path, 5)
    (tmp_path / "dog" / "x.jpeg").write_text("no image")
    with pytest.raises(DataError, match="cannot be decoded") as error:
        read_folder(tmp_path, size=8)
    assert str(tmp_path / "dog" / "x.jpeg") in str(error.value)


def test_an_empty_class_is_named(tmp_path: Path) -> None:
    fill(tmp_path, 5)
    (tmp_path / "fox").mkdir()
    (tmp_path / "fox" / "notes.txt").touch()
    with pytest.raises(DataError, match="no images in the class folders fox") as error:
        read_folder(tmp_path, size=8)
    assert str(tmp_path) in str(error.value)


def test_a_class_too_small_for_a_test_split_is_named(tmp_path: Path) -> None:
    fill(tmp_path, 30, ("cat", "dog"))
    fill(tmp_path, 1, ("emu",))
    with pytest.raises(DataError, match=r"class emu \(1 images\)") as error:
        read_folder(tmp_path, size=8)
    assert "at least 2 images" in str(error.value)


def test_splits_with_other_classes_are_refused(tmp_path: Path) -> None:
    fill(tmp_path / "train", 3)
    fill(tmp_path / "test", 3, ("cat", "dog"))
    with pytest.raises(DataError, match="differ in the classes emu"):
        read_folder(tmp_path, size=8)


def test_folders_that_do_not_fit(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no folder") as error:
        read_folder(tmp_path / "none")
    assert str(tmp_path / "none") in str(error.value)
    with pytest.raises(DataError, match=r"at least 2, found none"):
        read_folder(tmp_path)
    fill(tmp_path, 3, ("cat",))
    with pytest.raises(DataError, match=r"at least 2, found only cat"):
        read_folder(tmp_path)
    (tmp_path / "test").mkdir()
    with pytest.raises(DataError, match="has test but no train"):
        read_folder(tmp_path)
    with pytest.raises(InputError, match="at least 8 pixels, got 4"):
        read_folder(tmp_path, size=4)
