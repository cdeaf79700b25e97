import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from gambeson.core.errors import DataError, GambesonWarning, InputError
from gambeson.data.facts import channel_statistics
from gambeson.data.folder import read_folder
from gambeson.data.stored import StoredImages

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


@pytest.mark.parametrize("parts", [(), ("train", "val"), ("train", "val", "test")])
def test_a_streamed_folder_is_the_folder(parts: tuple[str, ...], tmp_path: Path) -> None:
    for part in parts or (".",):
        fill(tmp_path / part, 10)
    eager, lazy = (read_folder(tmp_path, size=8, stream=how) for how in ("off", "on"))
    assert lazy.facts == eager.facts
    assert lazy.facts.measured_on is None
    for a, b in zip(lazy[:3], eager[:3], strict=True):
        assert (a is None) == (b is None)
        if a is None or b is None:
            continue
        assert isinstance(a.x, StoredImages)
        assert torch.equal(a.pixels, b.x)
        assert torch.equal(a.y, b.y)
        assert torch.equal(a.origin, b.origin)
        assert a.pool == b.pool


def test_of_a_large_streamed_folder_a_sample_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path, 10)
    eager = read_folder(tmp_path, size=8)
    monkeypatch.setattr("gambeson.data.facts.SAMPLE", 5)
    lazy = read_folder(tmp_path, size=8, stream="on")
    assert lazy.facts.measured_on == 5
    assert (lazy.facts.mean, lazy.facts.std) == channel_statistics(eager.train.x[:5])
    assert lazy.facts.mean != eager.facts.mean
    assert read_folder(tmp_path, size=8).facts == eager.facts  # in memory all are measured


def test_auto_streams_what_takes_too_much_of_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path, 10)
    needed = 30 * 3 * 8 * 8
    monkeypatch.setattr("gambeson.data.folder.memory", lambda: 4 * needed)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert isinstance(read_folder(tmp_path, size=8, stream="auto").train.x, torch.Tensor)
    monkeypatch.setattr("gambeson.data.folder.memory", lambda: 4 * needed - 1)
    said = r"30 images of .* would take 0\.00 GB decoded to 8x8 pixels, more than 25% of the .* GB of memory"
    with pytest.warns(GambesonWarning, match=said):
        assert isinstance(read_folder(tmp_path, size=8, stream="auto", workers=3).train.x, StoredImages)
    assert isinstance(read_folder(tmp_path, size=8, stream="off").train.x, torch.Tensor)
    monkeypatch.setattr("gambeson.data.folder.memory", lambda: None)
    assert isinstance(read_folder(tmp_path, size=8, stream="auto").train.x, torch.Tensor)


def test_who_decodes_is_said_by_the_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path, 5)
    monkeypatch.setattr("gambeson.data.folder.default_workers", lambda: 4)
    for asked, workers in ((None, 4), (0, 0), (3, 3)):
        x = read_folder(tmp_path, size=8, stream="on", workers=asked).train.x
        assert isinstance(x, StoredImages)
        assert x.workers == workers


def test_a_streamed_folder_says_what_is_wrong_with_its_form(tmp_path: Path) -> None:
    fill(tmp_path, 5)
    with pytest.raises(InputError, match="workers must be at least 0, got -1"):
        read_folder(tmp_path, stream="on", workers=-1)
    with pytest.raises(InputError, match="unknown stream 'maybe'"):
        read_folder(tmp_path, stream="maybe")  # type: ignore[arg-type]
    (tmp_path / "fox").mkdir()
    with pytest.raises(DataError, match="no images in the class folders fox"):
        read_folder(tmp_path, size=8, stream="on")


def test_classes_keep_their_order_where_names_sort_otherwise_with_a_slash(tmp_path: Path) -> None:
    fill(tmp_path, 4, ("cat", "dog"))
    (tmp_path / "dog").rename(tmp_path / "cat b")  # "cat b/" comes before "cat/"
    train, test, _, facts = read_folder(tmp_path, size=8)
    assert facts.class_names == ("cat", "cat b")
    assert is_consistent(train)
    assert is_consistent(test)
