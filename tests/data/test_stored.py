import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gambeson.core.errors import DataError, GambesonWarning
from gambeson.data import stored
from gambeson.data.folder import read_folder
from gambeson.data.splits import Examples
from gambeson.data.stored import FileNames, StoredImages, in_memory


@pytest.fixture
def pair(photos: Path) -> tuple[StoredImages, torch.Tensor]:
    """The training images of a folder, in their files and in memory."""
    lazy, eager = (read_folder(photos, size=8, stream=how).train.x for how in ("on", "off"))
    assert isinstance(lazy, StoredImages)
    assert isinstance(eager, torch.Tensor)
    return lazy, eager


@given(st.lists(st.text(st.characters(exclude_characters="/\0", codec="utf-8"), min_size=1)))
def test_names_come_back_as_they_were(names: list[str]) -> None:
    kept = FileNames(names)
    assert len(kept) == len(names)
    assert list(kept) == names
    assert [kept[i - len(names)] for i in range(len(names))] == names


def test_names_that_are_no_unicode_are_kept_too() -> None:
    assert FileNames(["a/\udcff.png"])[0] == "a/\udcff.png"


def test_names_take_few_bytes() -> None:
    names = FileNames(f"n{i % 1000:08d}/n{i % 1000:08d}_{i}.JPEG" for i in range(10_000))
    assert len(pickle.dumps(names)) < 45 * 10_000


@pytest.mark.parametrize(
    "index",
    [
        slice(None),
        slice(3, 7),
        slice(0, 0),
        torch.tensor([5, 0, 5, 11]),
        torch.arange(24) % 5 == 0,
        torch.arange(0),
    ],
)
def test_what_is_indexed_has_the_pixels_of_the_folder_in_memory(
    pair: tuple[StoredImages, torch.Tensor], index: torch.Tensor | slice
) -> None:
    lazy, eager = pair
    assert torch.equal(lazy[index], eager[index])
    part = lazy.subset(index)
    assert (part.shape, part.dtype, part.ndim, len(part)) == (eager[index].shape, torch.uint8, 4, len(eager[index]))
    assert torch.equal(part[:], eager[index])
    assert torch.equal(part.subset(slice(1, None))[:], eager[index][1:])


def test_what_is_outside_is_an_error_as_for_a_tensor(pair: tuple[StoredImages, torch.Tensor]) -> None:
    with pytest.raises(IndexError):
        pair[0][torch.tensor([24])]


def test_decoded_images_go_to_the_device(pair: tuple[StoredImages, torch.Tensor]) -> None:
    there = pair[0].to("meta")
    assert there.device.type == there.subset(slice(3)).device.type == "meta"
    assert there[:2].device.type == "meta"
    assert pair[0][:2].device.type == "cpu"


def test_choosing_examples_decodes_nothing(
    pair: tuple[StoredImages, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*args: object, **settings: object) -> None:
        raise AssertionError("something was decoded")

    monkeypatch.setattr(stored, "decode", never)
    examples = Examples(pair[0], torch.zeros(24, dtype=torch.int64))
    for part in (examples.head(3), examples.subset(torch.tensor([2, 1, 0])), examples.to("cpu").head(3)):
        assert len(part) == len(part.x) == 3
    assert len(examples.head(None)) == 24
    with pytest.raises(AssertionError, match="was decoded"):
        examples.pixels  # noqa: B018


def test_bringing_much_into_memory_is_said(
    pair: tuple[StoredImages, torch.Tensor], monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    lazy, eager = pair
    assert torch.equal(in_memory(lazy), eager)
    assert in_memory(eager) is eager
    assert not recwarn.list
    monkeypatch.setattr(stored, "LARGE", 24 * 3 * 64 - 1)
    with pytest.warns(GambesonWarning, match=r"24 images of .* are decoded into memory at once, 0\.00 GB"):
        assert torch.equal(in_memory(lazy), eager)


@pytest.mark.parametrize("harm", ["damaged", "gone"])
def test_a_file_that_is_damaged_or_gone_is_named(harm: str, tmp_path: Path, write_photos: Callable[..., Path]) -> None:
    x = read_folder(write_photos(tmp_path), size=8, stream="on").train.x
    assert isinstance(x, StoredImages)
    file = tmp_path / x.names[int(x.rows[7])]
    file.write_bytes(b"cut") if harm == "damaged" else file.unlink()
    x[:7]
    with pytest.raises(DataError, match="cannot be decoded") as error:
        x[7:8]
    assert str(file) in error.value.message
    assert error.value.hint == "remove or replace this image, or copy the data set again"
