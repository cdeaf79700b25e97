import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from gambeson.core.errors import DataError, InputError
from gambeson.data import DATASETS, FACTS, load
from gambeson.data.catalog import _READERS, require_there
from gambeson.data.facts import channel_statistics
from gambeson.data.stored import StoredImages


def test_every_named_set_has_a_line_facts_and_a_reader() -> None:
    named = {name for name in DATASETS if ":" not in name}
    assert named == set(FACTS) == {"digits", *_READERS}
    assert set(DATASETS) - named == {"folder:PATH", "npz:PATH"}


def test_digits_hold_out_their_validation_set_from_the_training_set_only() -> None:
    whole, splits = load("digits", val_fraction=0), load("digits")
    assert len(whole.val) == 0
    assert whole.val.x.shape[1:] == (1, 8, 8)
    assert len(splits.train) == 1330
    assert len(splits.val) == 70
    assert torch.equal(whole.test.x, splits.test.x)
    together = torch.cat([splits.train.x, splits.val.x]).flatten(1)
    assert sorted(map(tuple, together.tolist())) == sorted(map(tuple, whole.train.x.flatten(1).tolist()))
    assert splits.val.y.bincount(minlength=10).min() > 0
    assert torch.equal(load("digits").val.x, splits.val.x)
    assert not torch.equal(load("digits", seed=1).val.x, splits.val.x)
    assert torch.equal(load("digits", seed=1).test.x, splits.test.x)


@pytest.fixture
def arrays(tmp_path: Path) -> Path:
    x = np.random.default_rng(0).integers(0, 256, (80, 8, 8, 1), dtype=np.uint8)
    y = np.arange(80) % 2
    np.savez(tmp_path / "a.npz", x_train=x, y_train=y, x_val=x[:6], y_val=y[:6], x_test=x[:8], y_test=y[:8])
    return tmp_path / "a.npz"


def test_a_val_split_of_its_own_is_used_unless_none_is_wanted(arrays: Path) -> None:
    splits = load(f"npz:{arrays}")
    assert (len(splits.train), len(splits.val), len(splits.test)) == (80, 6, 8)
    splits = load(f"npz:{arrays}", val_fraction=0)
    assert (len(splits.train), len(splits.val), len(splits.test)) == (80, 0, 8)


def test_data_that_are_not_there_are_refused_without_reading_them(tmp_path: Path) -> None:
    file, folder = tmp_path / "a.npz", tmp_path / "photos"
    for name, said in (
        (f"npz:{file}", f"there is no file {file}"),
        (f"folder:{folder}", f"there is no folder {folder}"),
    ):
        with pytest.raises(DataError, match=said):
            require_there(name)
    file.write_text("not read")
    folder.mkdir()
    for name in (f"npz:{file}", f"folder:{folder}", "digits", "cifar10"):
        require_there(name, tmp_path / "downloads")
    with pytest.raises(DataError, match="is a file"):
        require_there("cifar10", file)
    with pytest.raises(InputError, match="did you mean cifar10"):
        require_there("cifar11")


def test_a_class_too_small_for_val_is_named(tmp_path: Path) -> None:
    x = np.zeros((103, 8, 8, 1), np.uint8)
    y = np.r_[np.zeros(100, int), np.ones(3, int)]
    np.savez(tmp_path / "a.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    with pytest.raises(DataError, match=r"class 1 \(3 images\)") as error:
        load(f"npz:{tmp_path / 'a.npz'}")
    assert "at least 0.34" in str(error.value)
    assert "val_fraction=0" in str(error.value)
    assert len(load(f"npz:{tmp_path / 'a.npz'}", val_fraction=0.34).val) == 35


def test_the_size_of_a_folder(tmp_path: Path) -> None:
    from PIL import Image

    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for i in range(30):
            Image.new("L", (20, 20), i).save(tmp_path / name / f"{i}.png")
    assert load(f"folder:{tmp_path}", size=16).train.x.shape == (46, 3, 16, 16)


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("cifar", {}, "did you mean cifar10"),
        ("CIFAR10", {}, "known: .*cifar10"),
        ("cifar10:x", {}, "no data set 'cifar10:x'"),
        ("", {}, "no data set ''"),
        ("folder:", {}, "needs a path"),
        ("npz:", {}, "needs a path"),
        ("digits", {"val_fraction": 1.0}, "val_fraction must be in"),
        ("digits", {"val_fraction": -0.1}, "val_fraction must be in"),
        ("digits", {"size": 32}, "size=32 does not apply to digits, whose images are 8x8"),
        ("npz:a", {"size": 32}, "does not apply to npz"),
        ("npz:a", {"verify": True}, "verify does not apply"),
        ("folder:a", {"verify": True}, "verify does not apply"),
    ],
)
def test_arguments_that_do_not_fit(name: str, options: dict[str, object], says: str) -> None:
    with pytest.raises(InputError, match=says):
        load(name, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", _READERS)
def test_a_missing_set_names_url_checksum_and_place(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pooch
    import requests

    def offline(self: object, url: str, output_file: str, pooch: object) -> None:
        raise requests.ConnectionError("offline")

    monkeypatch.setattr(pooch.HTTPDownloader, "__call__", offline)
    monkeypatch.setenv("GAMBESON_DATA", str(tmp_path / "data"))
    with pytest.raises(DataError, match=r"cannot be downloaded from https?://\S+: no connection") as error:
        load(name)
    assert str(tmp_path / "data") in str(error.value)
    assert "md5" in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_importing_the_package_does_not_import_the_readers_libraries() -> None:
    code = "import sys, gambeson.data; print([m for m in ('sklearn', 'scipy', 'pooch', 'PIL') if m in sys.modules])"
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.strip() == "[]"


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "folders", "train", "test"),
    [
        ("mnist", ("mnist",), [5, 0, 4, 1, 9, 2, 1, 3], [7, 2, 1, 0, 4, 1, 4, 9]),
        ("fashion-mnist", ("fashion-mnist",), [9, 0, 0, 3, 0, 2, 7, 2], [9, 2, 1, 1, 6, 1, 4, 6]),
        (
            "cifar10",
            ("cifar-10-batches-bin", "cifar-10-batches-py", "cifar-10-binary.tar.gz", "cifar-10-python.tar.gz"),
            [6, 9, 9, 4, 1, 1, 2, 7],
            [3, 8, 8, 0, 6, 6, 1, 6],
        ),
    ],
)
def test_real_data(name: str, folders: tuple[str, ...], train: list[int], test: list[int]) -> None:
    root = os.environ.get("GAMBESON_DATA")
    if not root or not any((Path(root) / folder).exists() for folder in folders):
        pytest.skip(f"$GAMBESON_DATA holds no {name}")
    whole = load(name, val_fraction=0, verify="mnist" in name)
    assert whole.train.y[:8].tolist() == train
    assert whole.test.y[:8].tolist() == test
    facts = whole.facts
    count = 60_000 if "mnist" in name else 50_000
    assert whole.train.x.shape == (count, facts.channels, facts.size, facts.size)
    assert whole.test.x.shape == (10_000, facts.channels, facts.size, facts.size)
    mean, std = channel_statistics(whole.train.x)
    assert mean == pytest.approx(facts.mean, abs=1e-4)
    assert std == pytest.approx(facts.std, abs=1e-4)
    splits = load(name)
    assert (len(splits.train), len(splits.val)) == (count * 19 // 20, count // 20)
    share = splits.val.y.bincount() / whole.train.y.bincount()
    assert (share - 0.05).abs().max() < 1e-3


def test_streaming_is_for_folders(photos: Path) -> None:
    splits = load(f"folder:{photos}", size=8, val_fraction=0.25, stream="on", workers=0)
    assert all(isinstance(part.x, StoredImages) for part in (splits.train, splits.val, splits.test))
    assert (len(splits.train), len(splits.val), len(splits.test)) == (18, 6, 6)
    with pytest.raises(InputError, match="stream='on' does not apply to digits"):
        load("digits", stream="on")
    with pytest.raises(InputError, match="workers=2 does not apply to digits"):
        load("digits", workers=2)
    assert isinstance(load("digits", stream="auto").train.x, torch.Tensor)
