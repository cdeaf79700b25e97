"""The readers for published corrupted sets, on small fabricated files, whole and damaged."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gambeson.core.errors import DataError, InputError
from gambeson.data import corrupted
from gambeson.data.corrupted import read_corrupted, require_published
from gambeson.data.facts import FACTS


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """CIFAR-10-C of 4 images: the level of every pixel is severity * 10 + image."""
    monkeypatch.setattr(corrupted, "PER_SEVERITY", 4)
    folder = tmp_path / "CIFAR-10-C"
    folder.mkdir()
    marks = np.array([10 * severity + image for severity in range(1, 6) for image in range(4)], np.uint8)
    x = np.broadcast_to(marks[:, None, None, None], (20, 32, 32, 3)).copy()
    x[..., 2] += 100  # the last channel is blue
    np.save(folder / "fog.npy", x)
    np.save(folder / "labels.npy", np.tile(np.array([3, 8, 8, 0], np.uint8), 5))
    return tmp_path


@pytest.mark.parametrize("severity", [1, 5])
def test_the_rows_of_a_severity(root: Path, severity: int) -> None:
    found = read_corrupted("cifar10", root, "fog", severity)
    assert found.x.shape == (4, 3, 32, 32)
    assert found.x[:, 0, 5, 7].tolist() == [10 * severity + image for image in range(4)]
    assert found.x[1, 2, 0, 0] == 10 * severity + 1 + 100
    assert found.y.tolist() == [3, 8, 8, 0]
    assert len(read_corrupted("cifar10", root, "fog", severity, limit=2)) == 2
    assert len(read_corrupted("cifar10", root, "fog", severity, limit=99)) == 4


def test_the_data_folder_of_the_environment(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GAMBESON_DATA", str(root))
    assert len(read_corrupted("cifar10", None, "fog", 1)) == 4


def test_all_that_is_missing_is_named_at_once(root: Path) -> None:
    with pytest.raises(DataError, match=r"there is no snow\.npy, frost\.npy") as error:
        require_published("cifar10", root, ("fog", "snow", "frost"))
    assert error.value.hint
    with pytest.raises(DataError, match=r"no labels\.npy, fog\.npy"):
        read_corrupted("cifar100", root, "fog", 1)
    with pytest.raises(DataError, match=r"Tiny-ImageNet-C and .*extra: there is no fog/1, fog/2"):
        require_published("tiny-imagenet", root, ("fog",), (1, 2))


def test_what_is_refused(root: Path) -> None:
    with pytest.raises(InputError, match="no published corrupted images of digits"):
        read_corrupted("digits", root, "fog", 1)
    with pytest.raises(InputError, match="unknown corruption 'fogg'"):
        read_corrupted("cifar10", root, "fogg", 1)
    with pytest.raises(InputError, match="a severity must be"):
        read_corrupted("cifar10", root, "fog", 6)
    with pytest.raises(InputError, match="a limit must be at least 1"):
        read_corrupted("cifar10", root, "fog", 1, limit=0)


def test_damaged_files(root: Path) -> None:
    folder = root / "CIFAR-10-C"
    whole, labels = np.load(folder / "fog.npy"), np.load(folder / "labels.npy")

    def complains(words: str) -> None:
        with pytest.raises(DataError, match=words):
            read_corrupted("cifar10", root, "fog", 1)

    np.save(folder / "fog.npy", whole[:-1])
    complains(r"holds uint8 \(19, 32, 32, 3\)")
    np.save(folder / "fog.npy", whole.astype(np.float32))
    complains("holds float32")
    (folder / "fog.npy").write_bytes(b"\x93NUMPY and no more")
    complains(r"fog\.npy is damaged")
    np.save(folder / "fog.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    complains(r"fog\.npy is damaged")
    with (folder / "fog.npy").open("wb") as file:
        np.savez(file, a=whole)
    complains("archive of arrays")
    np.save(folder / "fog.npy", whole)
    np.save(folder / "labels.npy", np.roll(labels, 1) * (np.arange(20) < 7))
    complains("labels differ between the severities")
    np.save(folder / "labels.npy", labels + 2)
    complains("label 10 of image 1 is outside 0..9")
    np.save(folder / "labels.npy", labels[:-1])
    complains("expected 20 integers")
    np.save(folder / "labels.npy", labels)
    assert len(read_corrupted("cifar10", root, "fog", 1)) == 4


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """Tiny-ImageNet-C of two images a class; `spatter` lies in the second folder."""
    for outer, name in (("Tiny-ImageNet-C", "fog"), ("Tiny-ImageNet-C-extra", "spatter")):
        for label, wnid in enumerate(FACTS["tiny-imagenet"].class_names):
            folder = tmp_path / outer / name / "2" / wnid
            folder.mkdir(parents=True)
            for number in range(2):
                Image.new("RGB", (64, 64), (label, 100 * number, 0)).save(folder / f"test_{number}.JPEG", quality=100)
    return tmp_path


def test_folders_by_class(tiny: Path) -> None:
    for name in ("fog", "spatter"):
        found = read_corrupted("tiny-imagenet", tiny, name, 2)
        assert found.x.shape == (400, 3, 64, 64)
        assert found.y.tolist() == [*range(200), *range(200)]
        assert (found.x[:, 0, 0, 0].long() - found.y).abs().max() <= 2
    assert read_corrupted("tiny-imagenet", tiny, "fog", 2, limit=10).y.tolist() == list(range(10))


def test_damaged_folders(tiny: Path) -> None:
    wnid = FACTS["tiny-imagenet"].class_names[7]
    folder = tiny / "Tiny-ImageNet-C" / "fog" / "2"
    (folder / wnid / "test_0.JPEG").write_bytes(b"no image")
    with pytest.raises(DataError, match="cannot be decoded"):
        read_corrupted("tiny-imagenet", tiny, "fog", 2)
    for file in (folder / wnid).iterdir():
        file.unlink()
    with pytest.raises(DataError, match=f"holds no images of {wnid}"):
        read_corrupted("tiny-imagenet", tiny, "fog", 2)
    (folder / wnid).rmdir()
    with pytest.raises(DataError, match=f"lacks the classes {wnid}"):
        read_corrupted("tiny-imagenet", tiny, "fog", 2)
    Image.new("RGB", (60, 64)).save(tiny / "Tiny-ImageNet-C-extra" / "spatter" / "2" / wnid / "test_0.JPEG")
    with pytest.raises(DataError, match="60x64 pixels"):
        read_corrupted("tiny-imagenet", tiny, "spatter", 2)
